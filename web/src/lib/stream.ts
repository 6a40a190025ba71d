/** Server-sent events, and the pieces of a streamed chat completion. */
import type { ToolCall } from './api';

export interface ServerEvent {
  /** Its number, where the server gives one. */
  id: number | null;
  /** The text after `data:`. */
  data: string;
}

/** The events of a response as they come. Ends when the response does; throws what the network throws. */
export async function* events(response: Response): AsyncGenerator<ServerEvent> {
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      // Some servers end their lines as HTTP does.
      const parts = (rest + value).split(/\r?\n\r?\n/);
      rest = parts.pop()!;
      for (const part of parts) {
        const event = parse(part);
        if (event) yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parse(text: string): ServerEvent | null {
  let id: number | null = null;
  const data: string[] = [];
  for (const line of text.split(/\r?\n/)) {
    if (line.startsWith('data:')) data.push(line.slice(5).replace(/^ /, ''));
    else if (line.startsWith('id:')) id = Number(line.slice(3));
  }
  return data.length > 0 ? { id, data: data.join('\n') } : null;
}

/** A token that was drawn or might have been. */
export interface Candidate {
  id: number;
  token: string;
  bytes: number[];
  /** Natural logarithm of its probability, before temperature and filters. */
  logprob: number;
}

export interface DrawnToken extends Candidate {
  top_logprobs: Candidate[];
}

/** Experts and their weights, `[layers][tokens][experts of a token]`, of consecutive tokens, prompt included. */
export interface RoutingRun {
  choice: number;
  first_position: number;
  experts: number[][][];
  weights: number[][][];
}

export interface Timings {
  queued_ms: number;
  prompt_ms: number;
  generation_ms: number;
  prompt_per_second: number | null;
  generated_per_second: number | null;
}

export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  prompt_tokens_details?: { cached_tokens: number };
}

/** What one event of a streamed chat completion says. */
export interface Chunk {
  model?: string;
  choices: {
    index: number;
    delta: { content?: string | null; tool_calls?: (ToolCall & { index: number })[] };
    logprobs?: { content: DrawnToken[] } | null;
    finish_reason: string | null;
  }[];
  usage?: Usage | null;
  octet?: {
    /** Tokens of the prompt that have been read, and all of them. */
    reading?: [number, number];
    /** The experts that weighed most for the last token, over all layers. */
    experts?: number[];
    routing?: RoutingRun[];
    timings?: Timings;
    warnings?: string[];
  };
  error?: { message: string };
}

/** The chunk in an event; null for `[DONE]`. */
export const chunk = (event: ServerEvent): Chunk | null => (event.data === '[DONE]' ? null : (JSON.parse(event.data) as Chunk));
