/** One column of a comparison: a model's answer as it comes, and what it took. */
import { ApiError, call, type ApiMessage } from './api';
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
  /** As the API knows it. */
  model = $state('');
  /** Experts for each token; the model's own number if null. */
  experts = $state<number | null>(null);
  text = $state('');
  tokens = $state.raw<DrawnToken[]>([]);
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
    [this.text, this.tokens, this.error, this.isOver, this.finish] = ['', [], '', false, ''];
    [this.firstMs, this.totalMs, this.perSecond] = [null, null, null];
  }

  async ask(question: Question) {
    this.clear();
    this.isRunning = true;
    const cancel = (this.#cancel = new AbortController());
    const began = performance.now();
    const tokens: DrawnToken[] = [];
    let text = '';
    let frame = 0;
    const show = () => {
      frame = 0;
      [this.text, this.tokens] = [text, [...tokens]];
      this.totalMs = performance.now() - began;
      if (this.firstMs !== null && tokens.length > 1) this.perSecond = ((tokens.length - 1) / (this.totalMs - this.firstMs)) * 1000;
    };
    try {
      const asked = { logprobs: true, top_logprobs: ALTERNATIVES, timings: true, stream: true, stream_options: { include_usage: true } };
      const body = { model: this.model, ...question, ...(this.experts ? { experts_per_token: this.experts } : {}), ...asked };
      const response = await call('/v1/chat/completions', { body, signal: cancel.signal });
      let timings: Timings | undefined;
      for await (const event of events(response)) {
        const read = chunk(event);
        const choice = read?.choices[0];
        if (read?.error) throw new ApiError(read.error.message, 200);
        if (choice?.delta.content) text += choice.delta.content;
        if (choice?.logprobs) tokens.push(...choice.logprobs.content);
        if (choice?.finish_reason) this.finish = choice.finish_reason;
        if (read?.octet?.timings) timings = read.octet.timings;
        if (tokens.length > 0) this.firstMs ??= performance.now() - began;
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
}
