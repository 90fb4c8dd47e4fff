// An MLP 64-128-10 on handwritten digits. Its kernels are those of `wgpu-optim train` (cli/shaders/train).
import { Optimizer } from 'wgpu-optim';
import { buffer, injections, kernel, Reader, text } from './kernels.js';

const [INPUTS, HIDDEN, CLASSES] = [64, 128, 10];
const BATCH = 64;
/** Number of held-out digits that are shown. One more row is the digit that the visitor draws. */
export const SAMPLES = 40;
const SHADERS = '/cli/shaders/train/';

const TENSORS = [
  ['hidden weights', INPUTS * HIDDEN],
  ['hidden biases', HIDDEN],
  ['output weights', HIDDEN * CLASSES],
  ['output biases', CLASSES],
];
const OFFSETS = TENSORS.map((_, index) => TENSORS.slice(0, index).reduce((sum, [, length]) => sum + length, 0));
const PARAMETERS = OFFSETS.at(-1) + 12;

/** Loads the digits: values from 0 to 1, and labels. Every fifth row is held out. */
async function load() {
  const packed = await fetch('/data/digits.csv.gz');
  const csv = await new Response(packed.body.pipeThrough(new DecompressionStream('gzip'))).text();
  const rows = csv.trim().split('\n').map((line) => line.split(',').map(Number));
  const split = (rows) => ({
    rows: rows.length,
    values: Float32Array.from(rows.flatMap((row) => row.slice(0, INPUTS).map((value) => value / 16))),
    labels: Uint32Array.from(rows.map((row) => row[INPUTS])),
  });
  return { train: split(rows.filter((_, index) => index % 5)), test: split(rows.filter((_, index) => index % 5 === 0)) };
}

function normal() {
  return Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
}

function start() {
  const parameters = new Float32Array(PARAMETERS);
  for (const [tensor, fan] of [[0, INPUTS], [2, HIDDEN]]) {
    const [, length] = TENSORS[tensor];
    for (let i = 0; i < length; i++) parameters[OFFSETS[tensor] + i] = normal() * Math.sqrt(2 / fan);
  }
  return parameters;
}

export class Digits {
  static rules = ['sgd', 'sgdm', 'signsgd', 'adamw', 'lion'];
  steps = 2000;
  perFrame = 1;

  static async make(device) {
    const digits = new Digits();
    digits.device = device;
    digits.data = await load();
    await digits.#build();
    return digits;
  }

  async #build() {
    const { device, data: { train, test } } = this;
    const shared = await text(`${SHADERS}batch.wgsl`);
    const make = async (name, constants, buffers, workgroups) =>
      kernel(device, `${shared}\n${await text(`${SHADERS}${name}.wgsl`)}`, constants, buffers, workgroups, name);
    const WORKGROUP = 64;
    const groups = (count) => [Math.ceil(count / WORKGROUP), 1];

    this.parameters = buffer(device, 'parameters', PARAMETERS);
    this.gradients = buffer(device, 'gradients', PARAMETERS);
    this.cursor = buffer(device, 'cursor', 4);
    this.order = buffer(device, 'order', train.rows);
    const results = buffer(device, 'results', 4 * Math.ceil(train.rows / BATCH));

    // Creates the forward pass over `rows` rows.
    const forward = async (rows, cursor, input) => {
      const hidden = buffer(device, 'hidden', rows * HIDDEN);
      const outputs = buffer(device, 'outputs', rows * 12);
      const layer = (from, to, [INPUTS, OUTPUTS, WEIGHTS, BIAS, RELU]) =>
        make('dense_forward', { WORKGROUP, INPUTS, OUTPUTS, WEIGHTS, BIAS, RELU }, [cursor, from, this.parameters, this.parameters, to],
          groups(Math.ceil(rows / 8) * Math.ceil(OUTPUTS / 4)));
      const passes = await Promise.all([
        layer(input, hidden, [INPUTS, HIDDEN, OFFSETS[0], OFFSETS[1], 1]),
        layer(hidden, outputs, [HIDDEN, CLASSES, OFFSETS[2], OFFSETS[3], 0]),
      ]);
      return { hidden, outputs, passes };
    };
    const lossOf = async (rows, cursor, labels, outputs, results) => {
      const rowResults = buffer(device, 'results of rows', 4 * rows);
      return Promise.all([
        make('loss', { WORKGROUP, CLASSES, SQUARED_HINGE: 0 }, [cursor, labels, outputs, rowResults], groups(rows)),
        make('finish_batch', {}, [cursor, rowResults, results], [1, 1]),
      ]);
    };

    const [values, labels] = [buffer(device, 'rows', train.values), buffer(device, 'labels', train.labels)];
    const [input, batchLabels] = [buffer(device, 'batch', BATCH * INPUTS), buffer(device, 'labels of the batch', BATCH)];
    const { hidden, outputs, passes } = await forward(BATCH, this.cursor, input);
    const [loss, finish] = await lossOf(BATCH, this.cursor, batchLabels, outputs, results);
    const [gather, ...backward] = await Promise.all([
      make('gather', { WORKGROUP, QUADS: INPUTS / 4, CHUNK_START: 0, CHUNK_END: train.rows },
        [this.cursor, this.order, values, labels, input, batchLabels], [1, BATCH]),
      make('bias_gradient', { WORKGROUP, OUTPUTS: CLASSES, BIAS: OFFSETS[3] }, [this.cursor, outputs, this.gradients], groups(CLASSES)),
      make('weight_gradient', { WORKGROUP, INPUTS: HIDDEN, OUTPUTS: CLASSES, WEIGHTS: OFFSETS[2] },
        [this.cursor, hidden, outputs, this.gradients], groups((HIDDEN / 8) * 3)),
      make('input_gradient', { WORKGROUP, INPUTS: HIDDEN, OUTPUTS: CLASSES, WEIGHTS: OFFSETS[2] },
        [this.cursor, outputs, this.parameters, hidden], groups((BATCH / 4) * (HIDDEN / 4))),
      make('bias_gradient', { WORKGROUP, OUTPUTS: HIDDEN, BIAS: OFFSETS[1] }, [this.cursor, hidden, this.gradients], groups(HIDDEN)),
      make('weight_gradient', { WORKGROUP, INPUTS, OUTPUTS: HIDDEN, WEIGHTS: OFFSETS[0] },
        [this.cursor, input, hidden, this.gradients], groups((INPUTS / 8) * (HIDDEN / 4))),
    ]);
    this.batch = [gather, ...passes, loss, ...backward, finish];
    this.inject = await injections(device, this.gradients);

    // The held-out rows in one batch, and the digits that are shown.
    this.testCursor = buffer(device, 'cursor', 4);
    const testResults = buffer(device, 'results', 4);
    const tested = await forward(test.rows, this.testCursor, buffer(device, 'held out', test.values));
    const testLabels = buffer(device, 'labels', test.labels);
    this.test = [...tested.passes, ...(await lossOf(test.rows, this.testCursor, testLabels, tested.outputs, testResults))];
    this.shown = new Float32Array((SAMPLES + 1) * INPUTS);
    this.shown.set(test.values.subarray(0, SAMPLES * INPUTS));
    this.shownRows = buffer(device, 'shown', this.shown);
    const shownCursor = buffer(device, 'cursor', Uint32Array.of(0, SAMPLES + 1, SAMPLES + 1, 0));
    const shown = await forward(SAMPLES + 1, shownCursor, this.shownRows);
    this.predict = shown.passes;
    this.reader = new Reader(device, [testResults, shown.outputs]);
  }

  /** Creates new parameters, and an optimizer with this rule. */
  async restart(rule) {
    this.optimizer?.destroy();
    this.device.queue.writeBuffer(this.parameters, 0, start());
    const slice = (buffer, index) => ({ buffer, offset: 4 * OFFSETS[index], size: 4 * TENSORS[index][1] });
    this.optimizer = await Optimizer.create(this.device, {
      rule,
      // Schedule-free training needs a rule without momentum.
      averaging: ['sgd', 'signsgd'].includes(rule) ? 'scheduleFree' : { name: 'polynomialDecay', eta: 8, start: 0 },
      groups: [{
        name: 'all',
        tensors: TENSORS.map(([name], index) => ({ name, param: slice(this.parameters, index), grad: slice(this.gradients, index) })),
      }],
    });
    this.left = 0;
  }

  encodeStep(encoder, injection) {
    const { train } = this.data;
    if (this.left === 0) {
      const order = Uint32Array.from({ length: train.rows }, (_, index) => index);
      for (let i = order.length - 1; i > 0; i--) {
        const j = Math.floor(Math.random() * (i + 1));
        [order[i], order[j]] = [order[j], order[i]];
      }
      // The queue writes before the next submit. One submit must therefore not contain steps of two epochs.
      this.device.queue.writeBuffer(this.order, 0, order);
      this.device.queue.writeBuffer(this.cursor, 0, Uint32Array.of(0, BATCH, train.rows));
      this.left = Math.ceil(train.rows / BATCH);
    }
    this.left -= 1;
    const pass = encoder.beginComputePass();
    this.batch.forEach((kernel) => kernel.encode(pass));
    pass.end();
    if (injection) this.inject[injection](encoder);
    this.optimizer.encodeStep(encoder);
  }

  /** Adds the digit that the visitor has drawn to those that are shown. It has 64 values from 0 to 1. */
  draw(values) {
    this.shown.set(values, SAMPLES * INPUTS);
    this.device.queue.writeBuffer(this.shownRows, 0, this.shown);
  }

  /** Returns accuracy and loss on the held-out rows with the averaged parameters, and sets the class of each digit that is shown. */
  async look() {
    const { device, data: { test } } = this;
    device.queue.writeBuffer(this.testCursor, 0, Uint32Array.of(0, test.rows, test.rows));
    const encoder = device.createCommandEncoder();
    this.optimizer.encodeSwapAverages(encoder);
    const pass = encoder.beginComputePass();
    [...this.test, ...this.predict].forEach((kernel) => kernel.encode(pass));
    pass.end();
    this.optimizer.encodeSwapAverages(encoder);
    this.reader.encode(encoder);
    device.queue.submit([encoder.finish()]);
    const [[loss, right], outputs] = await this.reader.read();
    this.classes = Array.from({ length: SAMPLES + 1 }, (_, row) => {
      const of = outputs.subarray(12 * row, 12 * row + CLASSES);
      return of.indexOf(Math.max(...of));
    });
    return { loss, accuracy: right / test.rows };
  }
}
