// Writes the types of rules and regimes from the crate's list of their names and parameters.
import { readFile } from 'node:fs/promises';
import { catalogue, initSync } from './dist/wgpu_optim.js';

initSync({ module: await readFile(new URL('./dist/wgpu_optim_bg.wasm', import.meta.url)) });
const kind = (value) =>
  Array.isArray(value) ? `[${value.map(kind).join(', ')}]` : value === null ? 'number | null' : typeof value;
const type = (name, about, entries) => {
  const names = Object.keys(entries).map((name) => `'${name}'`);
  const variants = Object.entries(entries).map(([name, fields]) => {
    const numbers = Object.entries(fields).map(([field, value]) => `${field}?: ${kind(value)}`);
    return `  | { ${[`name: '${name}'`, ...numbers].join('; ')} }`;
  });
  return `/** ${about} */\nexport type ${name} =\n  | ${names.join('\n  | ')}\n${variants.join('\n')};\n`;
};
const { rules, regimes } = JSON.parse(catalogue());
console.log('// Written by catalogue.mjs.\n');
console.log(type('Rule', 'An update rule by its name, or with some of its numbers. Those that are left out have the usual values.', rules));
console.log(type('Regime', 'What sets the learning rate, by its name, or with some of its numbers.', regimes));
