/**
 * Where conversations are kept: files of the server, or, where the server keeps none, this tab alone (a reload finds them,
 * closing the tab forgets them).
 */
import { ApiError, call, json } from './api';
import type { Conversation } from './conversation';

export interface Summary {
  id: string;
  title: string | null;
  model: string | null;
  changed_ms: number;
  /** The place that a search found. */
  found?: string;
}

export interface Stored {
  data: Conversation;
  /** Its version. */
  tag: string;
}

export interface Store {
  list(search?: string): Promise<Summary[]>;
  /** Null where it is still of version `known`. */
  get(id: string, known?: string): Promise<Stored | null>;
  /** Writes it unless it has changed since `known`; the new version, or null where it has. */
  put(id: string, data: Conversation, known: string | null, isLast?: boolean): Promise<string | null>;
  remove(id: string): Promise<void>;
}

const path = (id: string) => `/octet/conversations/${encodeURIComponent(id)}`;

export const onServer: Store = {
  async list(search = '') {
    const query = search ? `?search=${encodeURIComponent(search)}` : '';
    return (await json<{ conversations: Summary[] }>(`/octet/conversations${query}`)).conversations;
  },
  async get(id, known) {
    const response = await call(path(id), known ? { headers: { 'if-none-match': known } } : {});
    if (response.status === 304) return null;
    return { data: (await response.json()) as Conversation, tag: response.headers.get('etag') ?? '' };
  },
  async put(id, data, known) {
    try {
      const response = await call(path(id), { method: 'PUT', body: data, headers: known ? { 'if-match': known } : {} });
      return response.headers.get('etag') ?? '';
    } catch (error) {
      if (error instanceof ApiError && error.status === 412) return null;
      throw error;
    }
  },
  async remove(id) {
    await call(path(id), { method: 'DELETE' });
  },
};

const PREFIX = 'octet.conversation.';

interface Kept {
  changed_ms: number;
  data: Conversation;
}

export const inTab: Store = {
  async list(search = '') {
    const keys = Object.keys(sessionStorage).filter((key) => key.startsWith(PREFIX));
    const all = keys.map((key) => ({ id: key.slice(PREFIX.length), ...(JSON.parse(sessionStorage[key]) as Kept) }));
    const wanted = search.toLowerCase();
    return all
      .filter(({ data }) => JSON.stringify(data).toLowerCase().includes(wanted))
      .sort((a, b) => b.changed_ms - a.changed_ms)
      .map(({ id, changed_ms, data }) => ({ id, changed_ms, title: data.title, model: data.model }));
  },
  async get(id, known) {
    const text = sessionStorage.getItem(PREFIX + id);
    if (!text) throw new ApiError(`there is no ${id}`, 404);
    const { changed_ms, data } = JSON.parse(text) as Kept;
    return known === String(changed_ms) ? null : { data, tag: String(changed_ms) };
  },
  async put(id, data) {
    const changed_ms = Date.now();
    sessionStorage.setItem(PREFIX + id, JSON.stringify({ changed_ms, data } satisfies Kept));
    return String(changed_ms);
  },
  async remove(id) {
    sessionStorage.removeItem(PREFIX + id);
  },
};
