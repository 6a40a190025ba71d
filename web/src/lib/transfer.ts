/** Conversations out of the page and into it: JSON holds everything, Markdown what is shown. */
import { add, newConversation, pathTo, titleOf, type Conversation, type Message } from './conversation';
import { server } from './server.svelte';
import { words } from '../strings';

export const exportJson = (conversation: Conversation) => JSON.stringify(conversation, null, 1);
export const exportAllJson = (all: Conversation[]) => JSON.stringify({ kind: 'octet-conversations', conversations: all }, null, 1);

const BETWEEN = '\n<!-- octet: next conversation -->\n\n';
const names = { system: words.chat.system, user: words.chat.you, assistant: words.chat.model, tool: words.chat.tool };

/** The branch that is shown. Comments mark where each message begins, so that it can be read back whatever is in it. */
export function exportMarkdown(conversation: Conversation): string {
  const parts = [`# ${conversation.title || words.rail.untitled}\n`];
  const message = (role: keyof typeof names, text: string) => parts.push(`<!-- octet: ${role} -->\n## ${names[role]}\n\n${text}\n`);
  if (conversation.system) message('system', conversation.system);
  for (const one of pathTo(conversation)) {
    const calls = (one.tool_calls ?? []).map(({ function: of }) => `\`\`\`json\n${JSON.stringify({ call: of.name, arguments: of.arguments })}\n\`\`\``);
    message(one.role, [one.content, ...calls].filter(Boolean).join('\n\n'));
  }
  return parts.join('\n');
}

export const exportAllMarkdown = (all: Conversation[]) => all.map(exportMarkdown).join(BETWEEN);

/** Conversations in a file: ours in JSON or Markdown, one or all, or JSON with a list of messages as the APIs take them. */
export function readConversations(text: string, name: string): Conversation[] {
  if (/^\s*[[{]/.test(text)) return fromJson(JSON.parse(text), name);
  const found = text.split(BETWEEN.trim()).map((part) => fromMarkdown(part, name));
  if (found.some((one) => one.leaf === null)) throw new Error('no messages');
  return found;
}

interface Foreign {
  kind?: string;
  title?: string;
  conversations?: unknown[];
  messages?: unknown;
  role?: string;
}

function fromJson(value: unknown, name: string): Conversation[] {
  const given = value as Foreign;
  if (Array.isArray(given)) {
    const isOne = given.every((one) => typeof (one as Foreign).role === 'string');
    return isOne ? [fromMessages(given, name)] : given.flatMap((one) => fromJson(one, name));
  }
  if (Array.isArray(given.conversations)) return given.conversations.flatMap((one) => fromJson(one, name));
  if (given.kind === 'octet-conversation') return [ours(given as Conversation)];
  if (Array.isArray(given.messages)) return [fromMessages(given.messages, given.title ?? name)];
  throw new Error('no conversation');
}

/** Checks what a file says before anything is built on it. */
function ours(given: Conversation): Conversation {
  const fresh = newConversation(given.model || server.model);
  const messages: Record<string, Message> = {};
  for (const [id, message] of Object.entries(given.messages ?? {})) {
    if (typeof message.content !== 'string' || !['user', 'assistant', 'tool'].includes(message.role)) throw new Error('no message');
    const runs = message.runs?.map((run) => ({ ...run, finish: run.finish ?? 'stopped' }));
    messages[id] = { ...message, id, ...(runs ? { runs } : {}) };
  }
  return { ...fresh, ...given, messages, leaf: given.leaf !== null && messages[given.leaf] ? given.leaf : null };
}

function fromMessages(list: unknown[], title: string): Conversation {
  const conversation = newConversation(server.model);
  for (const one of list as { role: string; content: unknown; tool_calls?: Message['tool_calls']; tool_call_id?: string }[]) {
    const content = textOf(one.content);
    if (one.role === 'system' || one.role === 'developer') conversation.system = [conversation.system, content].filter(Boolean).join('\n\n');
    else if (one.role === 'user' || one.role === 'assistant' || one.role === 'tool') {
      const calls = one.tool_calls ? { tool_calls: one.tool_calls } : {};
      add(conversation, { parent: conversation.leaf, role: one.role, content, ...calls, ...(one.tool_call_id ? { tool_call_id: one.tool_call_id } : {}) });
    } else throw new Error('no role');
  }
  if (conversation.leaf === null) throw new Error('no messages');
  conversation.title ||= titleOf(title);
  return conversation;
}

function textOf(content: unknown): string {
  if (typeof content === 'string') return content;
  if (Array.isArray(content)) return content.map((part: { text?: string }) => part.text ?? '').join('\n\n');
  return '';
}

function fromMarkdown(text: string, name: string): Conversation {
  const marks = /^<!-- octet: (system|user|assistant|tool) -->\n## .*\n/gm;
  const headings = /^## (System prompt|System|You|User|Human|Model|Assistant|Result)[^\S\n]*\n/gim;
  const parts = split(text, marks);
  const list = (parts.length > 0 ? parts : split(text, headings)).map(([role, content]) => ({ role: roleOf(role), content }));
  const title = /^# (.+)$/m.exec(text)?.[1];
  const conversation = fromMessages(list, title ?? name);
  if (title) conversation.title = title;
  return conversation;
}

function split(text: string, mark: RegExp): [string, string][] {
  const found = [...text.matchAll(mark)];
  return found.map((match, i) => [match[1]!, text.slice(match.index + match[0].length, found[i + 1]?.index).trim()]);
}

function roleOf(word: string): string {
  const role = word.toLowerCase();
  if (role.startsWith('system')) return 'system';
  if (['you', 'user', 'human'].includes(role)) return 'user';
  return role === 'tool' || role === 'result' ? 'tool' : 'assistant';
}

/** Hands a file to the reader. */
export function download(name: string, text: string) {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], { type: name.endsWith('.json') ? 'application/json' : 'text/markdown' }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** A file's name for a conversation. */
export function fileName(conversation: Conversation, end: string): string {
  const plain = conversation.title.normalize('NFKD').replace(/[^\p{L}\p{N}]+/gu, '-').replace(/^-+|-+$/g, '');
  return `${plain.slice(0, 50) || 'conversation'}.${end}`;
}
