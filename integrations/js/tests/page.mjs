// Tests the page of examples/web in headless Chromium: it must train, report injected faults, and fit its window. PICTURES names a folder for
// screenshots at 1280 and at 390 pixels.
import { serve } from '../../../examples/web/server.mjs';
import { launch } from './launch.mjs';
import { report } from './readme.mjs';

const { server, address } = await serve();
const browser = await launch();
const lines = [];
const mistakes = [];
let tab;
const check = (name, ok, found) => lines.push({ name, ok: Boolean(ok), found });
try {
  tab = await browser.newPage({ viewport: { width: 1280, height: 1000 } });
  tab.on('pageerror', (error) => mistakes.push(String(error)));
  tab.on('console', (message) => message.type() === 'error' && mistakes.push(message.text()));
  await tab.goto(`${address}examples/web/`);
  const at = (root, data) => tab.evaluate(([root, data]) => Number(document.getElementById(root).dataset[data] ?? 0), [root, data]);
  const until = (root, data, least, timeout = 180_000) =>
    tab.waitForFunction(([root, data, least]) => {
      const problem = document.getElementById('problem');
      if (!problem.hidden) throw new Error(problem.textContent);
      return Number(document.getElementById(root).dataset[data]) >= least;
    }, [root, data, least], { timeout });

  await until('digits', 'accuracy', 0.95);
  check('the network learns', true, `${(100 * (await at('digits', 'accuracy'))).toFixed(1)} % after ${await at('digits', 'step')} steps`);
  await until('picture', 'psnr', 22);
  check('the picture is fitted', true, `${(await at('picture', 'psnr')).toFixed(1)} dB after ${await at('picture', 'step')} steps`);
  const bandwidth = await tab.textContent('#bandwidth');
  check('the bandwidth is told', /GB\/s, \d+ % of what a copy reaches/.test(bandwidth), bandwidth);

  const accuracy = await at('digits', 'accuracy');
  await tab.click('#digits .nan');
  const skipped = tab.locator('#digits .story .event', { hasText: 'skipped, 1 non-finite element' });
  await skipped.first().waitFor({ timeout: 60_000 });
  const sentence = await skipped.first().textContent();
  check('a NaN is skipped and told', sentence.includes('"hidden weights" at index 17'), sentence);
  const step = await at('digits', 'step');
  await until('digits', 'step', step + 20);
  check('training goes on', (await at('digits', 'accuracy')) > accuracy - 0.03, `${(100 * (await at('digits', 'accuracy'))).toFixed(1)} %`);

  await tab.click('#picture .spike');
  const spike = tab.locator('#picture .story .event', { hasText: '(spike)' });
  await spike.first().waitFor({ timeout: 60_000 });
  check('a spike is told', true, await spike.first().textContent());
  await until('picture', 'psnr', 18);

  const pad = await tab.locator('.pad').boundingBox();
  const [x, y] = [pad.x + pad.width / 2, pad.y + pad.height / 5];
  await tab.mouse.move(x, y);
  await tab.mouse.down();
  await tab.mouse.move(x, pad.y + (pad.height * 4) / 5, { steps: 8 });
  await tab.mouse.up();
  await tab.locator('.guess', { hasText: 'taken for' }).waitFor({ timeout: 60_000 });
  check('a drawn stroke is classified', true, await tab.textContent('.guess'));

  if (process.env.PICTURES) await tab.screenshot({ path: `${process.env.PICTURES}/page-1280.png`, fullPage: true });
  for (const width of [1280, 390]) {
    await tab.setViewportSize({ width, height: 900 });
    await tab.waitForTimeout(1500);
    const wide = await tab.evaluate(() => document.documentElement.scrollWidth);
    check(`nothing is wider than ${width} pixels`, wide <= width, `${wide}`);
  }
  if (process.env.PICTURES) await tab.screenshot({ path: `${process.env.PICTURES}/page-390.png`, fullPage: true });

  await tab.selectOption('#digits .rule', 'adamw');
  await tab.waitForFunction(() => Number(document.getElementById('digits').dataset.step) < 200, undefined, { timeout: 60_000 });
  await until('digits', 'accuracy', 0.9);
  check('another rule learns', true, 'adamw');
  check('nothing is reported by the browser', mistakes.length === 0, mistakes.join('\n'));
} catch (error) {
  const shown = await tab.evaluate(() => document.body.innerText).catch(() => '');
  check('the page', false, [error, ...mistakes, shown].join('\n'));
  if (process.env.PICTURES) await tab.screenshot({ path: `${process.env.PICTURES}/failed.png`, fullPage: true });
} finally {
  await browser.close();
  server.close();
}
process.exit(report('the page', lines) ? 0 : 1);
