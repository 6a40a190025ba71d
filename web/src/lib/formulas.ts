/**
 * Formulas in Markdown: `$x$` and `\(x\)` in a line, `$$x$$` and `\[x\]` apart. They are drawn as MathML, which needs no
 * fonts, by KaTeX, which is loaded when the first one is there.
 */
import type { TokenizerAndRendererExtension } from 'marked';
import { escape } from './markdown';

const APART = /^(?:\$\$([\s\S]+?)\$\$|\\\[([\s\S]+?)\\\])[^\S\n]*(?:\n|$)/;
// As pandoc does: no space inside the dollars, no digit after the last, so that prices stay prices.
const INLINE = /^(?:\$\$([^\n]+?)\$\$|\\\(([\s\S]+?)\\\)|\\\[([\s\S]+?)\\\]|\$(?!\s)((?:\\.|[^$\\\n])+?)(?<!\s)\$(?!\d))/;

const place = (text: string, display: boolean) =>
  `<span data-formula="${escape(text)}" data-display="${display}">${escape(text)}</span>`;

export const formula: TokenizerAndRendererExtension = {
  name: 'formula',
  level: 'block',
  start: (text) => text.match(/(?:^|\n)(?:\$\$|\\\[)/)?.index,
  tokenizer(text) {
    const found = APART.exec(text);
    return found ? { type: 'formula', raw: found[0], text: (found[1] ?? found[2])!.trim() } : undefined;
  },
  renderer: ({ text }) => `<p>${place(text as string, true)}</p>`,
};

export const inlineFormula: TokenizerAndRendererExtension = {
  name: 'inlineFormula',
  level: 'inline',
  start: (text) => text.match(/\$|\\[([]/)?.index,
  tokenizer(text) {
    const found = INLINE.exec(text);
    if (!found) return undefined;
    const apart = found[1] ?? found[3];
    return { type: 'inlineFormula', raw: found[0], text: (apart ?? found[2] ?? found[4])!.trim(), display: apart !== undefined };
  },
  renderer: ({ text, display }) => place(text as string, display as boolean),
};

/** Draws the formulas in an element that are not drawn yet. */
export async function draw(element: HTMLElement): Promise<void> {
  const places = element.querySelectorAll<HTMLElement>('[data-formula]:not([data-drawn])');
  if (places.length === 0) return;
  const { default: katex } = await import('katex');
  for (const place of places) {
    place.dataset.drawn = '';
    const { formula = '', display } = place.dataset;
    katex.render(formula, place, { output: 'mathml', displayMode: display === 'true', throwOnError: false, strict: false });
  }
}
