/**
 * Markdown while it streams. A text is cut into blocks; of a text that grows, only what follows the last finished block is
 * read again, so that what is above never changes.
 */
import DOMPurify from 'dompurify';
import { Marked, type TokensList } from 'marked';
import { formula, inlineFormula } from './formulas';

// A line break that a model writes is meant, as in a poem.
const marked = new Marked({ gfm: true, breaks: true });
marked.use({
  extensions: [formula, inlineFormula],
  renderer: {
    // Filled in with colours when the highlighter is there.
    code({ text, lang }) {
      const name = (lang ?? '').trim().split(/\s/)[0] ?? '';
      return `<pre data-lang="${escape(name)}"><code>${escape(text)}\n</code></pre>`;
    },
    // No picture is fetched from anywhere: its address is shown instead.
    image({ href, text }) {
      return `<a href="${escape(href)}">${escape(text || href)}</a>`;
    },
    table(token) {
      const row = (cells: typeof token.header, tag: string) =>
        `<tr>${cells.map((cell) => `<${tag}${cell.align ? ` align="${cell.align}"` : ''}>${this.parser.parseInline(cell.tokens)}</${tag}>`).join('')}</tr>`;
      const body = token.rows.map((cells) => row(cells, 'td')).join('');
      // Wide tables scroll by themselves.
      return `<div data-wide><table><thead>${row(token.header, 'th')}</thead><tbody>${body}</tbody></table></div>`;
    },
  },
});

/** The blocks of a text that grows. */
export class Blocks {
  /** Markdown of each block, in order. */
  list: string[] = [];
  #text = '';
  /** Characters in the finished blocks. */
  #done = 0;
  #finished = 0;

  /** Takes the text as it is now; what it said before has to be its beginning, or it is read anew. */
  update(text: string): string[] {
    if (!text.startsWith(this.#text)) [this.#done, this.#finished, this.list] = [0, 0, []];
    this.#text = text;
    const tail = cut(marked.lexer(text.slice(this.#done)));
    this.list = [...this.list.slice(0, this.#finished), ...tail];
    // The last block may still grow, and the one before it may turn out to be its beginning.
    while (this.list.length - this.#finished > 2) this.#done += this.list[this.#finished++]!.length;
    return this.list;
  }
}

/** Blocks with the blank lines that follow them, so that together they are the text. */
function cut(tokens: TokensList): string[] {
  const blocks: string[] = [];
  for (const token of tokens) {
    if (token.type === 'space' && blocks.length > 0) blocks[blocks.length - 1] += token.raw;
    else blocks.push(token.raw);
  }
  return blocks;
}

DOMPurify.addHook('afterSanitizeAttributes', (node) => {
  if (node instanceof HTMLAnchorElement && node.hasAttribute('href')) {
    node.target = '_blank';
    node.rel = 'noopener noreferrer';
  }
});

/** HTML of a block, safe to show whatever a model wrote. */
export function html(block: string): string {
  return DOMPurify.sanitize(marked.parse(block, { async: false }), {
    USE_PROFILES: { html: true },
    ADD_ATTR: ['target', 'data-lang', 'data-formula', 'data-display'],
    FORBID_TAGS: ['style', 'form', 'input', 'button', 'textarea', 'select', 'img', 'video', 'audio', 'source', 'picture'],
    FORBID_ATTR: ['style', 'id', 'name', 'class'],
  });
}

export function escape(text: string): string {
  return text.replace(/[&<>"]/g, (c) => `&${{ '&': 'amp', '<': 'lt', '>': 'gt', '"': 'quot' }[c]};`);
}
