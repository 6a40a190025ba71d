/** The key that this browser shows to the server. */
const PLACE = 'octet.key';

class Key {
  value = $state(localStorage.getItem(PLACE) ?? '');
  /** Whether the reader is being asked, and whether what they gave before was wrong. */
  asking = $state<{ wasWrong: boolean } | null>(null);
  #answered: ((value: string) => void) | null = null;
  #pending: Promise<string> | null = null;

  ask(wasWrong: boolean): Promise<string> {
    this.#pending ??= new Promise((resolve) => {
      this.asking = { wasWrong };
      this.#answered = resolve;
    });
    return this.#pending;
  }

  answer(value: string) {
    this.value = value.trim();
    localStorage.setItem(PLACE, this.value);
    this.asking = null;
    this.#pending = null;
    this.#answered?.(this.value);
  }

  forget() {
    this.value = '';
    localStorage.removeItem(PLACE);
  }
}

export const key = new Key();

/** Resolves once the reader has given a key. Calls at the same time share one question. */
export const askForKey = (wasWrong: boolean) => key.ask(wasWrong);
