/** What is typed and not yet sent, by place; kept in this browser until it is sent. */
const PREFIX = 'octet.draft.';

export const draft = (place: string) => localStorage.getItem(PREFIX + place) ?? '';

export function keepDraft(place: string, text: string) {
  if (text) localStorage.setItem(PREFIX + place, text);
  else localStorage.removeItem(PREFIX + place);
}
