// What all tests of the page share: one browser, pages that may speak with our server only, and files put where the server
// keeps its own.
import assert from 'node:assert/strict';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after } from 'node:test';
import { chromium } from 'playwright-core';

export const url = process.env.OCTET_URL;
export const data = process.env.OCTET_DATA;
export const root = process.env.OCTET_ROOT;
/** For what a model does: machines may be slow, and busy. */
export const PATIENCE_MS = 120_000;

export const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
});
after(() => browser.close());

/** A page of a fresh profile. Errors in it, and requests to anybody else, fail the test when `close` is called. */
export async function visit(t, address = '/', { base = url, context, expected = [], ...options } = {}) {
  const own = context ?? (await browser.newContext({ viewport: { width: 1280, height: 800 }, permissions: ['clipboard-read', 'clipboard-write'], ...options }));
  own.setDefaultTimeout(PATIENCE_MS);
  const page = await own.newPage();
  const faults = [];
  page.on('pageerror', (error) => faults.push(error.message));
  page.on('console', (message) => message.type() === 'error' && faults.push(message.text()));
  page.on('request', (request) => {
    const to = request.url();
    if (!to.startsWith(base) && !/^(data|blob):/.test(to)) faults.push(`a request to ${to}`);
  });
  t.after(async () => {
    await (context ? page.close() : own.close());
    const unexpected = faults.filter((fault) => !expected.some((pattern) => pattern.test(fault)));
    assert.deepEqual(unexpected, [], 'the page reported errors');
  });
  await page.goto(base + address.replace(/^\//, '/'));
  return page;
}

export const composer = (page) => page.locator('#composer');
export const articles = (page) => page.locator('article');
export const lastAnswer = (page) => page.locator('article:not(.mine)').last();

/** Sets the conversation's settings, by the fields of the drawer. */
export async function settings(page, values) {
  await page.getByRole('button', { name: 'Settings', exact: true }).click();
  for (const [name, value] of Object.entries(values)) {
    const field = page.getByRole('spinbutton', { name, exact: true });
    await field.fill(String(value));
    await field.press('Tab');
  }
  await page.locator('aside').getByRole('button', { name: 'Close' }).click();
}

export async function say(page, text) {
  await composer(page).fill(text);
  await composer(page).press('Enter');
}

/** Waits until nothing is written any more, and the last answer is drawn: what has just come into view has no text for a frame. */
export async function finished(page) {
  await page.locator('article').last().waitFor();
  await page.waitForFunction(() => {
    const last = [...document.querySelectorAll('article')].at(-1);
    const isOver = last && !last.classList.contains('mine') && last.getAttribute('aria-busy') !== 'true';
    return isOver && last.querySelector('.content').innerText.trim() !== '';
  });
}

/** JSON of the server. */
export async function ask(path, body) {
  const response = await fetch(url + path, body && { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) });
  assert.ok(response.ok, `${path}: ${response.status}`);
  return response.json();
}

let n = 0;
export const newId = () => `test-${process.pid}-${n++}`;

/** A conversation as the page keeps it, with these messages on one line. */
export function conversation(title, messages) {
  const all = {};
  let leaf = null;
  messages.forEach((message, i) => {
    const id = `m${i}`;
    all[id] = { id, parent: leaf, created_ms: 1_700_000_000_000 + i, ...message };
    leaf = id;
  });
  return { kind: 'octet-conversation', title, named: true, model: 'small', created_ms: 1_700_000_000_000, system: '', settings: {}, messages: all, leaf };
}

/** Puts a file where the server keeps this conversation. */
export function plant(value, id = newId()) {
  mkdirSync(join(data, 'conversations/local'), { recursive: true });
  writeFileSync(join(data, 'conversations/local', `${id}.json`), JSON.stringify(value));
  return id;
}

/** A finished answer of which the page does not know yet; the server sends its events as it sends those of any answer. */
export function plantAnswer(pieces) {
  const id = `answer_${newId()}`;
  const event = (value) => `data: ${JSON.stringify(value)}\n\n`;
  const piece = (content) =>
    event({
      choices: [{ index: 0, delta: { content }, finish_reason: null, logprobs: { content: [{ id: 1, token: content, bytes: [...Buffer.from(content)], logprob: -0.5, top_logprobs: [] }] } }],
    });
  const end = event({ choices: [{ index: 0, delta: {}, finish_reason: 'stop' }] });
  const usage = event({ choices: [], usage: { prompt_tokens: 9, completion_tokens: pieces.length } });
  mkdirSync(join(data, 'answers/local'), { recursive: true });
  writeFileSync(join(data, 'answers/local', `${id}.json`), `${pieces.map(piece).join('')}${end}${usage}data: [DONE]\n\n`);
  return id;
}

export const kept = (id) => JSON.parse(readFileSync(join(data, 'conversations/local', `${id}.json`), 'utf8'));
/** What the server keeps of a conversation, once it is as it should be. */
export async function saved(id, check = () => true) {
  for (const end = Date.now() + PATIENCE_MS; ; await new Promise((resolve) => setTimeout(resolve, 100))) {
    try {
      const conversation = kept(id);
      if (check(conversation)) return conversation;
    } catch (error) {
      if (error.code !== 'ENOENT') throw error;
    }
    if (Date.now() > end) throw new Error(`${id} is not kept as it should be`);
  }
}
const answersOf = (conversation) => Object.values(conversation.messages).filter(({ role }) => role === 'assistant');
/** Whether every answer is over. */
export const isOver = (conversation) => answersOf(conversation).length > 0 && answersOf(conversation).every(({ runs = [] }) => runs.every(({ finish }) => finish !== null));
/** The first words of an answer, as the API gives them. */
export async function greedy(messages, max_tokens) {
  const whole = await ask('/v1/chat/completions', { model: 'small', messages: messages.map(([role, content]) => ({ role, content })), temperature: 0, max_tokens });
  return whole.choices[0].message.content.trim();
}

export const idOf = (page) => page.url().split('#/chat/')[1];

/** How much slower than a machine of 2024 this one is, at least 1, by a clock of ms: limits on times are multiplied by it. */
function slownessBy(clock) {
  const start = clock();
  let x = 0;
  for (let i = 0; i < 3e7; i++) x = (x * 31 + i) | 0;
  assert.notEqual(x, 1);
  return Math.max(1, (clock() - start) / 40);
}
/** As it is now, with all others that work on it. */
export const slowness = () => slownessBy(() => performance.now());
/** Its processor alone. */
export const cpuSlowness = () => slownessBy(() => process.cpuUsage().user / 1000);
