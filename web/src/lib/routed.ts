/** Lets a model read a text, and tells who worked on it. */
import { json, tokenize } from './api';
import type { Choices } from './routing';
import type { RoutingRun } from './stream';

export interface Routed {
  pieces: string[];
  /** `[layers][tokens][experts of a token]`; BOS is left out. */
  experts: Choices[];
  weights: number[][][];
}

/** Reads `text`. Empty lists of layers come from a dense model. */
export async function routeText(model: string, text: string): Promise<Routed> {
  const [plain, whole] = await Promise.all([
    tokenize({ model, content: text, add_special: false, with_pieces: true }),
    tokenize({ model, content: text }),
  ]);
  const lead = whole.count - plain.count;
  const body = { model, prompt: whole.tokens, max_tokens: 0, routing: true, echo: true, logprobs: 0 };
  const read = await json<{ choices: { logprobs: { tokens: string[] } | null }[]; octet?: { routing?: RoutingRun[] } }>('/v1/completions', { body });
  const runs = (read.octet?.routing ?? []).sort((a, b) => a.first_position - b.first_position);
  const join = (of: (run: RoutingRun) => number[][][]) =>
    runs.length === 0 ? [] : of(runs[0]!).map((_, layer) => runs.flatMap((run) => of(run)[layer]!).slice(lead));
  const pieces = read.choices[0]?.logprobs?.tokens.slice(lead) ?? plain.pieces ?? [];
  return { pieces, experts: join((run) => run.experts), weights: join((run) => run.weights) };
}
