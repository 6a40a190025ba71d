/** What the Mixtral paper counts of routing: load, and how often neighbouring tokens have the same expert. */

/** Choices of a layer, `[tokens][experts of a token]`, best first. */
export type Choices = number[][];

export interface Repeats {
  /** The first choice of both is the same. */
  first: number;
  /** An expert is among the choices of both. */
  any: number;
}

/** How many choices fell on each expert. `wanted` says which tokens count. */
export function load(choices: Choices, experts: number, wanted: (token: number) => boolean = () => true): number[] {
  const counts = new Array<number>(experts).fill(0);
  choices.forEach((chosen, token) => wanted(token) && chosen.forEach((expert) => (counts[expert] = (counts[expert] ?? 0) + 1)));
  return counts;
}

/** Counts as shares of their sum. */
export function shares(counts: number[]): number[] {
  const total = counts.reduce((sum, count) => sum + count, 0);
  return counts.map((count) => (total > 0 ? count / total : 0));
}

/** How often consecutive tokens of a layer share an expert; null where there are no two. */
export function repeats(choices: Choices): Repeats | null {
  if (choices.length < 2) return null;
  let first = 0;
  let any = 0;
  for (let token = 1; token < choices.length; token++) {
    const [before, now] = [choices[token - 1]!, choices[token]!];
    if (before[0] === now[0]) first += 1;
    if (now.some((expert) => before.includes(expert))) any += 1;
  }
  return { first: first / (choices.length - 1), any: any / (choices.length - 1) };
}

/** What chance would give: `1 / E`, and `1 - C(E - k, k) / C(E, k)`. */
export function chance(experts: number, perToken: number): Repeats {
  let none = 1;
  for (let i = 0; i < perToken; i++) none *= Math.max(0, experts - perToken - i) / (experts - i);
  return { first: 1 / experts, any: 1 - none };
}

/** The colour of an expert. Beyond eight the hues come again. */
export const hue = (expert: number) => `var(--expert-${expert % 8})`;
