// Runs the tests, and the README's program, in headless Chromium on SwiftShader.
import { readFile } from 'node:fs/promises';
import { build } from 'esbuild';
import { serve } from '../../../examples/web/server.mjs';
import { launch } from './launch.mjs';
import { program, report } from './readme.mjs';

const wanted = process.argv[2] ?? '';
const page = (script) => `<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,">
<script type="importmap">{ "imports": { "wgpu-optim": "/integrations/js/dist/index.js" } }</script>
<script type="module">${script}</script>`;

// TensorFlow.js consists of hundreds of CommonJS files, which are bundled.
const bundled = await build({
  entryPoints: [new URL('./tfjs.js', import.meta.url).pathname],
  bundle: true, format: 'esm', write: false, logLevel: 'error', external: ['wgpu-optim', './suite.js'],
});

const { server, address } = await serve(0, {
  '/vectors.json': await readFile(process.env.VECTORS),
  '/suite.html': page(`
    import { run } from '/integrations/js/tests/suite.js';
    const vectors = await (await fetch('/vectors.json')).json();
    window.lines = await run(navigator.gpu, vectors, ${JSON.stringify(wanted)});`),
  '/integrations/js/tests/bundled.js': bundled.outputFiles[0].text,
  '/tfjs.html': page(`
    import { run } from '/integrations/js/tests/bundled.js';
    window.lines = await run(navigator.gpu).catch((error) => [{ name: 'runs', ok: false, found: String(error.stack) }]);`),
  '/readme.html': page(`${await program()}\nwindow.done = true;`),
});
const browser = await launch();
let failed = false;
try {
  const tab = await browser.newPage();
  tab.on('pageerror', (error) => console.error(String(error)));
  await tab.goto(`${address}suite.html`);
  await tab.waitForFunction('window.lines', undefined, { timeout: 1_200_000 });
  const lines = await tab.evaluate('window.lines');
  if (lines.length) failed = !report(`Chromium ${browser.version()}`, lines);

  if ('TensorFlow.js on the same device'.includes(wanted)) {
    const beside = await browser.newPage();
    beside.on('pageerror', (error) => console.error(String(error)));
    await beside.goto(`${address}tfjs.html`);
    await beside.waitForFunction('window.lines', undefined, { timeout: 300_000 });
    failed = !report('TensorFlow.js on the same device', await beside.evaluate('window.lines')) || failed;
  }

  const printed = [];
  const example = await browser.newPage();
  example.on('console', (message) => printed.push(message.text()));
  example.on('pageerror', (error) => printed.push(String(error)));
  await example.goto(`${address}readme.html`);
  await example.waitForFunction('window.done', undefined, { timeout: 60_000 }).catch(() => {});
  failed = !report("the README's program", [{ name: 'prints its records', ok: printed.length === 100 && printed[1].startsWith('step 1: η'), found: printed[1] }]) || failed;
} finally {
  await browser.close();
  server.close();
}
process.exit(failed ? 1 : 0);
