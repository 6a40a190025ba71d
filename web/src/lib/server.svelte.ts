/** What the server says of itself, asked again every few seconds while somebody looks. */
import { ApiError, getState, type ModelState, type ServerState } from './api';

const EVERY_MS = 5000;
const PLACE = 'octet.model';

class Server {
  state = $state<ServerState | null>(null);
  /** Why it could not be asked last time. */
  error = $state('');
  /** The model that new conversations use. */
  chosen = $state(localStorage.getItem(PLACE) ?? '');

  readonly models = $derived<ModelState[]>(this.state?.models ?? []);
  /** Those that can answer now. */
  readonly ready = $derived(this.models.filter((model) => model.state === 'ready' && model.can_chat));
  /** The chosen model if it is here, else the first that can chat. */
  readonly model = $derived(
    (this.named(this.chosen) ? this.chosen : '') || ((this.ready[0] ?? this.models[0])?.name ?? ''),
  );
  readonly keepsHistory = $derived(this.state?.keeps_history ?? false);

  /** The model that answers to a name: its own, an alias, or that of one of its adapters. */
  named(name: string): ModelState | undefined {
    const real = this.state?.aliases[name] ?? name;
    return this.models.find((model) => model.name === real || model.adapters?.includes(real));
  }

  /** The adapter that a name means; empty where it means a model as it is. */
  adapter(name: string): string {
    const real = this.state?.aliases[name] ?? name;
    return this.named(real)?.adapters?.includes(real) ? real : '';
  }

  facts(name: string) {
    return this.named(name)?.facts;
  }

  canChat(name: string) {
    const model = this.named(name);
    return model?.state === 'ready' && model.can_chat === true;
  }

  choose(name: string) {
    this.chosen = name;
    localStorage.setItem(PLACE, name);
  }

  async refresh() {
    try {
      this.state = await getState();
      this.error = '';
    } catch (error) {
      this.error = error instanceof ApiError ? error.message : String(error);
    }
  }

  /** Asks now and from then on. */
  watch() {
    void this.refresh();
    setInterval(() => document.visibilityState === 'visible' && void this.refresh(), EVERY_MS);
    document.addEventListener('visibilitychange', () => document.visibilityState === 'visible' && void this.refresh());
  }
}

export const server = new Server();
