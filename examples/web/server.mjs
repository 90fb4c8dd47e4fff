// Serves the folders of this repository that the page needs, only to this machine. `node examples/web/server.mjs` serves the page.
import { createServer } from 'node:http';
import { readFile } from 'node:fs/promises';
import { extname, normalize } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = new URL('../../', import.meta.url);
const folders = ['cli/shaders/', 'data/', 'examples/fit_image/', 'examples/web/', 'integrations/js/'];
const types = {
  '.css': 'text/css',
  '.html': 'text/html; charset=utf-8',
  '.js': 'text/javascript',
  '.json': 'application/json',
  '.mjs': 'text/javascript',
  '.wasm': 'application/wasm',
  '.wgsl': 'text/plain; charset=utf-8',
};

/** Serves on a port (0 for any free one), with additional files by their path. Returns the server and its address. */
export async function serve(port = 0, more = {}) {
  const server = createServer(async (request, response) => {
    const { pathname } = new URL(request.url, 'http://localhost');
    let path = normalize(decodeURIComponent(pathname)).replace(/^\/+/, '');
    if (path === '') {
      response.writeHead(302, { location: '/examples/web/' }).end();
      return;
    }
    if (path.endsWith('/')) path += 'index.html';
    try {
      const allowed = folders.some((folder) => path.startsWith(folder));
      const body = more[`/${path}`] ?? (allowed ? await readFile(new URL(path, root)) : undefined);
      if (body === undefined) throw new Error('not served');
      response.writeHead(200, { 'content-type': types[extname(path)] ?? 'application/octet-stream', 'cache-control': 'no-store' });
      response.end(body);
    } catch {
      response.writeHead(404).end(`no ${path}`);
    }
  });
  await new Promise((resolve, reject) => server.once('error', reject).listen(port, '127.0.0.1', resolve));
  return { server, address: `http://127.0.0.1:${server.address().port}/` };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { address } = await serve(Number(process.argv[2] ?? 8030));
  console.log(`serving ${address}examples/web/`);
}
