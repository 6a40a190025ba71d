/**
 * The conversations of this reader: the list, and those that are open. Every change is written within a moment; tabs tell
 * each other, and what other browsers wrote is looked for every few seconds.
 */
import { ApiError } from './api';
import { merge, newConversation, newId, type Conversation } from './conversation';
import { server } from './server.svelte';
import { inTab, onServer, type Store, type Summary } from './store';

const SAVE_AFTER_MS = 300;
const LOOK_EVERY_MS = 4000;

/** A conversation that is open. */
export class Doc {
  data = $state<Conversation>()!;
  /** Why it could not be written last time. */
  error = $state('');
  /** Whether a message is being edited: what others write then leaves the branch on the screen as it is. */
  isEdited = false;
  #tag: string | null;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #saving: Promise<void> | null = null;
  #isDirty = false;

  constructor(
    readonly id: string,
    data: Conversation,
    tag: string | null,
    readonly store: Store,
    readonly onsaved: (doc: Doc) => void,
  ) {
    this.data = data;
    this.#tag = tag;
  }

  /** Says that `data` has changed: it is written soon. */
  touch() {
    this.#isDirty = true;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => void this.save(), SAVE_AFTER_MS);
  }

  /** Writes now what is not written yet. */
  async save(): Promise<void> {
    clearTimeout(this.#timer);
    while (this.#saving) await this.#saving;
    if (!this.#isDirty) return;
    this.#saving = this.#write().finally(() => (this.#saving = null));
    await this.#saving;
  }

  async #write() {
    this.#isDirty = false;
    try {
      let tag: string | null = null;
      // Somebody else wrote in between: both are put together, and written.
      while ((tag = await this.store.put(this.id, $state.snapshot(this.data) as Conversation, this.#tag)) === null) {
        const theirs = await this.store.get(this.id);
        if (theirs) {
          this.data = merge(this.data, theirs.data);
          this.#tag = theirs.tag;
        }
      }
      this.#tag = tag;
      this.error = '';
      this.onsaved(this);
    } catch (error) {
      this.#isDirty = true;
      this.error = error instanceof ApiError ? error.message : String(error);
      this.#timer = setTimeout(() => void this.save(), LOOK_EVERY_MS);
    }
  }

  /** Takes over what others wrote. */
  async look(): Promise<void> {
    if (this.#saving || this.#isDirty || this.#tag === null) return;
    const theirs = await this.store.get(this.id, this.#tag);
    if (!theirs || this.#saving) return;
    const data = this.#isDirty ? merge(this.data, theirs.data) : theirs.data;
    const { leaf } = this.data;
    this.data = this.isEdited && leaf !== null && data.messages[leaf] ? { ...data, leaf } : data;
    this.#tag = theirs.tag;
  }
}

class Library {
  list = $state<Summary[]>([]);
  isLoaded = $state(false);
  #docs = new Map<string, Promise<Doc>>();
  #channel = new BroadcastChannel('octet.conversations');

  #store(): Store {
    return server.keepsHistory ? onServer : inTab;
  }

  constructor() {
    this.#channel.onmessage = ({ data }: MessageEvent<{ id: string }>) => {
      void this.refresh();
      void this.#docs.get(data.id)?.then((doc) => doc.look());
    };
    setInterval(() => document.visibilityState === 'visible' && this.#look(), LOOK_EVERY_MS);
    document.addEventListener('visibilitychange', () => {
      if (document.visibilityState === 'visible') this.#look();
      else this.flush();
    });
    addEventListener('pagehide', () => this.flush());
  }

  #look() {
    void this.refresh();
    for (const doc of this.#docs.values()) doc.then((doc) => doc.look()).catch(() => {});
  }

  /** Writes all that is not written. */
  flush() {
    for (const doc of this.#docs.values()) doc.then((doc) => doc.save()).catch(() => {});
  }

  async refresh() {
    if (!server.state) return;
    try {
      const list = await this.#store().list();
      if (JSON.stringify(list) !== JSON.stringify(this.list)) this.list = list;
      this.isLoaded = true;
    } catch {
      // The next look tries again; the server's own state says what is wrong.
    }
  }

  find(text: string): Promise<Summary[]> {
    return this.#store().list(text);
  }

  /** Opens a conversation, once for everybody who looks at it. */
  open(id: string): Promise<Doc> {
    let doc = this.#docs.get(id);
    if (!doc) {
      const store = this.#store();
      doc = store.get(id).then((stored) => new Doc(id, stored!.data, stored!.tag, store, this.#saved));
      this.#docs.set(id, doc);
      doc.catch(() => this.#docs.delete(id));
    }
    return doc;
  }

  /** A new conversation; it is kept from its first message on. */
  create(data: Conversation = newConversation(server.model)): Doc {
    const doc = new Doc(newId(), data, null, this.#store(), this.#saved);
    this.#docs.set(doc.id, Promise.resolve(doc));
    return doc;
  }

  #saved = (doc: Doc) => {
    const summary = { id: doc.id, title: doc.data.title, model: doc.data.model, changed_ms: Date.now() };
    this.list = [summary, ...this.list.filter(({ id }) => id !== doc.id)];
    this.#channel.postMessage({ id: doc.id });
  };

  async remove(id: string) {
    this.#docs.delete(id);
    await this.#store().remove(id);
    this.list = this.list.filter((summary) => summary.id !== id);
    this.#channel.postMessage({ id });
  }
}

export const library = new Library();
