// What one does in a conversation.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import test from 'node:test';
import { articles, ask, composer, conversation, finished, greedy, idOf, isOver, kept, lastAnswer, plant, plantAnswer, saved, say, settings, visit } from './browser.mjs';

const MARKDOWN = `# A title

Some **bold** words, \`code\`, and $E = mc^2$ in a line; it costs $5 or $6.

| a | b |
|---|--:|
| 1 | 2 |

\`\`\`python
def add(a, b):
    return a + b  # the sum
\`\`\`

$$\\frac{1}{2}$$

- one
- two

The end.`;

test('an answer streams as Markdown and nothing above its last block is touched', async (t) => {
  const answer = plantAnswer(MARKDOWN.match(/[\s\S]{1,4}/g));
  const id = plant(conversation('Markdown', [
    { role: 'user', content: 'Show everything' },
    { role: 'assistant', content: '', runs: [{ id: answer, model: 'small', from: 0, finish: null }] },
  ]));
  const page = await visit(t, '/');
  // The first blocks are marked as soon as they are there; they have to be the same elements at the end.
  await page.evaluate(() => {
    window.marked = [];
    new MutationObserver(() => {
      const blocks = [...document.querySelectorAll('article:not(.mine) .block')];
      blocks.slice(0, -2).forEach((block, i) => (window.marked[i] ??= { block, child: block.firstChild }));
    }).observe(document.body, { subtree: true, childList: true });
  });
  await page.evaluate((id) => (location.hash = `/chat/${id}`), id);
  await finished(page);
  const message = lastAnswer(page);
  await message.locator('.hljs-keyword', { hasText: 'def' }).waitFor();
  await message.locator('math').nth(1).waitFor();
  assert.equal(await message.locator('h1').innerText(), 'A title');
  assert.equal(await message.locator('td').nth(1).getAttribute('align'), 'right');
  assert.equal(await message.locator('mfrac').count(), 1);
  assert.match(await message.innerText(), /it costs \$5 or \$6/);
  const untouched = await page.evaluate(() => window.marked.filter(({ block, child }) => block.isConnected && block.firstChild === child).length);
  assert.ok(untouched >= 3 && untouched === (await page.evaluate(() => window.marked.length)), `${untouched} blocks stayed`);
  // What came is written down.
  assert.equal((await saved(id, isOver)).messages.m1.content, MARKDOWN);
});

test('ask, see tokens and times, ask again, edit and branch, continue, stop', async (t) => {
  const page = await visit(t);
  await page.getByRole('heading', { name: 'small' }).waitFor();
  assert.equal(await page.locator('.welcome li').count(), 4);
  await settings(page, { 'Most tokens': 12, Temperature: 0 });
  await say(page, 'What is the capital of France?');
  await finished(page);
  assert.equal(await page.title(), 'What is the capital of France? · Octet');
  const first = await lastAnswer(page).locator('.content').innerText();
  assert.equal(first, await greedy([['user', 'What is the capital of France?']], 12));
  assert.match(await lastAnswer(page).innerText(), /\d+ tokens\s*· [\d.,]+ tok\/s\s*· [\d.,]+ m?s to the first token/);

  await lastAnswer(page).getByRole('button', { name: 'Again' }).click();
  await page.getByText('2 of 2').waitFor();
  await finished(page);
  assert.equal(await lastAnswer(page).locator('.content').innerText(), first, 'greedy answers agree');
  await page.getByRole('button', { name: 'Previous branch' }).click();
  await page.getByText('1 of 2').waitFor();

  const before = (await lastAnswer(page).locator('.content').innerText()).length;
  if (await lastAnswer(page).getByText('limit on tokens').count()) {
    await lastAnswer(page).getByRole('button', { name: 'Continue' }).click();
    await page.waitForFunction((n) => [...document.querySelectorAll('article .content')].at(-1).innerText.length > n, before);
    await finished(page);
    assert.ok((await lastAnswer(page).locator('.content').innerText()).startsWith(first.slice(0, 20)));
  }

  // ↑ in an empty composer edits the last message; Enter sends it as another branch.
  await composer(page).press('ArrowUp');
  await page.getByRole('textbox', { name: 'Edit message' }).fill('What is the capital of Italy?');
  await page.keyboard.press('Enter');
  await finished(page);
  assert.match(await articles(page).first().innerText(), /Italy/);
  assert.equal(await lastAnswer(page).locator('.content').innerText(), await greedy([['user', 'What is the capital of Italy?']], 12));
  const all = Object.values((await saved(idOf(page), isOver)).messages);
  assert.equal(all.filter(({ role }) => role === 'user').length, 2, 'the first question is kept');

  await page.getByRole('button', { name: 'Settings', exact: true }).click();
  await page.getByRole('spinbutton', { name: 'Most tokens' }).fill('2000');
  await page.getByRole('checkbox').check();
  await page.keyboard.press('Escape');
  await say(page, 'Count from one to a thousand.');
  await page.waitForFunction(() => /\d/.test([...document.querySelectorAll('article .content')].at(-1).innerText));
  await page.getByRole('button', { name: 'Stop' }).waitFor();
  await composer(page).press('Escape');
  await lastAnswer(page).getByText('stopped').waitFor();
  assert.ok((await lastAnswer(page).locator('.content').innerText()).length > 0);
});

test('while a long prompt is read the page counts its tokens', async (t) => {
  const page = await visit(t);
  // Greedily: a word that is drawn may be a line break, which is nothing to see.
  await settings(page, { Temperature: 0, 'Most tokens': 1 });
  // A fast machine shows each count for a moment only.
  await page.evaluate(() => {
    window.told = [];
    new MutationObserver(() => document.querySelectorAll('[role=status]').forEach((status) => window.told.push(status.innerText))).observe(document.body, { subtree: true, childList: true, characterData: true });
  });
  await say(page, `Sum this up: ${Array.from({ length: 250 }, (_, i) => `item ${i} is red`).join(', ')}`);
  await finished(page);
  const told = await page.evaluate(() => window.told);
  assert.ok(told.some((text) => /Reading the prompt: [\d,]+ of [\d,]+ tokens/.test(text)), String(told));
});

test('settings tell their meaning, work, and are kept as presets', async (t) => {
  const page = await visit(t);
  await page.getByRole('button', { name: 'Settings', exact: true }).click();
  for (const name of ['Temperature', 'Top p', 'Top k', 'Min p', 'Repetition penalty', 'Presence penalty', 'Frequency penalty', 'Most tokens', 'Fewest tokens', 'Seed', 'Time limit, s', 'Priority']) {
    assert.equal(await page.getByRole('spinbutton', { name, exact: true }).count(), 1, name);
  }
  await page.locator('.what').first().hover();
  await page.getByRole('tooltip').filter({ hasText: 'Divides the logits' }).waitFor();
  await page.getByRole('textbox', { name: 'System prompt' }).fill('You answer in one word.');
  await page.getByRole('spinbutton', { name: 'Most tokens' }).fill('3');
  await page.getByRole('spinbutton', { name: 'Seed' }).fill('7');
  await page.getByRole('textbox', { name: 'Name of the preset' }).fill('Terse');
  await page.getByRole('button', { name: 'Save as preset' }).click();
  await page.getByRole('button', { name: 'Reset', exact: true }).click();
  assert.equal(await page.getByRole('spinbutton', { name: 'Most tokens' }).inputValue(), '');
  await page.reload();
  await page.getByRole('button', { name: 'Settings', exact: true }).click();
  await page.locator('label', { hasText: 'Preset' }).locator('select').selectOption('Terse');
  assert.equal(await page.getByRole('textbox', { name: 'System prompt' }).inputValue(), 'You answer in one word.');
  await say(page, 'Name a colour.');
  await finished(page);
  assert.match(await lastAnswer(page).innerText(), /[123] tokens?/);
  // A text that cannot be sent is named in place.
  await page.locator('label', { hasText: 'Functions, as JSON' }).locator('textarea').fill('[{');
  await page.getByText('The tools are not valid JSON').waitFor();
});

test('an answer keeps to a JSON schema', async (t) => {
  const page = await visit(t);
  await page.getByRole('button', { name: 'Settings', exact: true }).click();
  await page.locator('select', { hasText: 'free text' }).selectOption('json_schema');
  const schema = { type: 'object', properties: { city: { enum: ['Paris', 'Rome'] }, large: { type: 'boolean' } }, required: ['city', 'large'], additionalProperties: false };
  await page.getByLabel('JSON by a schema').fill(JSON.stringify(schema));
  await say(page, 'Which city is the capital of Italy?');
  await finished(page);
  const answer = Object.values((await saved(idOf(page), isOver)).messages).find(({ role }) => role === 'assistant');
  const value = JSON.parse(answer.content);
  assert.ok(['Paris', 'Rome'].includes(value.city) && typeof value.large === 'boolean');
});

test('a call of a tool is shown, takes a result, and is answered', async (t) => {
  const page = await visit(t);
  await page.getByRole('button', { name: 'Settings', exact: true }).click();
  const tool = { name: 'weather', description: 'The weather of a city', parameters: { type: 'object', properties: { city: { enum: ['Oslo', 'Lima'] } }, required: ['city'], additionalProperties: false } };
  await page.locator('label', { hasText: 'Functions, as JSON' }).locator('textarea').fill(JSON.stringify([tool]));
  await page.locator('label', { hasText: 'Calls' }).locator('select').selectOption('required');
  await say(page, 'What is the weather in Oslo?');
  await page.locator('figure', { hasText: 'weather' }).waitFor();
  assert.match(await page.locator('figure pre').innerText(), /"city": "(Oslo|Lima)"/);
  await finished(page);
  await page.locator('label', { hasText: 'Calls' }).locator('select').selectOption('none');
  await page.getByRole('spinbutton', { name: 'Most tokens' }).fill('8');
  await page.getByRole('textbox', { name: 'Result of weather' }).fill('{"sky": "clear"}');
  await page.getByRole('button', { name: 'Send result' }).click();
  await page.waitForFunction(() => document.querySelectorAll('article').length === 4);
  await finished(page);
  assert.match(await articles(page).nth(2).innerText(), /"sky": "clear"/);
});

test('tokens are counted while one types, and the exact prompt has the ids that the server reports', async (t) => {
  const page = await visit(t);
  const text = 'Grüße aus Köln, 你好!';
  await composer(page).fill(text);
  const messages = [{ role: 'user', content: text }];
  const { octet, usage } = await ask('/v1/chat/completions', { model: 'small', messages, max_tokens: 1, return_prompt: true });
  await page.getByText(`${usage.prompt_tokens} tokens, ${(4096 - usage.prompt_tokens).toLocaleString('en')} left`).waitFor();
  await settings(page, { Temperature: 0, 'Most tokens': 2 });
  await say(page, text);
  await finished(page);
  await page.keyboard.press('Control+Shift+U');
  await page.locator('aside pre').waitFor();
  assert.equal(await page.locator('aside pre').evaluate((pre) => pre.textContent), octet.prompt.text);
  await page.locator('aside').getByRole('button', { name: 'Ids' }).click();
  const ids = page.locator('aside li .number');
  await ids.filter({ hasText: /^\d+$/ }).nth(octet.prompt.ids.length - 1).waitFor();
  assert.deepEqual((await ids.allInnerTexts()).map(Number), octet.prompt.ids);
});

test('a token shows its alternatives, and one branches there', async (t) => {
  const page = await visit(t);
  await settings(page, { 'Most tokens': 8, Temperature: 0 });
  await say(page, 'What is the capital of France?');
  await finished(page);
  const text = await lastAnswer(page).locator('.content').innerText();
  await lastAnswer(page).getByRole('button', { name: 'Tokens' }).click();
  const tokens = page.locator('.tokens button');
  await tokens.first().waitFor();
  await tokens.nth(3).click();
  const list = page.getByRole('dialog', { name: /Alternatives of/ });
  await list.waitFor();
  const shares = (await list.locator('.number').allInnerTexts()).map((share) => parseFloat(share.replace('<', '')));
  assert.equal(shares.length, 5);
  assert.ok(shares[0] >= shares[1] && shares.reduce((a, b) => a + b) <= 100.5, String(shares));
  assert.equal(await list.getByRole('button', { name: /chosen/ }).count(), 1);
  // The same numbers as the API's.
  const chat = await ask('/v1/chat/completions', { model: 'small', messages: [{ role: 'user', content: 'What is the capital of France?' }], temperature: 0, max_tokens: 4, logprobs: true, top_logprobs: 5 });
  const there = chat.choices[0].logprobs.content[3];
  assert.ok(Math.abs(Math.exp(there.logprob) * 100 - shares[0]) < 0.06, `${there.logprob} ${shares}`);
  const other = there.top_logprobs[1];
  await list.getByRole('button', { name: /Branch here/ }).first().click();
  await page.getByText('2 of 2').waitFor();
  await finished(page);
  const before = chat.choices[0].logprobs.content.slice(0, 3).map(({ token }) => token).join('');
  const branched = await lastAnswer(page).locator('.content').innerText();
  assert.ok(branched.startsWith((before + other.token).trimEnd()), `${branched} begins with ${before}${other.token}`);
  assert.notEqual(branched, text);
});

test('copy, export and import, in JSON and Markdown, one and all', async (t) => {
  const code = 'Look:\n\n```python\nx = 1\n```\n\n## You\n\nnot a heading of ours';
  const id = plant(conversation('Export me', [{ role: 'user', content: 'Some code, please' }, { role: 'assistant', content: code }]));
  const page = await visit(t, `/#/chat/${id}`);
  await lastAnswer(page).getByRole('button', { name: 'Copy', exact: true }).last().click();
  assert.equal(await page.evaluate(() => navigator.clipboard.readText()), code);

  const take = async (menu, action) => {
    await page.getByRole('button', { name: menu }).click();
    const [file] = await Promise.all([page.waitForEvent('download'), page.getByRole('button', { name: action, exact: true }).click()]);
    return { name: file.suggestedFilename(), text: readFileSync(await file.path(), 'utf8') };
  };
  const json = await take('This conversation', 'Export as JSON');
  assert.equal(json.name, 'Export-me.json');
  assert.deepEqual(JSON.parse(json.text).messages, kept(id).messages);
  const markdown = await take('This conversation', 'Export as Markdown');
  assert.match(markdown.text, /^# Export me/);
  const all = JSON.parse((await take('More', 'Export all as JSON')).text).conversations;
  assert.ok(all.some(({ title }) => title === 'Export me'));
  assert.match((await take('More', 'Export all as Markdown')).text, /# Export me/);

  const put = async (name, text) => {
    const before = page.url();
    await page.locator('input[type=file]').setInputFiles({ name, mimeType: 'text/plain', buffer: Buffer.from(text) });
    await page.waitForFunction((before) => location.href !== before, before);
    await articles(page).nth(1).waitFor();
    return kept(idOf(page));
  };
  const contents = (conversation) => Object.values(conversation.messages).map(({ role, content }) => [role, content]);
  assert.deepEqual(contents(await put('back.json', json.text)), contents(kept(id)));
  assert.deepEqual(contents(await put('back.md', markdown.text)), contents(kept(id)));
  const foreign = { messages: [{ role: 'system', content: 'Be kind' }, { role: 'user', content: 'a' }, { role: 'assistant', content: 'b' }] };
  const read = await put('foreign.json', JSON.stringify(foreign));
  assert.deepEqual([read.system, contents(read)], ['Be kind', [['user', 'a'], ['assistant', 'b']]]);
  await page.locator('input[type=file]').setInputFiles({ name: 'bad.json', mimeType: 'text/plain', buffer: Buffer.from('{"x": 1}') });
  await page.getByText('bad.json is no conversation').waitFor();
});

test('anything is found by Ctrl K: titles, what was said, actions', async (t) => {
  const id = plant(conversation('Garden', [{ role: 'user', content: 'How do I prune a Quittenbaum in March?' }]));
  const page = await visit(t);
  await page.keyboard.press('Control+k');
  await page.getByRole('combobox', { name: 'Find anything' }).fill('quittenbaum');
  await page.getByRole('option', { name: /Garden.*Quittenbaum/ }).waitFor();
  await page.keyboard.press('Enter');
  await page.waitForFunction((id) => location.hash.endsWith(id), id);
  await articles(page).first().waitFor();
  await page.keyboard.press('Control+k');
  await page.keyboard.type('Theme: dark');
  await page.keyboard.press('Enter');
  assert.equal(await page.evaluate(() => document.documentElement.dataset.theme), 'dark');
});
