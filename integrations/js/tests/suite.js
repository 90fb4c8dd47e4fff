// The tests of the package for any host with WebGPU. tests/browser.mjs runs them in Chromium, and tests/node.mjs on Dawn.
import { load, Optimizer } from '../dist/index.js';

const STORAGE = 0x80;
const COPY_SRC = 0x4;
const COPY_DST = 0x8;
/** Allowed errors of rates and f32 parameters after the steps of a case, in units in the last place, as in tests/page and `wgpu-optim check`. */
const ULPS = 300;

let device;
let vectors;

function check(condition, message) {
  if (!condition) throw new Error(message);
}

/** Opens a device with the number of storage buffers per kernel that optimizers use. */
export async function open(gpu) {
  const adapter = await gpu.requestAdapter();
  check(adapter, 'there is no adapter');
  return adapter.requestDevice({
    requiredFeatures: adapter.features.has('subgroups') ? ['subgroups'] : [],
    requiredLimits: {
      maxStorageBuffersPerShaderStage: Math.min(10, adapter.limits.maxStorageBuffersPerShaderStage),
      maxStorageBufferBindingSize: adapter.limits.maxStorageBufferBindingSize,
    },
  });
}

function buffer(contents, label) {
  const bytes = typeof contents === 'number' ? contents : contents.byteLength;
  const made = device.createBuffer({ label: label ?? '', size: Math.max(bytes, 4), usage: STORAGE | COPY_SRC | COPY_DST });
  if (typeof contents !== 'number') device.queue.writeBuffer(made, 0, contents);
  return made;
}

/** Returns the contents of a buffer. */
export async function readback(device, source, Kind = Float32Array) {
  const staging = device.createBuffer({ size: source.size, usage: 0x1 | COPY_DST });
  const encoder = device.createCommandEncoder();
  encoder.copyBufferToBuffer(source, 0, staging, 0, source.size);
  device.queue.submit([encoder.finish()]);
  await staging.mapAsync(1);
  const values = new Kind(staging.getMappedRange().slice(0));
  staging.destroy();
  return values;
}

const read = (source, Kind) => readback(device, source, Kind);

function submit(record) {
  const encoder = device.createCommandEncoder();
  record(encoder);
  device.queue.submit([encoder.finish()]);
}

const step = (optimizer) => submit((encoder) => optimizer.encodeStep(encoder));

/** Returns the error of a call, which must fail. */
async function refusal(call) {
  try {
    await call();
  } catch (error) {
    return error;
  }
  throw new Error(`no error: ${call}`);
}

function ulp(size) {
  return 2 ** Math.floor(Math.log2(Math.max(Math.abs(size), 2 ** -126))) * 2 ** -23;
}

/** Returns the distance in units in the last place, and infinity for NaN. */
function distance(got, expected, size) {
  const ulps = Math.abs(got - expected) / ulp(size);
  return ulps >= 0 ? ulps : Infinity;
}

/** Returns the options of a test vector with these buffers. */
function over(options, param, grad) {
  const groups = options.groups.map((group) => ({
    ...group,
    tensors: group.tensors.map((tensor, index) => ({
      name: `${group.name} ${index}`,
      shape: tensor.shape,
      param: { buffer: param, ...tensor.param },
      grad: { buffer: grad, ...tensor.grad },
    })),
  }));
  return { ...options, groups };
}

function worst(got, expected, lengths) {
  let at = 0;
  let most = 0;
  for (const length of lengths) {
    const part = expected.slice(at, at + length);
    const largest = part.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    part.forEach((value, index) => (most = Math.max(most, distance(got[at + index], value, largest))));
    at += length;
  }
  return most;
}

/** Creates an optimizer of one tensor with `values`, and its buffers. */
async function small(options = {}, values = new Float32Array(8).fill(1)) {
  const param = buffer(values, 'w');
  const grad = buffer(new Float32Array(values.length).fill(0.5));
  const { name, tensor, ...rest } = options;
  const optimizer = await Optimizer.create(device, { groups: [{ name, tensors: [{ param, grad, ...tensor }] }], ...rest });
  return { optimizer, param, grad };
}

export const tests = {
  async 'the conformance vectors agree with the CPU path, and 16-bit codes have its bits'() {
    let values = 0;
    let farthest = 0;
    for (const test of vectors.cases.filter(({ options }) => options)) {
      if (test.options.tuning.partials === 'subgroup' && !device.features.has('subgroups')) continue;
      const [first] = test.buffers;
      const words = first.words ?? new Array(first.bytes / 4).fill(first.word);
      const param = buffer(Uint32Array.from(words));
      const grad = buffer(first.bytes);
      const optimizer = await Optimizer.create(device, over(test.options, param, grad));
      const Words = test.exact || test.words ? Uint32Array : Float32Array;
      for (let number = 0; number < test.gradients.length; number++) {
        device.queue.writeBuffer(grad, 0, new Words(test.gradients[number]));
        // Looks, if there are any, alternate with the steps.
        if (test.turns.length > 1 && number % 2) submit((encoder) => optimizer.encodeLook(encoder));
        else step(optimizer);
        const rates = await read(optimizer.learningRates);
        test.rates[number].forEach((expected, group) => {
          const ulps = distance(rates[group], expected, expected);
          farthest = Math.max(farthest, ulps);
          check(ulps <= ULPS, `${test.name}, step ${number}, ${test.groups[group]}: rate ${rates[group]} and not ${expected}`);
        });
        values += test.rates[number].length;
      }
      if (test.exact) {
        const got = await read(param, Uint32Array);
        test.parameters.forEach((word, index) => check(got[index] === word, `${test.name}: word ${index} differs`));
      } else {
        const ulps = worst(await read(param), test.parameters, test.lengths);
        farthest = Math.max(farthest, ulps);
        check(ulps <= ULPS, `${test.name}: ${ulps} ulps`);
      }
      values += test.parameters.length;
      optimizer.destroy();
    }
    check(values > 1000, 'too few values');
    return `${values} values, at most ${farthest.toFixed(1)} ulps off`;
  },

  async 'a checkpoint made in Rust is resumed'() {
    const { options, bytes, step: at, gradients, rates, parameters } = vectors.checkpoint;
    const lengths = options.groups.flatMap((group) => group.tensors.map((tensor) => tensor.param.size / 4));
    const param = buffer(4 * parameters.length);
    const grad = buffer(4 * parameters.length);
    const optimizer = await Optimizer.create(device, over(options, param, grad));
    // The names of the tensors differ between the test and the file.
    const differs = await refusal(() => optimizer.load(Uint8Array.from(bytes), { parameters: true }));
    check(differs.kind === 'CheckpointDiffers' && differs.message.includes('tensor'), differs.message);
    optimizer.destroy();

    const named = over(options, param, grad);
    named.groups.forEach((group) => group.tensors.forEach((tensor, index) => (tensor.name = vectors.checkpoint.names[group.name][index])));
    const resumed = await Optimizer.create(device, named);
    const loaded = await resumed.load(Uint8Array.from(bytes), { parameters: true });
    check(loaded.step === at && loaded.differences.length === 0, JSON.stringify(loaded));
    for (const [number, expected] of rates.entries()) {
      device.queue.writeBuffer(grad, 0, Float32Array.from(gradients[number]));
      step(resumed);
      const got = await read(resumed.learningRates);
      expected.forEach((rate, group) => check(distance(got[group], rate, rate) <= 8, `step ${number}: rate ${got[group]} and not ${rate}`));
    }
    const ulps = worst(await read(param), parameters, lengths);
    check(ulps <= 8, `${ulps} ulps`);
    const { records } = await resumed.drainRecords();
    check(records[0].step === at, 'records go on');
    return `${ulps.toFixed(1)} ulps after ${rates.length} steps`;
  },

  async 'a checkpoint that is saved and loaded has the same bits'() {
    const options = { rule: 'adamw', averaging: { name: 'polynomialDecay', eta: 8, start: 0 } };
    const values = Float32Array.from({ length: 300 }, (_, index) => Math.sin(index));
    const first = await small(options, values);
    for (let number = 0; number < 3; number++) step(first.optimizer);
    const bytes = await first.optimizer.save({ parameters: true, notes: { epoch: '1' } });
    const second = await small(options, new Float32Array(300));
    const { step: at, notes } = await second.optimizer.load(bytes, { parameters: true });
    check(at === 3 && notes.epoch === '1', JSON.stringify({ at, notes }));
    for (const { optimizer } of [first, second]) step(optimizer);
    const [one, other] = await Promise.all([first, second].map(({ param }) => read(param, Uint32Array)));
    check(one.every((word, index) => word === other[index]) && one.some((word) => word), 'the bits differ');
    bytes[bytes.length - 1] ^= 1;
    const damaged = await refusal(() => second.optimizer.load(bytes));
    check(damaged.kind === 'CheckpointDamaged', damaged.message);
  },

  async 'every rule and regime is built with its numbers given'() {
    const { catalogue } = await import('../dist/wgpu_optim.js');
    await load();
    const { rules, regimes } = JSON.parse(catalogue());
    const given = (fields) => Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== null));
    const matrices = { tensor: { shape: [2, 4] } };
    for (const [name, fields] of Object.entries(rules)) {
      const { optimizer } = await small({ rule: { name, ...given(fields) }, ...matrices });
      step(optimizer);
      const [record] = (await optimizer.drainRecords()).records;
      check(record.learningRate > 0 && record.norm > 1.4 && record.norm < 1.5, `${name}: ${record.sentence}`);
      optimizer.destroy();
    }
    const loss = buffer(Float32Array.of(1));
    for (const [name, fields] of Object.entries(regimes)) {
      const rule = name === 'prodigy' ? 'signsgd' : 'sgd';
      const averaging = name === 'schedule-free-plus' ? 'scheduleFree' : 'off';
      const { optimizer } = await small({ rule, averaging, loss, regime: { name, ...given(fields) } });
      step(optimizer);
      check((await optimizer.drainRecords()).records.length === 1, name);
      optimizer.destroy();
    }
    return `${Object.keys(rules).length} rules, ${Object.keys(regimes).length} regimes`;
  },

  async 'settings reach the optimizer'() {
    const rate = { name: 'fixed', learningRate: 0.5 };
    const { optimizer, param } = await small({ rule: 'sgd', regime: rate, schedule: { name: 'step', every: 1, factor: 0.5 } });
    step(optimizer);
    step(optimizer);
    check((await read(param))[0] === 1 - 0.5 * 0.5 - 0.25 * 0.5, 'a schedule');
    optimizer.control('all', { learningRateFactor: 2, clipNorm: Infinity });
    check(optimizer.controls('all').learningRateFactor === 2, 'controls');
    step(optimizer);
    check((await read(param))[0] === 0.625 - 0.125, 'a factor');
    optimizer.controlAll({ frozen: true });
    step(optimizer);
    check((await read(param))[0] === 0.5, 'frozen');
    const { records } = await optimizer.drainRecords();
    check(records.length === 4 && records[3].flags.includes('frozen'), JSON.stringify(records.map((record) => record.flags)));
    check(records[0].terms.norm === 0 && records[1].sentence.startsWith('step 1: '), records[1].sentence);

    const free = await small({ averaging: 'scheduleFree' });
    for (let number = 0; number < 4; number++) step(free.optimizer);
    const before = await read(free.param);
    const average = buffer(32);
    submit((encoder) => free.optimizer.encodeCopyAverages(encoder, 0, average));
    submit((encoder) => free.optimizer.encodeSwapAverages(encoder));
    check(free.optimizer.averagesAreSwapped, 'swapped');
    const swapped = await read(free.param);
    check(swapped[0] !== before[0] && swapped[0] === (await read(average))[0], 'the average');
    const late = await refusal(() => step(free.optimizer));
    check(late.kind === 'Call', late.message);
    submit((encoder) => {
      const pass = encoder.beginComputePass();
      free.optimizer.encodeSwapAverages(pass);
      free.optimizer.encodeStep(pass);
      pass.end();
    });
    check(free.optimizer.averagesAreSwapped === false, 'swapped back');

    const codes = await small({ rule: 'adamw', state: 'bits8', rounding: { name: 'stochastic', seed: 1 } });
    step(codes.optimizer);
    check((await read(codes.param))[0] < 1, '8-bit state');

    const telemetry = await small({ telemetry: true });
    step(telemetry.optimizer);
    const [norms] = (await telemetry.optimizer.drainRecords()).tensors;
    check(norms.parameterNorm > 0 && norms.stepNorm > 0, JSON.stringify(norms));
  },

  async 'errors name the culprit and the way out'() {
    const short = { buffer: buffer(64), size: 32 };
    for (const [options, kind, ...words] of [
      [{ rule: 'adam' }, 'Build', 'rule "adam"', '"adamw"'],
      [{ rule: { name: 'adamw', beta3: 1 } }, 'Build', 'rule adamw', 'beta3', 'beta1, beta2, epsilon'],
      [{ rule: { name: 'adamw', beta1: NaN } }, 'Build', 'beta1', 'finite number'],
      [{ rule: { name: 'adamw', beta1: 1 } }, 'Build', 'rule adamw', 'beta1', 'below 1'],
      [{ regime: 'magic' }, 'Build', 'regime "magic"', '"seesaw"'],
      [{ clipNrom: 1 }, 'Build', 'clipNrom'],
      [{ clipNorm: -1 }, 'Build', 'group "all"', 'clip'],
      [{ schedule: { name: 'linear', warmup: 0 } }, 'Build', 'schedule', 'steps'],
      [{ averaging: 'sometimes' }, 'Build', 'averaging', 'scheduleFree'],
      [{ rule: { name: 'sgdm' }, averaging: 'scheduleFree' }, 'Build', 'group "all"', 'momentum', '"sgd"'],
      [{ regime: 'polyak' }, 'Build', 'loss'],
      [{ tensor: { name: 'head', grad: short, param: { ...short, size: 30 } } }, 'Build', 'tensor "head"'],
      [{ tensor: { name: 'head', grad: { ...short, offset: 48 } } }, 'Build', 'tensor "head"', 'gradient', 'buffer of 64 bytes'],
      [{ tensor: { name: 'head', grad: { ...short, type: 'f64' } } }, 'Build', 'tensor "head"', '"bf16"'],
      [{ tensor: { name: 'head', grad: {} } }, 'Build', 'gradient of tensor "head"', 'GPUBuffer'],
      [{ tensor: { name: 'head', shape: [3, 3] } }, 'Build', 'tensor "head"'],
      [{ rule: 'muon' }, 'Build', 'tensor "w"', 'otherTensors'],
      [{ tuning: { workgroupSize: 48 } }, 'Build', 'power of two'],
    ]) {
      const error = await refusal(() => small(options));
      const missing = words.filter((word) => !error.message.includes(word));
      check(error.kind === kind && error.name === 'OptimizerError' && !missing.length && !error.message.includes('::'), `${error.kind}: ${error.message}; missing: ${missing}`);
    }
    const shared = buffer(64);
    const aliased = await refusal(() =>
      Optimizer.create(device, { groups: [{ tensors: [{ param: { buffer: shared, size: 32 }, grad: { buffer: shared, offset: 32 } }] }] }));
    check(aliased.message.includes('another buffer'), aliased.message);
    const plain = device.createBuffer({ size: 32, usage: COPY_DST });
    const usage = await refusal(() => small({ tensor: { grad: plain } }));
    check(usage.message.includes('GPUBufferUsage.STORAGE'), usage.message);
    const { optimizer } = await small();
    const group = await refusal(() => optimizer.control('none', { frozen: true }));
    check(group.kind === 'Call' && group.message.includes('"all"'), group.message);
    const control = await refusal(() => optimizer.control('all', { learningRate: 1 }));
    check(control.message.includes('learningRateFactor'), control.message);
    const absent = await refusal(() => submit((encoder) => optimizer.encodeStep(encoder, [3])));
    check(absent.kind === 'Call', absent.message);
    optimizer.destroy();
    await refusal(() => step(optimizer));
  },

  async 'a NaN skips the step, and the record names it'() {
    const { optimizer, param, grad } = await small({ tensor: { name: 'head' } });
    step(optimizer);
    const before = await read(param, Uint32Array);
    device.queue.writeBuffer(grad, 12, Float32Array.of(NaN));
    step(optimizer);
    const after = await read(param, Uint32Array);
    check(before.every((word, index) => word === after[index]), 'something moved');
    const { records } = await optimizer.drainRecords();
    const { tensor, element } = records[1].nonfinite;
    check(records[1].skipped && optimizer.tensors[tensor].name === 'head' && element === 3, records[1].sentence);
    return records[1].sentence;
  },

  async 'training halts and is resumed'() {
    const { optimizer, grad } = await small({ nonfinitePolicy: { name: 'error', after: 2 } });
    device.queue.writeBuffer(grad, 0, Float32Array.of(Infinity));
    for (let number = 0; number < 3; number++) step(optimizer);
    const halted = await refusal(() => optimizer.drainRecords());
    check(halted.kind === 'Halted', halted.message);
    await optimizer.resume();
    device.queue.writeBuffer(grad, 0, Float32Array.of(0.5));
    step(optimizer);
    const { records } = await optimizer.drainRecords();
    check(records.length === 4 && !records[3].skipped, 'resumed');
  },

  async 'records are drained while steps go on'() {
    const { optimizer } = await small({ recordSteps: 8 });
    const drains = [];
    for (let number = 0; number < 12; number++) {
      step(optimizer);
      if (number % 3 === 2) drains.push(optimizer.drainRecords());
    }
    const drained = await Promise.all(drains);
    const steps = drained.flatMap(({ records }) => records.map((record) => record.step));
    const lost = drained.reduce((sum, { lostSteps }) => sum + lostSteps, 0);
    check(steps.length + lost === 12 && steps.at(-1) === 11, JSON.stringify(steps));
    check(steps.every((step, index) => !index || step > steps[index - 1]), 'order');
  },

  async 'tensors of length zero, and 200 tensors'() {
    const param = buffer(new Float32Array(256 * 200).fill(1));
    const grad = buffer(new Float32Array(256 * 200).fill(0.5));
    const tensors = Array.from({ length: 200 }, (_, index) => {
      const slice = { offset: 1024 * index, size: index % 10 ? 4 * (1 + index) : 0 };
      return { name: `t${index}`, param: { buffer: param, ...slice }, grad: { buffer: grad, ...slice } };
    });
    const optimizer = await Optimizer.create(device, { groups: [{ tensors }] });
    check(optimizer.tensors.length === 200 && optimizer.tensors[10].elements === 0, 'tensors');
    step(optimizer);
    const got = await read(param);
    tensors.forEach(({ param: { offset, size } }, index) => {
      const [first, behind] = [got[offset / 4], got[(offset + size) / 4]];
      check(size === 0 ? first === 1 : first < 1 && behind === 1, `tensor ${index}: ${first}, ${behind}`);
    });
    const none = await Optimizer.create(device, { groups: [{ tensors: [{ param: { buffer: param, size: 0 }, grad: { buffer: grad, size: 0 } }] }] });
    step(none);
    check((await none.drainRecords()).records.length === 1, 'a record without elements');
  },

  async 'a step submits, maps and allocates nothing'() {
    const { optimizer } = await small({ rule: 'adamw' }, new Float32Array(100_000));
    const calls = [];
    const proxied = (target, names) =>
      names.map((name) => {
        const method = target[name];
        target[name] = (...given) => (calls.push(name), method.apply(target, given));
        return () => delete target[name];
      });
    const encoder = device.createCommandEncoder();
    const names = ['createBuffer', 'createBindGroup', 'createComputePipeline', 'createComputePipelineAsync', 'createShaderModule', 'createCommandEncoder'];
    const restore = [...proxied(device, names), ...proxied(device.queue, ['submit', 'writeBuffer'])];
    optimizer.encodeStep(encoder);
    optimizer.encodeStep(encoder);
    restore.forEach((undo) => undo());
    check(calls.length === 0, calls.join(', '));
    device.queue.submit([encoder.finish()]);
    check((await optimizer.drainRecords()).records.length === 2, 'two steps in one submit');
  },

  async 'a step of a small model is one dispatch'() {
    const STEPS = 64;
    const found = [];
    // A model with one more quad than the largest small model takes four dispatches.
    for (const [elements, dispatches] of [[256, 1], [1024, 1], [4096, 1], [4100, 4]]) {
      const { optimizer } = await small({}, new Float32Array(elements).fill(1));
      const record = () => submit((encoder) => {
        const pass = encoder.beginComputePass();
        let count = 0;
        const { dispatchWorkgroups } = pass;
        pass.dispatchWorkgroups = (...size) => (count++, dispatchWorkgroups.apply(pass, size));
        for (let number = 0; number < STEPS; number++) optimizer.encodeStep(pass);
        pass.end();
        check(count === dispatches * STEPS, `${elements} elements: ${count} dispatches`);
      });
      const times = [];
      for (let round = 0; round < 6; round++) {
        await device.queue.onSubmittedWorkDone();
        const start = performance.now();
        record();
        await device.queue.onSubmittedWorkDone();
        times.push((performance.now() - start) / STEPS);
      }
      // The first submit is slower.
      const median = times.slice(1).sort((a, b) => a - b)[2];
      found.push(`${elements} elements in ${dispatches}: ${(1000 * median).toFixed(0)} µs`);
      optimizer.destroy();
    }
    return found.join(', ');
  },

  async 'a lost device is told'(gpu) {
    const shared = device;
    device = await open(gpu);
    try {
      const { optimizer } = await small();
      step(optimizer);
      device.destroy();
      await device.lost;
      for (const call of [() => optimizer.encodeStep(device.createCommandEncoder()), () => optimizer.drainRecords(), () => optimizer.save(), () => small()]) {
        const error = await refusal(call);
        check(error.kind === 'DeviceLost', `${call}: ${error.kind}: ${error.message}`);
      }
    } finally {
      device = shared;
    }
  },
};

/** Runs the tests, and returns a result for each. */
export async function run(gpu, given, wanted = '') {
  vectors = given;
  device = await open(gpu);
  const mistakes = [];
  device.addEventListener('uncapturederror', (event) => mistakes.push(event.error.message));
  const lines = [];
  for (const [name, test] of Object.entries(tests)) {
    if (!name.includes(wanted)) continue;
    const start = performance.now();
    let line;
    try {
      const found = await test(gpu);
      await device.queue.onSubmittedWorkDone();
      if (mistakes.length) throw new Error(mistakes.splice(0).join('\n'));
      line = { name, ok: true, found, seconds: (performance.now() - start) / 1000 };
    } catch (error) {
      mistakes.length = 0;
      line = { name, ok: false, found: `${error.stack ?? error}` };
    }
    lines.push(line);
  }
  return lines;
}
