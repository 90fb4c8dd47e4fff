// The program in the README, and how results are printed.
import { readFile } from 'node:fs/promises';

export async function program() {
  const readme = await readFile(new URL('../README.md', import.meta.url), 'utf8');
  const [, code] = readme.match(/```js\n([\s\S]*?)```/);
  if (code.trim().split('\n').length > 30) throw new Error("the README's program has more than 30 lines");
  return code;
}

export function report(host, lines) {
  const failed = lines.filter(({ ok }) => !ok);
  for (const { name, ok, found, seconds } of lines) {
    console.log(`${ok ? 'ok  ' : 'FAIL'} ${name}${found ? `: ${found}` : ''}${seconds ? ` (${seconds.toFixed(1)} s)` : ''}`);
  }
  console.log(`${host}: ${lines.length - failed.length} of ${lines.length} tests passed`);
  return lines.length > 0 && failed.length === 0;
}
