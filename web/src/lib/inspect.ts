/**
 * A look inside an answer: each token's probability, its alternatives, and the experts that worked on it. What was told while
 * the answer streamed is used where it is still there; else the model reads the text again, which gives the same numbers,
 * since they never depend on who else is served.
 */
import { call, json, tokenize } from './api';
import { forApi, pathTo, type Conversation, type Message } from './conversation';
import { drawn } from './answers.svelte';
import { readTools } from './settings';
import { chunk, events, type DrawnToken, type RoutingRun } from './stream';

const decoder = () => new TextDecoder();

/** The text of tokens, by their bytes. */
export function textOf(tokens: { bytes: number[] }[]): string {
  return decoder().decode(new Uint8Array(tokens.flatMap(({ bytes }) => bytes)));
}

/** Tokens of a message as they were drawn, all its runs one after the other. Null where the server has them no longer. */
export async function drawnTokens(message: Message): Promise<DrawnToken[] | null> {
  const runs = message.runs ?? [];
  if (runs.length === 0 || runs[0]!.from > 0) return null;
  const parts = await Promise.all(runs.filter(({ id }) => id).map(({ id }) => ofAnswer(id)));
  return parts.includes(null) ? null : parts.flatMap((part) => part!);
}

async function ofAnswer(id: string): Promise<DrawnToken[] | null> {
  const known = drawn.get(id);
  if (known) return known;
  const response = await call(`/octet/answers/${id}`).catch(() => null);
  if (!response) return null;
  const tokens: DrawnToken[] = [];
  for await (const event of events(response)) tokens.push(...(chunk(event)?.choices[0]?.logprobs?.content ?? []));
  drawn.set(id, tokens);
  return tokens;
}

/** A whole sequence, prompt and answer, read again by the model. */
export interface Inspected {
  ids: number[];
  /** Tokens of the prompt; the answer's follow. */
  promptTokens: number;
  pieces: string[];
  /** Natural logarithms; null for the first token. */
  logprobs: (number | null)[];
  /** The likeliest tokens at each place, by their text. */
  top: (Record<string, number> | null)[];
  /** `[layers][tokens][experts of a token]`, of all tokens. Empty for a dense model. */
  experts: number[][][];
  weights: number[][][];
}

/** Ids of the prompt of an answer, and of the answer itself. */
export async function idsOf(conversation: Conversation, message: Message): Promise<{ prompt: number[]; answer: number[] }> {
  const path = pathTo(conversation, message.id);
  const ask = { model: message.runs?.at(-1)?.model ?? conversation.model, tools: readTools(conversation.settings) };
  const prompt = (await tokenize({ ...ask, messages: forApi(conversation, path.slice(0, -1)) })).tokens;
  const tokens = await drawnTokens(message);
  if (tokens) return { prompt, answer: tokens.map(({ id }) => id) };
  // The text cut anew, behind the same prompt.
  const whole = (await tokenize({ ...ask, messages: forApi(conversation, path) })).tokens;
  return { prompt, answer: whole.slice(prompt.length) };
}

/** Lets the model read an answer again, and tells what it saw. */
export async function inspect(conversation: Conversation, message: Message, signal?: AbortSignal): Promise<Inspected> {
  const { prompt, answer } = await idsOf(conversation, message);
  const ids = [...prompt, ...answer];
  const model = message.runs?.at(-1)?.model ?? conversation.model;
  const body = { model, prompt: ids, max_tokens: 0, echo: true, logprobs: 5, routing: true };
  const whole = await json<{
    choices: { logprobs: { tokens: string[]; token_logprobs: (number | null)[]; top_logprobs: (Record<string, number> | null)[] } }[];
    octet?: { routing?: RoutingRun[] };
  }>('/v1/completions', signal ? { body, signal } : { body });
  const { tokens, token_logprobs, top_logprobs } = whole.choices[0]!.logprobs;
  const runs = (whole.octet?.routing ?? []).sort((a, b) => a.first_position - b.first_position);
  const join = (of: (run: RoutingRun) => number[][][]) =>
    runs.length === 0 ? [] : of(runs[0]!).map((_, layer) => runs.flatMap((run) => of(run)[layer]!));
  return {
    ids,
    promptTokens: prompt.length,
    pieces: tokens,
    logprobs: token_logprobs,
    top: top_logprobs,
    experts: join((run) => run.experts),
    weights: join((run) => run.weights),
  };
}

/** An answer's tokens with alternatives, drawn or scored anew. */
export async function scoredTokens(conversation: Conversation, message: Message): Promise<{ tokens: DrawnToken[]; isAnew: boolean }> {
  const kept = await drawnTokens(message);
  if (kept) return { tokens: kept, isAnew: false };
  const { ids, promptTokens, pieces, logprobs, top } = await inspect(conversation, message);
  const encoder = new TextEncoder();
  const candidate = (token: string, logprob: number, id = -1) => ({ id, token, logprob, bytes: [...encoder.encode(token)] });
  const tokens = ids.slice(promptTokens).map((id, i) => {
    const at = promptTokens + i;
    const others = Object.entries(top[at] ?? {}).map(([text, logprob]) => candidate(text, logprob));
    return { ...candidate(pieces[at]!, logprobs[at] ?? 0, id), top_logprobs: others };
  });
  return { tokens, isAnew: true };
}
