// Pictures of each view for the documentation, in light and dark: OCTET_SCREENSHOTS=1 make page-test.
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { articles, conversation, finished, plant, plantAnswer, root, say, settings, visit } from './browser.mjs';

const ANSWER = `A mixture of experts has many feed-forward networks in each layer, and a **router** that sends every token to a few of them. Mixtral has eight and uses two:

$$y = \\sum_{i \\in \\mathrm{top}_2(x W_g)} \\mathrm{softmax}(x W_g)_i \\; E_i(x)$$

| | parameters | used by a token |
|---|--:|--:|
| Mixtral 8x7B | 46.7 B | 12.9 B |
| Mixtral 8x22B | 141 B | 39.1 B |

In Python:

\`\`\`python
def layer(x, router, experts):
    logits = router(x)
    chosen = logits.topk(2)  # two of eight
    weights = chosen.values.softmax(-1)
    return sum(w * experts[i](x) for w, i in zip(weights, chosen.indices))
\`\`\``;

const images = join(root, 'docs/images');
mkdirSync(images, { recursive: true });

for (const colorScheme of ['light', 'dark']) {
  test(`pictures in ${colorScheme}`, async (t) => {
    for (const title of ['Frühstück in Lissabon', 'Prime sieve in Rust', 'Une lettre au voisin']) plant(conversation(title, [{ role: 'user', content: title }]), `picture-${title.length}`);
    const run = { id: plantAnswer(ANSWER.match(/\s?[^\s]+|\s+/g)), model: 'small', from: 0, finish: 'stop', usage: { prompt_tokens: 43, completion_tokens: 214 }, timings: { queued_ms: 0, prompt_ms: 212, generation_ms: 2440, prompt_per_second: 203, generated_per_second: 87.8 } };
    const id = plant(conversation('How does a mixture of experts work?', [{ role: 'user', content: 'How does a mixture of experts work? Show me the layer in Python.' }, { role: 'assistant', content: ANSWER, runs: [run] }]), 'picture-talk');
    const page = await visit(t, '/', { colorScheme, deviceScaleFactor: 1 });
    const take = (name) => page.screenshot({ path: join(images, `${name}-${colorScheme}.png`), animations: 'disabled' });
    await page.locator('.welcome .plan', { hasText: 'tok/s' }).waitFor();
    await take('welcome');
    await page.evaluate((id) => (location.hash = `/chat/${id}`), id);
    await articles(page).nth(1).locator('math').waitFor();
    await page.locator('.hljs-keyword').first().waitFor();
    await page.getByText('left').waitFor();
    await take('chat');
    await page.getByRole('button', { name: 'Settings', exact: true }).click();
    await page.locator('aside .panel').waitFor();
    await take('settings');
    await page.getByRole('button', { name: 'Prompt', exact: true }).click();
    await page.locator('aside pre').waitFor();
    await take('prompt');
    await page.keyboard.press('Escape');
    await page.setViewportSize({ width: 390, height: 780 });
    await take('phone');
    await page.setViewportSize({ width: 1280, height: 800 });

    // A real answer's tokens.
    await page.keyboard.press('Control+Shift+O');
    await page.locator('.welcome').waitFor();
    await settings(page, { 'Most tokens': 24, Temperature: 0 });
    await page.locator('#composer').fill('What is the capital of France?');
    await page.keyboard.press('Enter');
    await page.getByRole('button', { name: 'Tokens' }).click();
    await page.locator('.tokens button').nth(2).click();
    await take('tokens');
  });
  test(`the rooms in ${colorScheme}`, async (t) => {
    const page = await visit(t, '/', { base: process.env.OCTET_ROOMS_URL, colorScheme });
    const take = (name) => page.screenshot({ path: join(images, `${name}-${colorScheme}.png`), animations: 'disabled' });
    const enter = (address) => page.evaluate((address) => (location.hash = address), address);
    await page.getByLabel('Model', { exact: true }).selectOption('mixture');
    await settings(page, { 'Most tokens': 48, Temperature: 0 });
    await say(page, 'Name three colours.');
    await finished(page);
    await page.getByRole('button', { name: 'Experts', exact: true }).first().click();
    await page.locator('aside [data-token]').nth(5).click();
    await page.locator('aside circle').first().waitFor();
    await take('answer-experts');
    await enter('/compare?models=dense,coarse&max_tokens=48&difference=1');
    await page.getByLabel('Prompt', { exact: true }).fill('Name three colours.');
    await page.getByRole('button', { name: 'Ask all' }).click();
    await page.locator('.differences table').waitFor();
    await take('compare');
    await enter('/experts');
    await page.getByRole('region', { name: 'The running server' }).locator('table').first().waitFor();
    await take('experts');
    await enter('/plan?model=mixtral-8x7b&quantize=Q4_K_M');
    await page.getByRole('region', { name: 'Memory' }).waitFor();
    await take('plan');
    await enter('/server');
    await page.getByRole('img', { name: /Tokens written a second/ }).waitFor();
    await page.getByRole('img', { name: /Time between tokens/ }).waitFor();
    await take('server');
  });
}
