// Compares this package with TensorFlow.js on the same device: steps of SGD and Adam must agree, and times are reported. Bundled and run by tests/browser.mjs.
import * as tf from '@tensorflow/tfjs-core';
import { WebGPUBackend } from '@tensorflow/tfjs-backend-webgpu';
import { Optimizer } from 'wgpu-optim';
import { open, readback } from './suite.js';

const STORAGE = 0x80;
const COPY_SRC = 0x4;
const COPY_DST = 0x8;
const RATE = 0.0625;
const EPSILON = 1e-7;
const PARITY_STEPS = 10;
const ROUNDS = 5;
const REPEATS = 3;

// `off` is the allowed distance of the parameters of TensorFlow.js from steps in f64. Its Adam computes 1 - 0.999^k in f32, with an error of up to 6e-5
// at the first step. Because of the root, the relative error of a step is half of this: 1.9e-6 at this rate, and 1 + 1/2 + … + 1/10 times that after ten
// steps.
const RULES = {
  SGD: { rule: 'sgd', theirs: () => tf.train.sgd(RATE), step: (w, g) => w - RATE * g, off: 1e-6 },
  Adam: {
    rule: { name: 'adamw', epsilon: EPSILON },
    theirs: () => tf.train.adam(RATE, 0.9, 0.999, EPSILON),
    // The gradient is the same in each step, so that it equals its first moment, and its square the second.
    step: (w, g) => w - (RATE * g) / (Math.abs(g) + EPSILON),
    off: 8e-6,
  },
};

function wave(length, phase) {
  return Float32Array.from({ length }, (_, index) => Math.sin(0.37 * index + phase));
}

/** Creates both optimizers over tensors of these lengths with the same values. */
async function both(device, { rule, theirs }, lengths) {
  const usage = STORAGE | COPY_SRC | COPY_DST;
  const total = lengths.reduce((sum, length) => sum + Math.ceil(length / 64) * 64, 0);
  const [param, grad] = [0, 1].map(() => device.createBuffer({ size: 4 * total, usage }));
  let at = 0;
  const [tensors, variables, gradients] = [[], [], {}];
  lengths.forEach((length, index) => {
    const [w, g] = [wave(length, index), wave(length, index + 0.5)];
    device.queue.writeBuffer(param, at, w);
    device.queue.writeBuffer(grad, at, g);
    const slice = { offset: at, size: 4 * length };
    tensors.push({ name: `t${index}`, param: { buffer: param, ...slice }, grad: { buffer: grad, ...slice } });
    variables.push(tf.variable(tf.tensor1d(w), true, `t${index} of ${Math.random()}`));
    gradients[variables[index].name] = tf.tensor1d(g);
    at += 4 * Math.ceil(length / 64) * 64;
  });
  const optimizer = await Optimizer.create(device, {
    rule, decoupledWeightDecay: 0, regime: { name: 'fixed', learningRate: RATE }, groups: [{ tensors }],
  });
  const other = theirs();
  return {
    ours() {
      const encoder = device.createCommandEncoder();
      optimizer.encodeStep(encoder);
      device.queue.submit([encoder.finish()]);
    },
    theirs: () => other.applyGradients(gradients),
    async parameters() {
      const values = await readback(device, param);
      return [tensors.map(({ param: { offset, size } }) => values.subarray(offset / 4, (offset + size) / 4)),
        await Promise.all(variables.map((variable) => variable.data()))];
    },
    end() {
      optimizer.destroy();
      other.dispose();
      [...variables, ...Object.values(gradients)].forEach((tensor) => tensor.dispose());
      [param, grad].forEach((buffer) => buffer.destroy());
    },
  };
}

/** Returns the median milliseconds per step of both, which take turns. */
async function times(device, pair) {
  const found = { ours: [], theirs: [] };
  for (let round = -1; round < ROUNDS; round++) {
    for (const who of ['ours', 'theirs']) {
      await device.queue.onSubmittedWorkDone();
      const start = performance.now();
      for (let i = 0; i < REPEATS; i++) pair[who]();
      // The backend of TensorFlow.js submits its recorded commands when a tensor is read, or here.
      if (tf.backend().commandEncoder) {
        tf.backend().endComputePassEncoder();
        tf.backend().submitQueue();
      }
      await device.queue.onSubmittedWorkDone();
      if (round >= 0) found[who].push((performance.now() - start) / REPEATS);
    }
  }
  return Object.fromEntries(Object.entries(found).map(([who, times]) => [who, times.sort((a, b) => a - b)[ROUNDS >> 1]]));
}

/** Returns the largest distance between parameters. */
function farthest(one, other) {
  let most = 0;
  one.forEach((values, tensor) => values.forEach((value, index) => {
    const distance = Math.abs(value - other[tensor][index]);
    // NaN is kept.
    most = distance <= most ? most : distance;
  }));
  return most;
}

export async function run(gpu) {
  const device = await open(gpu);
  // The kernels are registered under this name. TensorFlow.js would open its own device for it.
  tf.removeBackend('webgpu');
  tf.registerBackend('webgpu', () => new WebGPUBackend(device, device.adapterInfo));
  await tf.setBackend('webgpu');
  await tf.ready();
  const lines = [];
  for (const [name, rule] of Object.entries(RULES)) {
    const lengths = [1, 5, 300, 4097];
    const pair = await both(device, rule, lengths);
    for (let step = 0; step < PARITY_STEPS; step++) {
      pair.ours();
      pair.theirs();
    }
    const found = await pair.parameters();
    pair.end();
    const exact = lengths.map((length, index) => {
      const g = wave(length, index + 0.5);
      return Array.from(wave(length, index), (w, at) => {
        for (let step = 0; step < PARITY_STEPS; step++) w = rule.step(w, g[at]);
        return w;
      });
    });
    const [ours, theirs] = found.map((values) => farthest(exact, values));
    lines.push({
      name: `${name} takes the steps of f64, and TensorFlow.js nearly`,
      ok: ours <= 1e-6 && theirs <= rule.off,
      found: `${ours.toExponential(1)} and ${theirs.toExponential(1)} apart after ${PARITY_STEPS} steps`,
    });
    for (const [what, lengths] of [['one tensor of 1,048,576', [1 << 20]], ['200 tensors of 1,000', new Array(200).fill(1000)]]) {
      const pair = await both(device, rule, lengths);
      const { ours, theirs } = await times(device, pair);
      // Otherwise steps that were not submitted would take no time.
      const apart = farthest(...(await pair.parameters()));
      pair.end();
      lines.push({ name: `${name}, ${what}`, ok: apart <= 1e-4, found: `${ours.toFixed(2)} ms a step, TensorFlow.js ${theirs.toFixed(2)} ms` });
    }
  }
  return lines;
}
