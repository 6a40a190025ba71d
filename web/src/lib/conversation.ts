/**
 * A conversation: a tree of messages. Editing or asking again never loses anything, it grows another branch; what is shown
 * is the way from the root to `leaf`.
 *
 *     user ─ assistant ─ user ─ assistant   ← leaf
 *          └ assistant (asked again)
 */
import type { ApiMessage, ToolCall } from './api';
import { defaults, type Settings } from './settings';
import type { Timings, Usage } from './stream';

/** One request whose answer is, or is part of, a message. A message that was continued has several. */
export interface Run {
  /** The server's name for it, under `/octet/answers`. */
  id: string;
  model: string;
  /** Characters of the message that were there before. */
  from: number;
  /** Null while it goes on. */
  finish: string | null;
  usage?: Usage;
  timings?: Timings;
  warnings?: string[];
  /** Why it broke off. */
  error?: string;
}

export interface Message {
  id: string;
  parent: string | null;
  role: 'user' | 'assistant' | 'tool';
  content: string;
  created_ms: number;
  tool_calls?: ToolCall[];
  tool_call_id?: string;
  name?: string;
  runs?: Run[];
  /** Taken away by the reader; kept so that other tabs know. */
  removed?: boolean;
}

export interface Conversation {
  kind: 'octet-conversation';
  title: string;
  /** Whether the reader gave the title. */
  named?: boolean;
  model: string;
  created_ms: number;
  system: string;
  settings: Settings;
  messages: Record<string, Message>;
  leaf: string | null;
}

/** 64 random bits that sort by time. */
export function newId(): string {
  const random = crypto.getRandomValues(new Uint32Array(2));
  return `${Date.now().toString(36)}-${random[0]!.toString(36)}${random[1]!.toString(36)}`;
}

export function newConversation(model: string, from?: Pick<Conversation, 'system' | 'settings'>): Conversation {
  return {
    kind: 'octet-conversation',
    title: '',
    model,
    created_ms: Date.now(),
    system: from?.system ?? '',
    settings: structuredClone(from?.settings ?? defaults),
    messages: {},
    leaf: null,
  };
}

/** Messages from the root to `leaf`. */
export function pathTo(conversation: Conversation, leaf: string | null = conversation.leaf): Message[] {
  const path: Message[] = [];
  let message = leaf === null ? undefined : conversation.messages[leaf];
  // A file from elsewhere may hold a ring.
  while (message && path.length <= Object.keys(conversation.messages).length) {
    path.push(message);
    message = message.parent === null ? undefined : conversation.messages[message.parent];
  }
  return path.reverse();
}

/** Messages with the same parent, oldest first. */
export function siblings(conversation: Conversation, message: Message): Message[] {
  return children(conversation, message.parent);
}

export function children(conversation: Conversation, parent: string | null): Message[] {
  const all = Object.values(conversation.messages).filter((other) => other.parent === parent && !other.removed);
  return all.sort((a, b) => a.created_ms - b.created_ms || (a.id < b.id ? -1 : 1));
}

/** The newest leaf at or below a message. */
export function leafBelow(conversation: Conversation, id: string): string {
  let at = id;
  for (;;) {
    const below = children(conversation, at).at(-1);
    if (!below) return at;
    at = below.id;
  }
}

/** Adds a message and shows it. */
export function add(conversation: Conversation, message: Omit<Message, 'id' | 'created_ms'>): Message {
  const id = newId();
  conversation.messages[id] = { ...message, id, created_ms: Date.now() };
  conversation.leaf = id;
  if (!conversation.named && message.role === 'user' && message.parent === null) conversation.title = titleOf(message.content);
  return conversation.messages[id];
}

/** Takes a message and what hangs below it out of sight. */
export function remove(conversation: Conversation, message: Message) {
  message.removed = true;
  const rest = siblings(conversation, message);
  if (rest.length > 0) conversation.leaf = leafBelow(conversation, rest.at(-1)!.id);
  else conversation.leaf = message.parent;
}

export function titleOf(text: string): string {
  const line = text.trim().split('\n')[0]!.trim();
  return line.length > 60 ? `${line.slice(0, 59).trimEnd()}…` : line;
}

/** What a model is sent for the messages up to and with `path`'s last one. */
export function forApi(conversation: Conversation, path: Message[]): ApiMessage[] {
  const system: ApiMessage[] = conversation.system.trim() ? [{ role: 'system', content: conversation.system }] : [];
  // An answer that failed before its first word says nothing.
  const said = path.filter((message) => message.role !== 'assistant' || message.content || message.tool_calls?.length);
  return system.concat(
    said.map((message) => ({
      role: message.role,
      content: message.content,
      ...(message.tool_calls?.length ? { tool_calls: message.tool_calls } : {}),
      ...(message.tool_call_id ? { tool_call_id: message.tool_call_id } : {}),
      ...(message.name ? { name: message.name } : {}),
    })),
  );
}

export const isRunning = (message: Message) => message.runs?.at(-1)?.finish === null;

/**
 * What two writers have of one conversation, put together. Messages are only ever added, so nothing is lost: of a message
 * that both have, the one that is further along stays. `own` decides what is shown and set.
 */
export function merge(own: Conversation, other: Conversation): Conversation {
  const messages = { ...other.messages };
  for (const [id, mine] of Object.entries(own.messages)) {
    const theirs = messages[id];
    messages[id] = theirs && further(theirs) > further(mine) ? theirs : mine;
    if (theirs?.removed) messages[id] = { ...messages[id], removed: true };
  }
  return { ...own, title: own.title || other.title, messages };
}

function further(message: Message): number {
  const runs = message.runs ?? [];
  const ended = runs.filter((run) => run.finish !== null).length;
  return (runs.length + ended) * 1e9 + message.content.length;
}
