// Nothing is lost: reloads, closed pages, other tabs and browsers, what is typed.
import assert from 'node:assert/strict';
import test from 'node:test';
import { articles, browser, composer, conversation, finished, idOf, isOver, kept, lastAnswer, plant, saved, say, settings, visit } from './browser.mjs';

/** An answer that goes on for a while. */
async function begin(page, tokens) {
  await page.getByRole('button', { name: 'Settings', exact: true }).click();
  await page.getByRole('spinbutton', { name: 'Most tokens' }).fill(String(tokens));
  await page.getByRole('checkbox').check();
  await page.locator('aside').getByRole('button', { name: 'Close' }).click();
  await say(page, 'Tell me a long story about the sea.');
  await page.waitForFunction(() => [...document.querySelectorAll('article .content')].at(-1).innerText.length > 20 && document.querySelectorAll('article').length === 2);
}

test('a reload goes on where the answer is, and Stop still works', async (t) => {
  const page = await visit(t);
  await begin(page, 3000);
  const before = await lastAnswer(page).locator('.content').innerText();
  await page.reload();
  await page.waitForFunction((n) => ([...document.querySelectorAll('article .content')].at(-1)?.innerText.length ?? 0) > n, before.length + 20);
  assert.ok((await lastAnswer(page).locator('.content').innerText()).startsWith(before.slice(0, 20)));
  await page.getByRole('button', { name: 'Stop' }).click();
  await lastAnswer(page).getByText('stopped').waitFor();
  const text = await lastAnswer(page).locator('.content').innerText();
  await page.reload();
  await lastAnswer(page).getByText('stopped').waitFor();
  assert.equal(await lastAnswer(page).locator('.content').innerText(), text);
  assert.equal((await saved(idOf(page), isOver)).messages[kept(idOf(page)).leaf].runs[0].finish, 'stopped');
});

test('an answer goes on when its page goes away, and another browser finds it', async (t) => {
  const context = await browser.newContext();
  t.after(() => context.close());
  const page = await visit(t, '/', { context });
  await begin(page, 60);
  const id = idOf(page);
  await saved(id);
  await page.close();
  const other = await visit(t, `/#/chat/${id}`);
  await finished(other);
  await lastAnswer(other).getByText('60 tokens').waitFor();
  const { messages, leaf } = await saved(id, isOver);
  assert.equal(messages[leaf].runs[0].usage.completion_tokens, 60);
});

test('tabs and browsers agree, and neither loses what the other wrote', async (t) => {
  const id = plant(conversation('Shared', [{ role: 'user', content: 'Hello' }, { role: 'assistant', content: 'Good day.' }]));
  // Who writes second is refused, takes over what is there, and writes again.
  const expected = [/412/];
  const here = await visit(t, `/#/chat/${id}`, { expected });
  const there = await visit(t, `/#/chat/${id}`, { expected });
  const tab = await visit(t, `/#/chat/${id}`, { context: here.context(), expected });
  for (const page of [here, there, tab]) await articles(page).nth(1).waitFor();
  await settings(here, { 'Most tokens': 5 });
  await say(here, 'From here');
  for (const page of [tab, there]) {
    await articles(page).nth(3).waitFor();
    await finished(page);
    assert.match(await articles(page).nth(2).innerText(), /From here/);
  }
  await saved(id, isOver);
  // Both write at the same time: a branch here, a branch there.
  const edit = async (page, text) => {
    await articles(page).nth(1).hover();
    await articles(page).nth(1).getByRole('button', { name: 'Edit' }).click();
    await page.getByRole('textbox', { name: 'Edit message' }).fill(text);
  };
  await edit(here, 'Edited here.');
  await edit(there, 'Edited there.');
  await Promise.all([here, there].map((page) => page.getByRole('button', { name: 'Save as a new branch' }).click()));
  await saved(id, ({ messages }) => ['Edited here.', 'Edited there.', 'Good day.'].every((text) => Object.values(messages).some(({ content }) => content === text)));
  for (const page of [here, there]) await page.getByText('of 3').waitFor();
});

test('what is typed survives reloads and is told apart by conversation', async (t) => {
  const id = plant(conversation('Draft', [{ role: 'user', content: 'Hello' }, { role: 'assistant', content: 'Good day.' }]));
  const page = await visit(t);
  await composer(page).fill('half a thou');
  await page.evaluate((id) => (location.hash = `/chat/${id}`), id);
  await articles(page).nth(1).waitFor();
  await composer(page).fill('and another');
  await page.keyboard.press('Control+Shift+O');
  await page.locator('.welcome').waitFor();
  assert.equal(await composer(page).inputValue(), 'half a thou');
  await page.evaluate((id) => (location.hash = `/chat/${id}`), id);
  await page.reload();
  await articles(page).nth(1).waitFor();
  assert.equal(await composer(page).inputValue(), 'and another');
});

test('a conversation can be renamed, duplicated and deleted, and its file goes with it', async (t) => {
  const id = plant(conversation('Old name', [{ role: 'user', content: 'Hello' }, { role: 'assistant', content: 'Good day.' }]));
  const page = await visit(t, `/#/chat/${id}`);
  const act = async (action) => {
    await page.getByRole('button', { name: 'This conversation' }).click();
    await page.getByRole('group', { name: 'This conversation' }).getByRole('button', { name: action, exact: true }).click();
  };
  await articles(page).nth(1).waitFor();
  await act('Rename');
  await page.getByRole('textbox', { name: 'Title' }).fill('New name');
  await page.keyboard.press('Enter');
  await saved(id, ({ title }) => title === 'New name');
  await page.locator('nav').getByRole('link', { name: 'New name' }).first().waitFor();
  await act('Duplicate');
  await page.waitForFunction((id) => !location.hash.endsWith(id), id);
  const copy = idOf(page);
  assert.deepEqual((await saved(copy)).messages, kept(id).messages);
  await act('Delete');
  await page.getByRole('dialog').getByRole('button', { name: 'Delete' }).click();
  await page.locator('.welcome').waitFor();
  assert.throws(() => kept(copy), { code: 'ENOENT' });
  assert.equal(kept(id).title, 'New name');
});
