// Compare, against a dense model, a coarser copy and a mixture of it.
import assert from 'node:assert/strict';
import test from 'node:test';
import { visit } from './browser.mjs';

const base = process.env.OCTET_ROOMS_URL;
const QUESTION = 'Name three colours.';

/** JSON of the server with the mixture. */
async function ask(path, body) {
  const options = body && { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) };
  const response = await fetch(base + path, options);
  assert.ok(response.ok, `${path}: ${response.status}`);
  return response.json();
}

const enter = (t, address, options = {}) => visit(t, address, { base, ...options });
const shareOf = (text) => Number(text.replace(/[^\d.]/g, ''));

async function compared(page, prompt = QUESTION) {
  await page.getByLabel('Prompt', { exact: true }).fill(prompt);
  await page.getByRole('button', { name: 'Ask all' }).click();
  await page.waitForFunction(() => document.querySelectorAll('.columns .answer[aria-busy="false"]').length >= 2 && document.querySelector('.columns .stats'));
}

test('two models answer one prompt, and the place where they part is marked with both probabilities', async (t) => {
  const page = await enter(t, '/#/compare?models=dense,coarse&max_tokens=24&difference=1');
  await compared(page);
  const table = page.locator('.differences table');
  await table.waitFor();
  const answers = await page.locator('.columns section').all();
  assert.equal(answers.length, 2);
  for (const answer of answers) assert.match(await answer.locator('.stats').innerText(), /24 tokens · [\d.,]+ tok\/s · .* to the first token · .* in all/);
  // The server is asked the same by other means.
  const body = { messages: [{ role: 'user', content: QUESTION }], temperature: 0, max_tokens: 24, logprobs: true, top_logprobs: 20 };
  const both = await Promise.all(['dense', 'coarse'].map((model) => ask('/v1/chat/completions', { ...body, model })));
  const [a, b] = both.map((answer) => answer.choices[0].logprobs.content);
  const at = a.findIndex((token, i) => token.token !== b[i]?.token);
  assert.ok(at >= 0, 'a coarser model says something else');
  assert.match(await table.locator('caption').innerText(), new RegExp(`at token ${at + 1}\\.`));
  const shown = await table.locator('tbody td').allInnerTexts();
  const near = (text, logprob) => assert.ok(Math.abs(shareOf(text) - 100 * Math.exp(logprob)) < 0.06, `${text} is not ${100 * Math.exp(logprob)}`);
  near(shown[0], a[at].logprob);
  near(shown[3], b[at].logprob);
  const other = a[at].top_logprobs.find(({ token }) => token === b[at].token);
  if (other) near(shown[1], other.logprob);
  else assert.match(shown[1], /^below/);
  assert.equal((await page.locator('.columns mark').first().innerText()).trim(), a[at].token.trim());
  assert.match(page.url(), /models=dense%2Ccoarse/);
});

test('a blind comparison hides names and speeds until the vote, which is counted in this browser', async (t) => {
  const page = await enter(t, '/#/compare?models=dense,mixture&max_tokens=6&blind=1');
  await compared(page);
  await page.getByRole('heading', { name: 'Answer A' }).waitFor();
  assert.equal(await page.locator('.columns select').count(), 0);
  assert.equal((await page.locator('.columns .stats').allInnerTexts()).join('').trim(), '');
  await page.getByRole('button', { name: 'Best' }).first().waitFor();
  await page.getByRole('button', { name: 'A tie' }).click();
  await page.getByText('Your vote is counted.').waitFor();
  assert.equal(await page.locator('.columns select').count() > 0, true);
  assert.match((await page.locator('.columns .stats').allInnerTexts()).join(''), /tok\/s/);
  await page.reload();
  const rows = page.locator('.results tbody tr');
  await rows.first().waitFor();
  assert.deepEqual(await rows.allInnerTexts().then((all) => all.map((row) => row.split(/\s+/).slice(0, 4).join(' ')).sort()), ['dense 0 1 1', 'mixture 0 1 1']);
});

test('columns come and go, an answer stops, and an error stands in its column', async (t) => {
  const page = await enter(t, '/#/compare?models=dense,mixture&max_tokens=400', { expected: [/status of 40/] });
  await page.getByRole('button', { name: 'Add a column' }).click();
  await page.getByRole('button', { name: 'Add a column' }).click();
  assert.equal(await page.locator('.columns section').count(), 4);
  assert.equal(await page.getByRole('button', { name: 'Add a column' }).count(), 0);
  await page.getByRole('button', { name: 'Remove column 4' }).click();
  await page.getByRole('button', { name: 'Remove column 3' }).click();
  await page.getByLabel('Prompt', { exact: true }).fill('Write a long story about the sea.');
  await page.getByRole('button', { name: 'Ask all' }).click();
  await page.waitForFunction(() => document.querySelectorAll('.columns .answer .text').length === 2);
  await page.keyboard.press('Escape');
  await page.getByRole('button', { name: 'Ask all' }).waitFor();
  const long = 'word '.repeat(3000);
  await page.getByLabel('Prompt', { exact: true }).fill(long);
  await page.getByRole('button', { name: 'Ask all' }).click();
  await page.getByRole('alert').first().waitFor();
  assert.match(await page.getByRole('alert').first().innerText(), /2048/);
  assert.equal(await page.getByLabel('Prompt', { exact: true }).inputValue(), long);
});
