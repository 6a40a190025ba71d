/** Where two answers part: the first tokens after which their texts differ. */
import type { DrawnToken } from './stream';

type Told = Pick<DrawnToken, 'bytes'>;

/**
 * Numbers of the tokens in both answers at which the texts part; null if they say the same. Answers that cut the same text
 * into other tokens are followed until their texts differ.
 */
export function parting(a: Told[], b: Told[]): [number, number] | null {
  let [i, j] = [0, 0];
  while (i < a.length || j < b.length) {
    const next = common(a, i, b, j);
    if (!next) return [i, j];
    [i, j] = next;
  }
  return null;
}

/** Where both have written the same again, from tokens `i` and `j` on; null if the texts differ before. */
function common(a: Told[], i: number, b: Told[], j: number): [number, number] | null {
  const [x, y]: [number[], number[]] = [[], []];
  do {
    const behind = x.length <= y.length;
    const next = behind ? a[i++] : b[j++];
    if (!next) return null;
    (behind ? x : y).push(...next.bytes);
    for (let at = 0; at < Math.min(x.length, y.length); at++) if (x[at] !== y[at]) return null;
  } while (x.length !== y.length);
  return [i, j];
}

/** How likely a model found a token that it may not have drawn: exactly, or only that it is below what was told. */
export function likelihood(at: DrawnToken | undefined, other: DrawnToken | undefined): { p: number; isBound: boolean } | null {
  if (!at || !other) return null;
  const key = other.bytes.join();
  const found = [at, ...at.top_logprobs].find(({ bytes }) => bytes.join() === key);
  if (found) return { p: Math.exp(found.logprob), isBound: false };
  const last = at.top_logprobs.at(-1);
  return last ? { p: Math.exp(last.logprob), isBound: true } : null;
}
