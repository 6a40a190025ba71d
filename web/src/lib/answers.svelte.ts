/**
 * Answers in the making. The server writes them by itself; this page only follows, so a reload, another tab or another
 * browser goes on where the answer is. What has come is put into the conversation, which is written now and then.
 */
import { SvelteMap } from 'svelte/reactivity';
import { ApiError, call, json, type ToolCall } from './api';
import { add, forApi, isRunning, pathTo, type Message, type Run } from './conversation';
import type { Doc } from './library.svelte';
import { server } from './server.svelte';
import { request, SettingError } from './settings';
import { chunk, events, type Chunk, type DrawnToken } from './stream';
import { words } from '../strings';

/** Alternatives that are kept of each token. */
export const ALTERNATIVES = 5;
const SAVE_EVERY_MS = 4000;
/** Tokens of so many answers stay in memory. */
const KEPT = 30;

/** How far an answer is. */
export interface Live {
  /** Tokens of the prompt that have been read, and all of them. */
  reading: [number, number] | null;
  tokens: number;
  /** The experts that weighed most for the last token; null where the model has none to choose from. */
  experts: number[] | null;
  /** Of the last second or so. */
  perSecond: number | null;
  firstMs: number | null;
}

/** By the answer's id; only those that go on. */
export const live = new SvelteMap<string, Live>();

/** The experts of the last token of an answer that is being written and shown; null while there is none. */
export function expertsAtWork(): number[] | null {
  for (const { experts } of live.values()) if (experts) return experts;
  return null;
}

/** Tokens as they were drawn, by the answer's id. */
export const drawn = new Map<string, DrawnToken[]>();

/** Asks for an answer to `parent`, in a new message that begins with `prefix`. */
export function ask(doc: Doc, parent: string | null, prefix = ''): Promise<void> {
  const message = add(doc.data, { parent, role: 'assistant', content: prefix, runs: [] });
  return goOn(doc, message.id);
}

/** Lets the model go on with a message. */
export async function goOn(doc: Doc, id: string): Promise<void> {
  const message = doc.data.messages[id]!;
  const model = doc.data.model;
  const path = pathTo(doc.data, id);
  const run: Run = { id: '', model, from: message.content.length, finish: null };
  try {
    const settings = request(doc.data.settings);
    const asked = { logprobs: true, top_logprobs: ALTERNATIVES, timings: true, routing: (server.facts(model)?.experts ?? 1) > 1 };
    const body = { model, messages: forApi(doc.data, path), ...settings, ...asked };
    run.id = (await json<{ id: string }>('/octet/answers', { body })).id;
  } catch (error) {
    if (!(error instanceof ApiError || error instanceof SettingError)) throw error;
    run.finish = 'error';
    run.error = error.message;
  }
  const now = doc.data.messages[id]!;
  now.runs = [...(now.runs ?? []), run];
  doc.touch();
  if (run.finish !== null) return;
  // Kept before a word is there, so that whoever comes back finds it.
  void doc.save();
  await follow(doc, id, true);
}

/** Stops a message's answer; what there is stays. */
export async function stop(message: Message): Promise<void> {
  const id = message.runs?.at(-1)?.id;
  if (id) await call(`/octet/answers/${id}`, { method: 'DELETE' }).catch(() => {});
}

/** Follows every answer of a conversation that is not over. */
export function followAll(doc: Doc) {
  for (const message of Object.values(doc.data.messages)) {
    if (isRunning(message) && !live.has(message.runs!.at(-1)!.id)) void follow(doc, message.id, false);
  }
}

async function follow(doc: Doc, messageId: string, isOwn: boolean): Promise<void> {
  const run = doc.data.messages[messageId]!.runs!.at(-1)!;
  const follower = new Follower(doc, messageId, run.id, run.from, isOwn);
  live.set(run.id, { reading: null, tokens: 0, experts: null, perSecond: null, firstMs: null });
  try {
    await follower.toTheEnd();
  } finally {
    live.delete(run.id);
  }
}

class Follower {
  #next = 0;
  #text = '';
  #tokens: DrawnToken[] = [];
  #calls: ToolCall[] = [];
  #reason: string | null = null;
  #began = performance.now();
  #saved = performance.now();
  #frame = 0;
  #first: { n: number; now: number } | null = null;
  #experts: number[] | null = null;
  #isOver = false;

  constructor(
    readonly doc: Doc,
    readonly messageId: string,
    readonly id: string,
    readonly from: number,
    readonly isOwn: boolean,
  ) {
    drawn.set(id, this.#tokens);
    if (drawn.size > KEPT) drawn.delete(drawn.keys().next().value!);
  }

  get #message() {
    return this.doc.data.messages[this.messageId];
  }

  get #run() {
    return this.#message?.runs?.find((run) => run.id === this.id);
  }

  /** Reads all events, through drops of the connection. */
  async toTheEnd() {
    for (let wait = 300; !this.#isOver; wait = Math.min(wait * 2, 5000)) {
      try {
        const response = await call(`/octet/answers/${this.id}?from=${this.#next}`);
        for await (const event of events(response)) {
          this.#next = (event.id ?? this.#next) + 1;
          wait = 300;
          const read = chunk(event);
          if (read) this.#take(read);
        }
        // An end without a reason is a stop that somebody asked for.
        this.#end((run) => (run.finish ??= 'stopped'));
      } catch (error) {
        if (error instanceof ApiError && error.status !== 0) {
          const lost = error.status === 404;
          this.#end((run) => Object.assign(run, { finish: 'error', error: lost ? words.errors.lost : error.message }));
        } else {
          await new Promise((resolve) => setTimeout(resolve, wait));
        }
      }
    }
  }

  #take(read: Chunk) {
    const at = live.get(this.id)!;
    if (read.octet?.reading) live.set(this.id, { ...at, reading: read.octet.reading });
    if (read.octet?.experts) this.#experts = read.octet.experts;
    const choice = read.choices[0];
    if (choice?.delta.content) this.#text += choice.delta.content;
    if (choice?.logprobs) this.#tokens.push(...choice.logprobs.content);
    const run = this.#run;
    if (!run) return;
    if (choice?.delta.tool_calls && this.#message) {
      this.#calls.push(...choice.delta.tool_calls.map(({ id, type, function: called }) => ({ id, type, function: called }) as ToolCall));
      this.#message.tool_calls = [...this.#calls];
    }
    if (read.octet?.timings) run.timings = read.octet.timings;
    if (read.octet?.warnings) run.warnings = read.octet.warnings;
    if (read.usage) run.usage = read.usage;
    if (read.error) Object.assign(run, { finish: 'error', error: read.error.message });
    else if (choice?.finish_reason) this.#reason = choice.finish_reason;
    this.#show();
  }

  /** Puts what has come into the conversation, once a frame at most. */
  #show() {
    if (this.#frame) return;
    const later = document.hidden ? (then: () => void) => setTimeout(then, 200) : requestAnimationFrame;
    this.#frame = later(() => {
      this.#frame = 0;
      this.#put();
    }) as number;
  }

  #put() {
    const message = this.#message;
    const at = live.get(this.id);
    if (!message || !at) return;
    const content = message.content.slice(0, this.from) + this.#text;
    if (content.length > message.content.length) message.content = content;
    const n = this.#tokens.length;
    if (n > 0) {
      const now = performance.now();
      // Whoever comes later gets what there is at once; speed is counted from then on.
      this.#first ??= { n, now };
      const spent = now - this.#first.now;
      const perSecond = spent > 200 ? ((n - this.#first.n) / spent) * 1000 : null;
      live.set(this.id, { reading: null, tokens: n, experts: this.#experts, perSecond, firstMs: this.isOwn ? this.#first.now - this.#began : null });
    }
    if (this.isOwn && performance.now() - this.#saved > SAVE_EVERY_MS) {
      this.#saved = performance.now();
      this.doc.touch();
    }
  }

  /** Of an answer that was stopped the server does not tell tokens and times. */
  #count(run: Run) {
    if (run.usage || this.#tokens.length === 0) return;
    run.usage = { prompt_tokens: 0, completion_tokens: this.#tokens.length };
    const { firstMs = null, perSecond = null } = live.get(this.id) ?? {};
    if (firstMs === null) return;
    const generation_ms = performance.now() - this.#began - firstMs;
    run.timings = { queued_ms: 0, prompt_ms: firstMs, generation_ms, prompt_per_second: null, generated_per_second: perSecond };
  }

  #end(set: (run: Run) => void) {
    this.#isOver = true;
    const run = this.#run;
    const message = this.#message;
    if (!run || !message) return;
    if (this.#text) message.content = message.content.slice(0, this.from) + this.#text;
    this.#count(run);
    if (this.#reason) run.finish = this.#reason;
    else set(run);
    // The tab that asked writes; another one does so only if that tab is gone.
    if (this.isOwn) void this.doc.touch();
    else setTimeout(() => this.doc.touch(), 2000);
  }
}
