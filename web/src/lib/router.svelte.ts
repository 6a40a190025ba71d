/**
 * Addresses. They stand behind `#`, so that one document serves them all: `#/chat/ID`, `#/compare`, `#/plan?model=x`.
 */
class Router {
  #hash = $state(location.hash);

  constructor() {
    addEventListener('hashchange', () => (this.#hash = location.hash));
  }

  /** Path segments, decoded: `['chat', 'ID']`. */
  readonly path = $derived.by(() =>
    this.#hash.replace(/^#\/?/, '').split('?')[0]!.split('/').filter(Boolean).map(decode),
  );

  /** What stands behind `?`. */
  readonly query = $derived(new URLSearchParams(this.#hash.split('?')[1] ?? ''));

  /** Name of the room, `chat` where there is none. */
  readonly room = $derived(this.path[0] ?? 'chat');

  go(address: string) {
    location.hash = address;
  }

  /** Changes the address without a step back to the old one. */
  replace(address: string) {
    history.replaceState(null, '', `#${address}`);
    this.#hash = location.hash;
  }

  /** Sets or removes values behind `?`, in place. */
  set(values: Record<string, string | null>) {
    const query = new URLSearchParams(this.query);
    for (const [name, value] of Object.entries(values)) {
      if (value === null || value === '') query.delete(name);
      else query.set(name, value);
    }
    const text = query.toString();
    this.replace(`/${this.path.map(encodeURIComponent).join('/')}${text ? `?${text}` : ''}`);
  }
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

export const router = new Router();
