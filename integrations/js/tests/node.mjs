// Runs the tests, and the README's program, in Node on Dawn (npm's package `webgpu`) and SwiftShader.
import { readFile, writeFile, rm } from 'node:fs/promises';
import { program, report } from './readme.mjs';

process.env.VK_DRIVER_FILES = process.env.SWIFTSHADER ?? '/usr/lib/chromium/vk_swiftshader_icd.json';
const { create, globals } = await import('webgpu');
Object.assign(globalThis, globals);
Object.defineProperty(globalThis, 'navigator', { value: { gpu: create([]) }, configurable: true });

const { run } = await import('./suite.js');
const vectors = JSON.parse(await readFile(process.env.VECTORS, 'utf8'));
let good = report(`Dawn in Node ${process.versions.node}`, await run(navigator.gpu, vectors, process.argv[2]));

// Imports of the program are resolved relative to its file.
const file = new URL(`./.readme-${process.pid}.mjs`, import.meta.url);
const { log } = console;
const printed = [];
await writeFile(file, (await program()).replace("'wgpu-optim'", "'../dist/index.js'"));
try {
  console.log = (line) => printed.push(line);
  await import(file);
} finally {
  console.log = log;
  await rm(file);
}
good = report("the README's program", [{ name: 'prints its records', ok: printed.length === 100 && printed[1].startsWith('step 1: η'), found: printed[1] }]) && good;
process.exit(good ? 0 : 1);
