#!/usr/bin/env node
// What tests/page asks of a browser, without one: Dawn from npm's package `webgpu`, and a document that nobody sees. Called by tests/dawn as a
// browser would be, with the address at the end; WEBGPU is the package's folder, SWIFTSHADER the driver.

process.env.VK_DRIVER_FILES = process.env.SWIFTSHADER;
const { create, globals } = await import(`${process.env.WEBGPU}/index.js`);
const address = new URL(process.argv.at(-1));
const element = () => ({ append() {} });
const named = {};
const overNetwork = globalThis.fetch;
const page = {
    ...globals,
    location: address,
    navigator: { gpu: create([]), userAgent: `Node ${process.versions.node}` },
    document: { createElement: element, getElementById: (id) => id === "report" ? null : named[id] ??= element() },
    fetch: (path, options) => overNetwork(new URL(path, address), options),
};
for (const [name, value] of Object.entries(page)) {
    // Node has some of them itself, and does not let them be assigned to.
    Object.defineProperty(globalThis, name, { value, configurable: true, writable: true });
}
const script = await (await fetch("host.js")).text();
await import(`data:text/javascript,${encodeURIComponent(script)}`);
process.exit();
