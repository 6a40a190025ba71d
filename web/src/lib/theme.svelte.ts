/** Light, dark, or as the system says. */
const PLACE = 'octet.theme';
export type Theme = 'system' | 'light' | 'dark';

class ThemeChoice {
  value = $state<Theme>((localStorage.getItem(PLACE) as Theme | null) ?? 'system');

  constructor() {
    this.#show();
  }

  set(value: Theme) {
    this.value = value;
    localStorage.setItem(PLACE, value);
    this.#show();
  }

  /** On to the next of the three. */
  next() {
    this.set(this.value === 'system' ? 'light' : this.value === 'light' ? 'dark' : 'system');
  }

  #show() {
    if (this.value === 'system') delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = this.value;
  }
}

export const theme = new ThemeChoice();
