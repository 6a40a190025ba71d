/** One column of a comparison: a model's answer as it comes, and what it took. */
import { ApiError, call, peerPath, type ApiMessage } from './api';
import { server } from './server.svelte';
import { chunk, events, type DrawnToken, type Timings } from './stream';

/** Alternatives of each token: the most that the API gives. */
const ALTERNATIVES = 20;

export interface Question {
  messages: ApiMessage[];
  temperature: number;
  seed: number;
  max_tokens: number;
}

export class Contender {
  /** As the API knows it; `PEER/MODEL` for a model of another server. */
  model = $state('');
  /** Experts for each token; the model's own number if null. */
  experts = $state<number | null>(null);
  text = $state('');
  /** None where a peer tells no probabilities. */
  tokens = $state.raw<DrawnToken[]>([]);
  /** How many tokens; pieces of text where nobody counts them. */
  count = $state(0);
  error = $state('');
  isRunning = $state(false);
  isOver = $state(false);
  firstMs = $state<number | null>(null);
  totalMs = $state<number | null>(null);
  perSecond = $state<number | null>(null);
  finish = $state('');
  /** Who of equals comes first where names are hidden. */
  order = $state(0);
  #cancel: AbortController | null = null;

  constructor(model: string) {
    this.model = model;
  }

  stop() {
    this.#cancel?.abort();
  }

  /** Forgets its answer. */
  clear() {
    this.stop();
    [this.text, this.tokens, this.count, this.error, this.isOver, this.finish] = ['', [], 0, '', false, ''];
    [this.firstMs, this.totalMs, this.perSecond] = [null, null, null];
  }

  async ask(question: Question) {
    this.clear();
    this.isRunning = true;
    const cancel = (this.#cancel = new AbortController());
    const began = performance.now();
    const tokens: DrawnToken[] = [];
    let [text, pieces, frame] = ['', 0, 0];
    const show = () => {
      frame = 0;
      [this.text, this.tokens] = [text, [...tokens]];
      this.count = tokens.length || pieces;
      this.totalMs = performance.now() - began;
      if (this.firstMs !== null && this.count > 1) this.perSecond = ((this.count - 1) / (this.totalMs - this.firstMs)) * 1000;
    };
    try {
      const response = await this.#send(question, cancel.signal);
      let timings: Timings | undefined;
      for await (const event of events(response)) {
        const read = chunk(event);
        const choice = read?.choices?.[0];
        if (read?.error) throw new ApiError(read.error.message, 200);
        if (choice?.delta?.content) {
          text += choice.delta.content;
          pieces += 1;
        }
        tokens.push(...(choice?.logprobs?.content ?? []).map(whole));
        if (choice?.finish_reason) this.finish = choice.finish_reason;
        if (read?.octet?.timings) timings = read.octet.timings;
        if (read?.usage?.completion_tokens) pieces = read.usage.completion_tokens;
        if (pieces > 0 || tokens.length > 0) this.firstMs ??= performance.now() - began;
        frame ||= requestAnimationFrame(show);
      }
      show();
      if (timings?.generated_per_second) this.perSecond = timings.generated_per_second;
    } catch (error) {
      show();
      if ((error as Error).name !== 'AbortError') this.error = (error as Error).message;
    }
    cancelAnimationFrame(frame);
    this.isRunning = false;
    this.isOver = true;
  }

  /** The request, to our server or through it to a peer. What other servers may not know is left out for those. */
  async #send(question: Question, signal: AbortSignal): Promise<Response> {
    const stream = { stream: true, stream_options: { include_usage: true } };
    const probabilities = { logprobs: true, top_logprobs: ALTERNATIVES };
    const cut = this.model.indexOf('/');
    if (cut < 0 || server.named(this.model)) {
      const own = { timings: true, ...(this.experts ? { experts_per_token: this.experts } : {}) };
      return call('/v1/chat/completions', { body: { model: this.model, ...question, ...stream, ...probabilities, ...own }, signal });
    }
    const path = peerPath(this.model.slice(0, cut));
    const body = { model: this.model.slice(cut + 1), ...question, ...stream };
    try {
      return await call(path, { body: { ...body, ...probabilities }, signal });
    } catch (error) {
      // Some tell fewer probabilities, or none: the answer is worth more.
      if (error instanceof ApiError && error.status === 400) return call(path, { body, signal });
      throw error;
    }
  }
}

/** A token with all that ours have: others may leave out ids, bytes and alternatives. */
function whole(token: Partial<DrawnToken> & { token: string; logprob: number }): DrawnToken {
  const candidate = (one: typeof token) => ({ id: one.id ?? -1, token: one.token, logprob: one.logprob, bytes: one.bytes ?? [...new TextEncoder().encode(one.token)] });
  return { ...candidate(token), top_logprobs: (token.top_logprobs ?? []).map(candidate) };
}
