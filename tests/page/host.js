// A host for the kernels: buffers, pipelines, dispatches. What they are, and what must come of them, is in vectors.json.

const ULPS = 300; // of the largest parameter of a group, and of a rate: as `wgpu-optim check` allows between a device and what it should be

const byId = (id) => document.getElementById(id);
const query = new URLSearchParams(location.search);

function contentsOf(description) {
    const words = new Uint32Array(description.bytes / 4);
    if (description.words) words.set(description.words);
    else words.fill(description.word);
    return words;
}

class Host {
    constructor(device, kernels) {
        this.device = device;
        this.kernels = kernels;
        this.compiled = new Map();
    }

    // Compiles a kernel, with bind group layouts as the crate makes them; a mistake is an exception that has the compiler's words.
    async compile(index) {
        if (this.compiled.has(index)) return this.compiled.get(index);
        const { wgsl, entry, constants, layout } = this.kernels[index];
        const module = this.device.createShaderModule({ code: wgsl });
        const layouts = layout.map((group) => this.device.createBindGroupLayout({
            entries: group.map(([binding, type]) => ({ binding, visibility: GPUShaderStage.COMPUTE, buffer: { type } })),
        }));
        let pipeline;
        try {
            pipeline = await this.device.createComputePipelineAsync({
                layout: this.device.createPipelineLayout({ bindGroupLayouts: layouts }),
                compute: { module, entryPoint: entry, constants },
            });
        } catch (error) {
            const messages = (await module.getCompilationInfo()).messages.filter((m) => m.type === "error");
            const words = messages.map((m) => `line ${m.lineNum}: ${m.message}`).slice(0, 3).join("; ");
            throw new Error(`${entry} ${JSON.stringify(constants)}: ${words || error.message}`);
        }
        const kernel = { pipeline, layouts };
        this.compiled.set(index, kernel);
        return kernel;
    }

    buffer(description) {
        const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
        const buffer = this.device.createBuffer({ size: description.bytes, usage });
        this.device.queue.writeBuffer(buffer, 0, contentsOf(description));
        return buffer;
    }

    // The dispatches of a step, ready to be recorded.
    async step(dispatches, buffers) {
        const launches = [];
        for (const { kernel, groups, workgroups } of dispatches) {
            const { pipeline, layouts } = await this.compile(kernel);
            const bound = groups.map((entries, group) => this.device.createBindGroup({
                layout: layouts[group],
                entries: entries.map(([binding, buffer, offset, size]) => ({
                    binding,
                    resource: { buffer: buffers[buffer], offset, size },
                })),
            }));
            launches.push({ pipeline, bound, workgroups });
        }
        return launches;
    }

    submit(launches, times = 1) {
        const encoder = this.device.createCommandEncoder();
        const pass = encoder.beginComputePass();
        for (let i = 0; i < times; i++) {
            for (const { pipeline, bound, workgroups } of launches) {
                pass.setPipeline(pipeline);
                bound.forEach((group, index) => pass.setBindGroup(index, group));
                pass.dispatchWorkgroups(workgroups);
            }
        }
        pass.end();
        this.device.queue.submit([encoder.finish()]);
    }

    async read(buffer) {
        const usage = GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST;
        const staging = this.device.createBuffer({ size: buffer.size, usage });
        const encoder = this.device.createCommandEncoder();
        encoder.copyBufferToBuffer(buffer, 0, staging, 0, buffer.size);
        this.device.queue.submit([encoder.finish()]);
        await staging.mapAsync(GPUMapMode.READ);
        const values = new Float32Array(staging.getMappedRange().slice(0));
        staging.destroy();
        return values;
    }
}

// The unit in the last place of an f32 of this size.
function ulp(size) {
    return 2 ** Math.floor(Math.log2(Math.max(Math.abs(size), 2 ** -126))) * 2 ** -23;
}

// Distances in units in the last place; what is not a number is infinitely far.
function distance(got, expected, size) {
    const ulps = Math.abs(got - expected) / ulp(size);
    return ulps >= 0 ? ulps : Infinity;
}

// Runs a case; a row for each of its groups.
async function runCase(host, test) {
    const buffers = test.buffers.map((description) => host.buffer(description));
    const [parameters, gradients, rates] = buffers;
    // A step; where a regime takes looks, a step and a look in turn.
    const turns = [];
    for (const dispatches of test.turns) turns.push(await host.step(dispatches, buffers));
    const rows = test.groups.map((name) => ({ geometry: test.name, name, values: 0, ulps: 0 }));
    for (let step = 0; step < test.gradients.length; step++) {
        const Words = test.exact || test.words ? Uint32Array : Float32Array;
        host.device.queue.writeBuffer(gradients, 0, new Words(test.gradients[step]));
        host.submit(turns[step % turns.length]);
        const got = await host.read(rates);
        test.rates[step].forEach((expected, group) => {
            rows[group].values += 1;
            rows[group].ulps = Math.max(rows[group].ulps, distance(got[group], expected, expected));
        });
    }
    const read = await host.read(parameters);
    const got = test.exact ? new Uint32Array(read.buffer) : read;
    if (query.has("fault")) got[17] += 0.01;
    let at = 0;
    rows.forEach((row, group) => {
        const expected = test.parameters.slice(at, at + test.lengths[group]);
        const largest = expected.reduce((a, b) => Math.max(a, Math.abs(b)), 0);
        expected.forEach((value, i) => {
            // Words of 16-bit numbers are right or wrong.
            const wrong = got[at + i] === value ? 0 : Infinity;
            row.ulps = Math.max(row.ulps, test.exact ? wrong : distance(got[at + i], value, largest));
        });
        row.values += expected.length;
        row.good = row.ulps <= ULPS;
        at += expected.length;
    });
    buffers.forEach((buffer) => buffer.destroy());
    return rows;
}

// Nanoseconds per parameter: the median of some rounds.
async function time(host, row, elements) {
    const buffers = row.buffers.map((description) => host.buffer(description));
    const launches = await host.step(row.dispatches, buffers);
    host.submit(launches);
    await host.device.queue.onSubmittedWorkDone();
    const times = [];
    for (let round = 0; round < 5; round++) {
        const start = performance.now();
        host.submit(launches, 4);
        await host.device.queue.onSubmittedWorkDone();
        times.push((performance.now() - start) / 4);
    }
    buffers.forEach((buffer) => buffer.destroy());
    times.sort((a, b) => a - b);
    return times[2] * 1e6 / elements;
}

async function run() {
    if (!navigator.gpu) throw new Error("this browser has no navigator.gpu");
    const adapter = await navigator.gpu.requestAdapter();
    if (!adapter) throw new Error("navigator.gpu has no adapter");
    const subgroups = adapter.features.has("subgroups");
    const limits = adapter.limits;
    const device = await adapter.requestDevice({
        requiredFeatures: subgroups ? ["subgroups"] : [],
        requiredLimits: { maxStorageBuffersPerShaderStage: Math.min(10, limits.maxStorageBuffersPerShaderStage) },
    });
    const mistakes = [];
    device.addEventListener("uncapturederror", (event) => mistakes.push(event.error.message));
    const { vendor, architecture, device: model, description } = adapter.info;
    const report = {
        adapter: [description || model, vendor, architecture].filter((word) => word).join(", "),
        agent: navigator.userAgent, rows: [], times: [], mistakes,
    };
    const vectors = await (await fetch("vectors.json")).json();
    const host = new Host(device, vectors.kernels);
    const can = (dispatches) => dispatches.every(({ kernel }) => subgroups || !vectors.kernels[kernel].subgroups);

    report.kernels = 0;
    report.left_out = 0;
    if (query.has("fault")) {
        // Whether a fault is told, and nothing else.
        report.rows = await runCase(host, vectors.cases[0]);
        vectors.cases = vectors.kernels = vectors.throughput.rows = [];
    }
    for (const [index, kernel] of vectors.kernels.entries()) {
        if (kernel.subgroups && !subgroups) { report.left_out += 1; continue; }
        byId("state").textContent = `Compiling kernel ${index + 1} of ${vectors.kernels.length}…`;
        try {
            await host.compile(index);
            report.kernels += 1;
        } catch (error) {
            mistakes.push(error.message);
        }
    }
    for (const test of vectors.cases) {
        if (!can(test.turns.flat())) continue;
        byId("state").textContent = `Running ${test.name}…`;
        report.rows.push(...await runCase(host, test));
    }
    byId("state").textContent = "Timing…";
    const { elements, rows } = vectors.throughput;
    report.elements = elements;
    for (const row of rows) {
        report.times.push({ name: row.name, bytes: row.bytes, ns: await time(host, row, elements) });
    }
    report.values = report.rows.reduce((sum, row) => sum + row.values, 0);
    report.failed = report.rows.filter((row) => !row.good).length + mistakes.length;
    return report;
}

function table(heads, rows) {
    const cell = (tag, [text, style]) => {
        const cell = document.createElement(tag);
        cell.textContent = text;
        cell.className = style;
        return cell;
    };
    const row = (tag, cells) => {
        const row = document.createElement("tr");
        row.append(...cells.map((content) => cell(tag, content)));
        return row;
    };
    const table = document.createElement("table");
    table.append(row("th", heads), ...rows.map((cells) => row("td", cells)));
    return table;
}

function title(text) {
    const title = document.createElement("h2");
    title.textContent = text;
    return title;
}

function show(report) {
    byId("adapter").textContent = `${report.adapter} — ${report.agent}`;
    const words = report.failed
        ? `${report.failed} of ${report.rows.length} rows failed, or did not compile`
        : `All ${report.rows.length} rows agree with the CPU path in ${report.values} values; ${report.kernels} kernels compiled`;
    const left = report.left_out ? `, ${report.left_out} with subgroups left out` : "";
    byId("state").textContent = `${words}${left}.`;
    byId("state").className = report.failed ? "bad" : "good";
    const tables = byId("tables");
    // Falsified runs, and those that failed, have no times.
    if (report.mistakes.length) {
        const shown = report.mistakes.slice(0, 10).map((words) => [[words, "bad"]]);
        tables.append(title("Mistakes"), table([["what the browser says", ""]], shown));
    }
    const copy = report.times[0];
    if (copy) tables.append(title(`Throughput, ${report.elements} parameters`), table(
        [["step", ""], ["ns per parameter", "number"], ["GB/s", "number"], ["% of copy", "number"]],
        report.times.map(({ name, bytes, ns }) => [
            [name, ""], [ns.toFixed(2), "number"], [(bytes / ns).toFixed(1), "number"],
            [(100 * (bytes / ns) / (copy.bytes / copy.ns)).toFixed(0), "number"],
        ]),
    ));
    tables.append(title("Conformance"), table(
        [["sums", ""], ["rule, regime", ""], ["values", "number"], [`worst ulps (at most ${ULPS})`, "number"], ["", ""]],
        report.rows.map((row) => [
            [row.geometry, ""], [row.name, ""], [row.values, "number"], [row.ulps.toFixed(1), "number"],
            row.good ? ["agrees", "good"] : ["FAILS", "bad"],
        ]),
    ));
    return [
        byId("adapter").textContent, byId("state").textContent, ...report.mistakes.slice(0, 10),
        ...report.rows.map((row) => `${row.geometry}, ${row.name}: ${row.values} values, ${row.ulps.toFixed(1)} ulps${row.good ? "" : ", FAILS"}`),
        ...report.times.map(({ name, ns }) => `${name}: ${ns.toFixed(2)} ns per parameter`),
    ].join("\n");
}

const given = byId("report");
if (given) {
    show(JSON.parse(given.textContent));
} else {
    let report;
    try {
        report = await run();
    } catch (error) {
        report = { adapter: "", agent: navigator.userAgent, rows: [], times: [], mistakes: [String(error)], failed: 1, values: 0 };
    }
    report.text = show(report);
    try {
        await fetch("report", { method: "POST", body: JSON.stringify(report) });
    } catch {
        // The page can be served by anyone.
    }
}
