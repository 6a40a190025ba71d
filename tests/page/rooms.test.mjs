// Compare, Experts, Plan, Server, and the experts of an answer, against a dense model, a coarser copy and a mixture of it.
import AxeBuilder from '@axe-core/playwright';
import assert from 'node:assert/strict';
import { rmSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { finished, lastAnswer, say, settings, visit } from './browser.mjs';

const base = process.env.OCTET_ROOMS_URL;
const MODELS = process.env.OCTET_MODELS;
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
  // The server is asked the same by other means.
  const body = { messages: [{ role: 'user', content: QUESTION }], temperature: 0, max_tokens: 24, logprobs: true, top_logprobs: 20 };
  const both = await Promise.all(['dense', 'coarse'].map((model) => ask('/v1/chat/completions', { ...body, model })));
  assert.equal(both[0].usage.completion_tokens, 24);
  for (const [i, { usage }] of both.entries()) {
    const stats = new RegExp(`^${usage.completion_tokens} tokens · [\\d.,]+ tok/s · .* to the first token · .* in all`);
    assert.match(await answers[i].locator('.stats').innerText(), stats);
  }
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
  // Somebody else is given the question with its columns.
  await page.getByRole('button', { name: 'Copy link' }).click();
  await page.getByRole('button', { name: 'Copied' }).waitFor();
  const link = await page.evaluate(() => navigator.clipboard.readText());
  const theirs = await enter(t, link.slice(base.length));
  await theirs.locator('.columns section').nth(1).waitFor();
  assert.equal(await theirs.getByLabel('Prompt', { exact: true }).inputValue(), QUESTION);
  assert.deepEqual(await theirs.locator('.columns select[aria-label^="Model of column"]').evaluateAll((all) => all.map(({ value }) => value)), ['dense', 'coarse']);
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

test('a column may be a model of another server, asked through ours with a key that no browser sees', async (t) => {
  const page = await enter(t, '/#/compare?models=dense,locked/small&max_tokens=16&difference=1', { expected: [/status of 502/] });
  const bodies = [];
  page.on('response', (response) => response.url().includes('/octet/') && bodies.push(response.text().catch(() => '')));
  await page.reload();
  await page.locator('.columns select').first().waitFor();
  const second = page.getByLabel('Model of column 2', { exact: true });
  assert.equal(await second.inputValue(), 'locked/small');
  assert.deepEqual(await second.locator('optgroup').evaluateAll((all) => all.map(({ label }) => label.split(':')[0])), ['This server', 'locked', 'gone']);
  await compared(page);
  const [own, other] = await page.locator('.columns section').all();
  assert.match(await other.locator('.stats').innerText(), /16 tokens · [\d.,]+ tok\/s · .* to the first token · .* in all/);
  // The same weights say the same, wherever they are.
  assert.equal(await other.locator('.answer').innerText(), await own.locator('.answer').innerText());
  await page.getByText('locked/small says the same, to the end.').waitFor();
  assert.ok(!(await Promise.all(bodies)).join('').includes('secret'));
  // What cannot be asked says so in its column, and the others go on.
  await page.evaluate(() => (location.hash = '/experts'));
  await page.evaluate(() => (location.hash = '/compare?models=dense,locked/nothing,gone/any&max_tokens=4'));
  await page.locator('.columns section').nth(2).waitFor();
  await page.getByRole('button', { name: 'Ask all' }).click();
  await page.locator('.columns section').nth(1).getByText(/^locked answers 404: model 'nothing' not found/).waitFor();
  await page.locator('.columns section').nth(2).getByText(/^gone cannot be asked: no connection: /).waitFor();
  await page.locator('.columns section').first().getByText('4 tokens').waitFor();
  // Nobody leads the server elsewhere.
  for (const name of ['http:%2F%2F127.0.0.1:9', 'other', '..', '127.0.0.1:9']) {
    const response = await fetch(`${base}/octet/peers/${name}/chat/completions`, { method: 'POST', headers: { 'content-type': 'application/json' }, body: '{"model":"small"}' });
    assert.equal(response.status, 404, name);
  }
});

test('an adapter is chosen for a conversation, and for a column: the same model before and after fine-tuning', async (t) => {
  const body = { messages: [{ role: 'user', content: QUESTION }], temperature: 0, max_tokens: 12 };
  const [plain, tuned] = await Promise.all(['dense', 'tuned'].map(async (model) => (await ask('/v1/chat/completions', { ...body, model })).choices[0].message.content.trim()));
  assert.notEqual(plain, tuned);
  const page = await enter(t, '/');
  await page.getByLabel('Model', { exact: true }).selectOption('dense');
  const adapter = page.getByLabel('Adapter: Model');
  await adapter.selectOption('tuned');
  await page.getByText('with the adapter tuned').waitFor();
  await settings(page, { 'Most tokens': 12, Temperature: 0 });
  await say(page, QUESTION);
  await finished(page);
  // A list's numbers are not part of what is shown as its text.
  const words = (text) => text.replaceAll(/^\d+\. |[*#]/gm, '').replaceAll(/\s+/g, ' ').trim();
  assert.equal(words(await lastAnswer(page).locator('.content').innerText()), words(tuned));
  await page.reload();
  await lastAnswer(page).waitFor();
  assert.equal(await page.getByLabel('Model', { exact: true }).inputValue(), 'dense');
  assert.equal(await adapter.inputValue(), 'tuned');
  await adapter.selectOption('');
  await page.getByRole('button', { name: 'Again' }).last().click();
  await page.getByText('2 of 2').waitFor();
  await finished(page);
  assert.equal(words(await lastAnswer(page).locator('.content').innerText()), words(plain));

  await page.evaluate(() => (location.hash = '/compare?models=dense,dense&max_tokens=12&difference=1'));
  await page.getByLabel('Adapter: Model of column 2').selectOption('tuned');
  await compared(page);
  await page.locator('.differences caption', { hasText: 'dense + tuned parts from dense' }).waitFor();
  assert.match(page.url(), /models=dense%2Ctuned/);
});

test('the lit dots of the mark are the experts of the last token while an answer is written', async (t) => {
  const page = await enter(t, '/');
  await page.getByLabel('Model', { exact: true }).selectOption('mixture');
  await settings(page, { 'Most tokens': 24, Temperature: 0 });
  await page.evaluate(() => {
    const mark = document.querySelector('nav .name svg');
    const lit = () => [...mark.querySelectorAll('.lit')].map((dot) => Number(/e(\d)/.exec(dot.getAttribute('class'))[1])).join();
    window.seen = [lit()];
    new MutationObserver(() => window.seen.push(lit())).observe(mark, { subtree: true, attributes: true });
  });
  await say(page, QUESTION);
  await finished(page);
  const seen = new Set(await page.evaluate(() => window.seen));
  const { answers } = await ask('/octet/answers');
  const logs = await Promise.all(answers.map(async ({ id }) => (await fetch(`${base}/octet/answers/${id}`)).text()));
  const told = new Set(logs.flatMap((log) => [...log.matchAll(/"experts":\[(\d),(\d)\]/g)].map(([, a, b]) => [a, b].sort().join())));
  seen.delete('1,5');
  assert.ok(seen.size >= 3, `the mark showed ${[...seen].join(' ')}`);
  // Between two writes to the page one dot may be lit already while the other is not out yet.
  const strange = [...seen].filter((one) => one.length === 3 && !told.has(one));
  assert.deepEqual(strange, []);
  // When nothing is written it is as it always was.
  assert.equal(await page.evaluate(() => window.seen.at(-1)), '1,5');
});

test('the experts of an answer: layers, load, a token and its way, a span, a branch', async (t) => {
  const page = await enter(t, '/');
  await page.getByLabel('Model', { exact: true }).selectOption('mixture');
  await settings(page, { 'Most tokens': 12, Temperature: 0 });
  await say(page, QUESTION);
  await finished(page);
  await page.getByRole('button', { name: 'Experts', exact: true }).first().click();
  const drawer = page.locator('aside[aria-label="Experts"]');
  const tokens = drawer.locator('[data-token]');
  await tokens.first().waitFor();
  assert.equal(await tokens.count(), 12);
  const text = (await tokens.allInnerTexts()).join('').trim();
  // A list's numbers are not part of what is shown as its text.
  const words = (await lastAnswer(page).locator('.content').innerText()).replaceAll(/\s+/g, ' ').trim();
  assert.ok(text.replaceAll('⏎', '').replaceAll(/\s+/g, ' ').endsWith(words), text);
  // Each token tells two experts whose weights make a whole; another layer, other experts.
  const slider = drawer.getByRole('slider');
  const told = () => tokens.evaluateAll((all) => all.map((token) => token.title));
  await slider.fill('3');
  const third = await told();
  for (const one of third) {
    const weights = [...one.matchAll(/([\d.]+)%/g)].map(([, weight]) => Number(weight));
    assert.ok(weights.length === 2 && Math.abs(weights[0] + weights[1] - 100) < 0.2, one);
  }
  await slider.fill('4');
  assert.notDeepEqual(await told(), third);
  // The heat map counts what the tokens tell.
  const row = drawer.locator('tbody tr').nth(4);
  const shares = (await row.locator('td .unseen').allInnerTexts()).map(shareOf);
  const counts = new Array(8).fill(0);
  for (const one of await told()) for (const [, expert] of one.matchAll(/Expert (\d)/g)) counts[expert] += 1;
  counts.forEach((count, expert) => assert.ok(Math.abs(shares[expert] - (100 * count) / 24) < 0.06, `expert ${expert}`));
  // A token's way, and its alternatives.
  await tokens.nth(3).click();
  await drawer.getByRole('img', { name: /Way through the layers/ }).waitFor();
  assert.ok((await drawer.locator('circle').count()) === 2 * 30);
  // Playing goes through the layers.
  await page.keyboard.press('p');
  await page.waitForFunction(() => document.querySelector('aside input[type=range]').value !== '4');
  await page.keyboard.press('p');
  // A span of three tokens: the map counts six choices.
  await page.evaluate(() => {
    const spans = document.querySelectorAll('aside [data-token]');
    getSelection().setBaseAndExtent(spans[1].firstChild, 0, spans[3].firstChild, 1);
  });
  await drawer.getByText('3 selected tokens').waitFor();
  const some = (await row.locator('td .unseen').allInnerTexts()).map(shareOf);
  assert.ok(some.every((share) => Math.abs((share * 6) / 100 - Math.round((share * 6) / 100)) < 0.02), String(some));
  await page.evaluate(() => getSelection().removeAllRanges());
  // Another word in a token's place begins a branch.
  const branch = drawer.getByRole('button', { name: 'Branch here' }).first();
  await branch.click();
  await page.getByText('2 of 2').waitFor();
  await finished(page);
});

test('the experts of the running server are counted, and texts by kind', async (t) => {
  await ask('/v1/completions', { model: 'mixture', prompt: 'The quick brown fox jumps over the lazy dog. '.repeat(4), max_tokens: 8, temperature: 0 });
  const page = await enter(t, '/#/experts');
  const live = page.getByRole('region', { name: 'The running server' });
  await live.locator('table').first().waitFor();
  const stats = await ask('/octet/models/mixture/experts');
  const total = stats.tokens[0].reduce((sum, n) => sum + n, 0);
  const shares = (await live.locator('table').first().locator('tbody tr').first().locator('td .unseen').allInnerTexts()).map(shareOf);
  stats.tokens[0].forEach((n, expert) => assert.ok(Math.abs(shares[expert] - (100 * n) / total) < 0.6, `expert ${expert}`));
  assert.ok(stats.neighbours > 20 && stats.repeats_first.every((n, layer) => n <= stats.repeats_any[layer] && stats.repeats_any[layer] <= stats.neighbours));
  // What happens while the page looks on.
  await live.getByRole('button', { name: 'since this page was opened' }).click();
  await live.getByText('Nothing has run yet').waitFor();
  await ask('/v1/completions', { model: 'mixture', prompt: 'One two three four five', max_tokens: 4, temperature: 0 });
  await live.locator('table').first().waitFor();

  const kinds = page.getByRole('region', { name: 'Kinds of text' });
  await kinds.getByRole('button', { name: 'Remove Mathematics' }).click();
  await kinds.getByRole('button', { name: 'Count' }).click();
  await kinds.locator('.kinds > figure').nth(1).waitFor();
  assert.deepEqual(await kinds.locator('table').first().locator('tbody th').allInnerTexts(), ['English', 'Python']);
  await kinds.getByRole('button', { name: 'Show its tokens' }).last().click();
  const tokens = kinds.locator('.one [data-token]');
  await tokens.first().waitFor();
  assert.match((await tokens.allInnerTexts()).join('').replaceAll('⏎', ''), /^def primes\(limit\):\n {4}sieve/);
  // The repeats of the first layer, counted once more from what the tokens tell.
  await kinds.locator('.one').getByRole('slider').fill('0');
  const first = await tokens.evaluateAll((all) => all.map((token) => token.title.match(/Expert (\d)/)[1]));
  const repeats = first.filter((expert, i) => i > 0 && first[i - 1] === expert).length / (first.length - 1);
  const shown = await kinds.locator('.kinds > figure').nth(1).locator('details tbody tr').first().locator('td').first().textContent();
  assert.ok(Math.abs(shareOf(shown) - 100 * repeats) < 0.06, `${shown} is not ${repeats}`);
});

test('the plan says what the endpoint says, and keeps its question in the address', async (t) => {
  const page = await enter(t, '/#/plan?model=mixtral-8x22b&quantize=Q4_K_M&context=8192&users=2');
  const plan = await ask('/octet/plan', { model: 'mixtral-8x22b', quantize: 'Q4_K_M', context: 8192, users: 2 });
  // 140.6 billion weights of four bits and more, whatever memory this machine has.
  assert.ok(plan.fit.footprint.weights > 140.6e9 / 2, `${plan.fit.footprint.weights} bytes`);
  await page.locator('.verdict', { hasText: plan.fit.fits === false ? 'It does not fit.' : 'It fits.' }).waitFor();
  const gib = (bytes) => (bytes / 2 ** 30).toPrecision(3);
  const memory = page.getByRole('region', { name: 'Memory' });
  assert.match(await memory.innerText(), new RegExp(`Weights\\s+${gib(plan.fit.footprint.weights)} GiB`));
  assert.match(await memory.innerText(), new RegExp(`Keys and values\\s+${gib(plan.fit.footprint.kv_cache)} GiB`));
  await page.getByLabel('Model').selectOption('dense');
  await page.getByText('It fits.').waitFor();
  assert.match(page.url(), /model=dense/);
  assert.match(await page.getByRole('region', { name: 'Speed, estimated' }).innerText(), /Generation[\s\S]*tok\/s[\s\S]*Reading prompts[\s\S]*tok\/s/);
  await page.reload();
  assert.equal(await page.getByLabel('Model').inputValue(), 'dense');
});

test('the server shows models, traffic and the log, and takes models out and in', async (t) => {
  const page = await enter(t, '/#/server');
  const began = performance.now();
  let looks = 0;
  page.on('request', (request) => (looks += request.url().includes('/octet/history') ? 1 : 0));
  const models = page.getByRole('region', { name: 'Models', exact: true });
  await models.getByRole('row', { name: /dense.*ready/ }).waitFor();
  await ask('/v1/completions', { model: 'dense', prompt: 'A secret word', max_tokens: 8, ignore_eos: true });
  const log = page.getByRole('region', { name: 'Log', exact: true });
  await log.getByText(/dense: \d+ → 8 tokens/).first().waitFor();
  assert.ok(!(await log.innerText()).includes('secret'), 'prompts stay out of the log');
  await page.getByRole('img', { name: /Tokens written a second/ }).waitFor();
  await page.getByRole('img', { name: /Time to the first token/ }).waitFor();
  await models.getByRole('button', { name: 'Unload dense' }).click();
  await models.getByRole('row', { name: /dense.*not loaded/ }).waitFor();
  assert.equal((await ask('/octet/state')).models.find(({ name }) => name === 'dense').state, 'unloaded');
  await models.getByRole('button', { name: 'Load dense' }).click();
  await models.getByRole('row', { name: /dense.*ready/ }).waitFor();
  // Every two seconds, and no more: the server has better things to do.
  const most = (performance.now() - began) / 2000 + 2;
  assert.ok(looks <= most, `the page looked ${looks} times`);
});

test('a model that is predicted not to fit says so, and is loaded anyway if one insists', async (t) => {
  const swap = (target) => {
    rmSync(join(MODELS, 'swapped'));
    symlinkSync(target, join(MODELS, 'swapped'));
  };
  const page = await enter(t, '/#/server', { expected: [/status of 503/] });
  const row = page.getByRole('region', { name: 'Models', exact: true }).getByRole('row', { name: /^swapped/ });
  await row.getByText('ready', { exact: true }).waitFor();
  await row.getByRole('button', { name: 'Unload swapped' }).click();
  await row.getByText('not loaded', { exact: true }).waitFor();
  swap('giant');
  const load = (body) => fetch(`${base}/octet/models/swapped/load`, { method: 'POST', body: body && JSON.stringify(body) });
  assert.equal((await load({ load_anyway: 'yes' })).status, 400);
  assert.equal((await load({ anyway: true })).status, 400);
  const refused = await load();
  assert.equal(refused.status, 503);
  assert.match(await refused.text(), /swapped needs .* are free; .*load_anyway/);
  await row.getByRole('button', { name: 'Load anyway swapped' }).waitFor();
  assert.match(await row.innerText(), /failed[\s\S]*needs 3\.\d+ TiB/);
  // Its weights would be the end of this machine; those that fit take their place again.
  swap('smollm2.gguf');
  const sent = page.waitForRequest(/swapped\/load$/);
  await row.getByRole('button', { name: 'Load anyway swapped' }).click();
  assert.deepEqual((await sent).postDataJSON(), { load_anyway: true });
  await row.getByText('ready', { exact: true }).waitFor();
});

// Last, so that there is something to be seen.
for (const scheme of ['light', 'dark']) {
  test(`the rooms are accessible in ${scheme}, on a desk and on a phone`, async (t) => {
    const page = await enter(t, '/', { colorScheme: scheme });
    const clean = async (room) => {
      const { violations } = await new AxeBuilder({ page }).withTags(['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa']).analyze();
      assert.deepEqual(violations.map(({ id, nodes }) => `${id}: ${nodes[0].target} (${nodes.length})`), [], room);
    };
    await page.evaluate(() => (location.hash = '/chat'));
    await page.getByLabel('Model', { exact: true }).selectOption('mixture');
    await settings(page, { 'Most tokens': 24, Temperature: 0 });
    await say(page, QUESTION);
    await finished(page);
    await page.getByRole('button', { name: 'Experts', exact: true }).first().click();
    await page.locator('aside [data-token]').nth(5).click();
    await page.locator('aside circle').first().waitFor();
    await clean('answer-experts');
    await page.evaluate(() => (location.hash = '/compare?models=dense,coarse&max_tokens=32&difference=1'));
    await compared(page);
    await page.locator('.differences table, .differences p').first().waitFor();
    await clean('compare');
    await page.evaluate(() => (location.hash = '/experts'));
    await page.getByRole('region', { name: 'The running server' }).locator('table').first().waitFor();
    await clean('experts');
    await page.evaluate(() => (location.hash = '/plan?model=mixtral-8x7b&quantize=Q4_K_M'));
    await page.getByRole('region', { name: 'Memory' }).waitFor();
    await clean('plan');
    await page.evaluate(() => (location.hash = '/server'));
    await page.getByRole('img', { name: /Tokens written a second/ }).waitFor();
    await clean('server');
    await page.setViewportSize({ width: 390, height: 780 });
    for (const room of ['compare', 'experts', 'plan', 'server']) {
      await page.evaluate((room) => (location.hash = `/${room}`), room);
      await page.locator('main h1').waitFor();
      await clean(`${room} on a phone`);
      const wide = await page.evaluate(() => document.querySelector('main').scrollWidth - document.querySelector('main').clientWidth);
      assert.ok(wide <= 1, `${room} is ${wide} px wider than a phone`);
    }
  });
}
