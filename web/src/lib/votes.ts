/** Votes of blind comparisons, kept in this browser. */

export interface Vote {
  /** Models that answered. */
  models: string[];
  /** The best one; null for a tie, undefined where none was good. */
  best: string | null | undefined;
  at_ms: number;
}

export interface Standing {
  model: string;
  won: number;
  tied: number;
  asked: number;
}

const PLACE = 'octet.votes';

export function votes(): Vote[] {
  try {
    return JSON.parse(localStorage.getItem(PLACE) ?? '[]') as Vote[];
  } catch {
    return [];
  }
}

export function keepVote(vote: Vote) {
  localStorage.setItem(PLACE, JSON.stringify([...votes(), vote]));
}

export const clearVotes = () => localStorage.removeItem(PLACE);

/** What each model has won, the best share first. */
export function standings(all: Vote[]): Standing[] {
  const by = new Map<string, Standing>();
  for (const { models, best } of all) {
    for (const model of new Set(models)) {
      const one = by.get(model) ?? { model, won: 0, tied: 0, asked: 0 };
      one.asked += 1;
      if (best === model) one.won += 1;
      if (best === null) one.tied += 1;
      by.set(model, one);
    }
  }
  return [...by.values()].sort((a, b) => b.won / b.asked - a.won / a.asked || a.model.localeCompare(b.model));
}
