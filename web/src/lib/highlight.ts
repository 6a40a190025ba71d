/** Colours of code. The highlighter and each language are loaded when the first code of theirs is there. */
import type { HLJSApi, LanguageFn } from 'highlight.js';

type Load = () => Promise<{ default: LanguageFn }>;
const languages: Record<string, Load> = {
  bash: () => import('highlight.js/lib/languages/bash'),
  c: () => import('highlight.js/lib/languages/c'),
  cpp: () => import('highlight.js/lib/languages/cpp'),
  csharp: () => import('highlight.js/lib/languages/csharp'),
  css: () => import('highlight.js/lib/languages/css'),
  diff: () => import('highlight.js/lib/languages/diff'),
  go: () => import('highlight.js/lib/languages/go'),
  ini: () => import('highlight.js/lib/languages/ini'),
  java: () => import('highlight.js/lib/languages/java'),
  javascript: () => import('highlight.js/lib/languages/javascript'),
  json: () => import('highlight.js/lib/languages/json'),
  markdown: () => import('highlight.js/lib/languages/markdown'),
  python: () => import('highlight.js/lib/languages/python'),
  rust: () => import('highlight.js/lib/languages/rust'),
  sql: () => import('highlight.js/lib/languages/sql'),
  typescript: () => import('highlight.js/lib/languages/typescript'),
  xml: () => import('highlight.js/lib/languages/xml'),
  yaml: () => import('highlight.js/lib/languages/yaml'),
};
const aliases: Record<string, string> = {
  sh: 'bash', shell: 'bash', zsh: 'bash', console: 'bash', h: 'c', 'c++': 'cpp', cc: 'cpp', hpp: 'cpp', cs: 'csharp',
  'c#': 'csharp', golang: 'go', toml: 'ini', js: 'javascript', jsx: 'javascript', mjs: 'javascript', md: 'markdown',
  py: 'python', python3: 'python', rs: 'rust', ts: 'typescript', tsx: 'typescript', html: 'xml', svg: 'xml', yml: 'yaml',
  jsonc: 'json', patch: 'diff',
};

let highlighter: Promise<HLJSApi> | undefined;
const loaded = new Map<string, Promise<void>>();

/** Colours the code in an element, as far as its languages are known. */
export async function highlight(element: HTMLElement): Promise<void> {
  for (const code of element.querySelectorAll<HTMLElement>('pre[data-lang] > code:not([data-coloured])')) {
    const given = code.parentElement!.dataset.lang!.toLowerCase();
    const name = aliases[given] ?? given;
    const load = languages[name];
    if (!load) continue;
    highlighter ??= import('highlight.js/lib/core').then((module) => module.default);
    const hljs = await highlighter;
    if (!loaded.has(name)) loaded.set(name, load().then((module) => hljs.registerLanguage(name, module.default)));
    await loaded.get(name);
    code.dataset.coloured = '';
    // The highlighter escapes what it is given.
    code.innerHTML = hljs.highlight(code.textContent ?? '', { language: name, ignoreIllegals: true }).value;
  }
}
