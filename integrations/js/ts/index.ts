/**
 * Optimizers on WebGPU whose learning rate is computed on the device from the gradients. They work on your own `GPUDevice` and
 * `GPUBuffer`s: a step is recorded into your command encoder, and submits, maps and allocates nothing.
 *
 * The optimizer is the Rust crate wgpu-optim, compiled to WebAssembly. It plans the dispatches, writes the WGSL and decodes the records.
 */
import init, { HostDevice, type HostOptimizer } from './wgpu_optim.js';
import type { Regime, Rule } from './catalogue.js';

export type { Regime, Rule } from './catalogue.js';

/** Type of the elements of a slice. A 16-bit slice begins at a multiple of 4 bytes. */
export type ElementType = 'f32' | 'f16' | 'bf16';

/** A part of a buffer: all of it, or `size` bytes from byte `offset` on, of f32 unless `type` says otherwise. */
export type Slice = GPUBuffer | { buffer: GPUBuffer; offset?: number; size?: number; type?: ElementType };

/** Parameters with their gradients. Both buffers need the usage `STORAGE`; `COPY_SRC` and `COPY_DST` are for checkpoints. */
export interface TensorOptions {
  /** Name in records and messages. The default is the label of the parameters' buffer, else `group/index`. */
  name?: string;
  param: Slice;
  grad: Slice;
  /** Lengths of the dimensions, outermost first. Rules on matrices, and factors and laziness of rows, need it. */
  shape?: number[];
}

/** A factor of the learning rate over the steps, after a warm-up of `warmup` steps. `last` is the factor at the end. */
export type Schedule =
  | 'constant'
  | { name: 'warmupConstant'; warmup: number }
  | { name: 'warmupCosine' | 'linear'; warmup: number; steps: number; last: number }
  | { name: 'polynomial'; warmup: number; steps: number; power: number; last: number }
  | { name: 'exponential'; warmup: number; every: number; factor: number }
  | { name: 'cosineRestarts'; warmup: number; period: number; growth: number; last: number }
  | {
      name: 'warmupStableDecay';
      warmup: number;
      steps: number;
      decay: number;
      last: number;
      shape: 'oneMinusSqrt' | 'linear' | 'cosine';
    }
  | { name: 'inverseSqrt'; warmup: number }
  | { name: 'step'; every: number; factor: number }
  | { name: 'oneCycle'; rise: number; steps: number; first: number; last: number }
  | { name: 'table'; factors: number[]; every: number };

/** An average of the parameters that the optimizer keeps. `scheduleFree` takes part in the training and needs a rule without momentum. */
export type Averaging =
  | 'off'
  | 'scheduleFree'
  | { name: 'running'; start: number }
  | { name: 'exponential'; decay: number; start: number }
  | { name: 'polynomialDecay'; eta: number; start: number };

/** Settings that a group may have for itself, and an optimizer for all groups. */
export interface Settings {
  /** The direction of a step. The default is `'sgd'`. */
  rule?: Rule;
  /** The rule for tensors that are not matrices, if the group's rule needs matrices. */
  otherTensors?: Rule;
  /** How the learning rate is computed. The default, `'seesaw'`, needs no number. `{ name: 'fixed', learningRate: 0.1 }` is a given rate. */
  regime?: Regime;
  /** Coupled weight decay, as in PyTorch's SGD. */
  weightDecay?: number;
  /** Decoupled weight decay, as in AdamW, whose default is 0.01. */
  decoupledWeightDecay?: number;
  /** Largest norm of a group's gradient. */
  clipNorm?: number;
  maximize?: boolean;
  schedule?: Schedule;
  averaging?: Averaging;
  /** Steps in proportion to the parameters, as in LARS. `true` is a coefficient of 0.001. */
  trustRatio?: true | { coefficient?: number; least?: number };
  /** Records the norm of every tensor and of its steps. */
  telemetry?: boolean;
  /** Rounding of 16-bit parameters: with master weights, which is the default, to nearest, or at random. */
  rounding?: 'masters' | 'nearest' | { name: 'stochastic'; seed: number };
  /** Storage of the rule's state: f32, or 8 bits with a scale for each block. */
  state?: 'f32' | 'bits8';
}

export interface GroupOptions extends Settings {
  /** Name in records and messages. The default is `all`, or `group 0`, `group 1`, … where there are several. */
  name?: string;
  tensors: TensorOptions[];
  /** Groups of the same name have one norm. */
  shareNorm?: string;
  /** Factors of the learning rate for the rows or columns of the tensors. */
  rateFactors?: { rows: number[] } | { columns: number[] };
  /** Does not change rows without a gradient. */
  lazyRows?: boolean;
  /** Gives every tensor its own learning rate. */
  perTensor?: boolean;
}

export interface OptimizerOptions extends Settings {
  groups: GroupOptions[];
  /** Uses one norm for all groups that share no other norm. */
  globalNorm?: boolean;
  /** Clips the gradients of all groups together. */
  globalClipNorm?: number;
  /** What happens after steps with NaN or infinity, which change nothing: training goes on (`'skip'`, the default), or halts. */
  nonfinitePolicy?: 'skip' | 'unchecked' | { name: 'error'; after: number };
  /** Skips or clips steps whose norm is far above the previous norms. */
  normOutliers?: { name: 'skip' | 'clip'; deviations: number; window: number };
  /** A dynamic scale of the loss on the device. */
  lossScaler?: true | { initialScale?: number; growthInterval?: number; minScale?: number; maxScale?: number };
  /** Number of batches whose gradients are added before a step. */
  microBatches?: number;
  /** Sets the gradients to zero after each step. */
  clearGradients?: boolean;
  /** Lets every tensor be without gradients in some steps ({@link Optimizer.encodeStep}). */
  absentGradients?: boolean;
  /** Steps that the ring of records holds. The default is 1024. */
  recordSteps?: number;
  /** One f32 with the loss of the step, for regimes that need it. */
  loss?: Slice;
  /** Geometry of the kernels. The default depends on the kind of the adapter. */
  tuning?: {
    workgroupSize?: number;
    quadsPerInvocation?: number;
    partials?: 'per-invocation' | 'per-workgroup' | 'subgroup';
    finishWorkgroupSize?: number;
  };
}

/** Settings that may change between steps. */
export interface Controls {
  /** Factor of the learning rate. */
  learningRateFactor: number;
  weightDecay: number;
  /** `Infinity` for none. */
  clipNorm: number;
  frozen: boolean;
  microBatches: number;
}

/** One step of one group, and why its learning rate changed. */
export interface StepRecord {
  /** Steps attempted before this one. */
  step: number;
  /** Index of the group. */
  group: number;
  /** The step in words: `step 3: η 1.3288e-2, +47.4 %: norm fell (+7.4 %), steps agree (+37.2 %)`. */
  sentence: string;
  learningRate: number;
  lnRate: number;
  /** Norm of the gradient, NaN where the step was skipped. */
  norm: number;
  smoothedNorm: number;
  slowAlignment: number;
  fastAlignment: number;
  /** Contributions to the change of ln η by cause. Their sum is the change. */
  terms: Record<string, number>;
  flags: string[];
  skipped: boolean;
  skippedSoFar: number;
  clipFactor: number;
  trustRatio: number;
  lossScale: number;
  /** The elements for which the step was skipped: how many, and the first of them. `tensor` is an index into {@link Optimizer.tensors}. */
  nonfinite: { count: number; tensor: number; element: number } | null;
  /** The first element whose new value would have been out of range, so that it was not stored. */
  overflow: { tensor: number; element: number } | null;
}

/** The norm of a tensor and of its step, with `telemetry`. */
export interface TensorRecord {
  step: number;
  tensor: number;
  skipped: boolean;
  parameterNorm: number;
  stepNorm: number;
  learningRate: number;
}

export interface Records {
  records: StepRecord[];
  tensors: TensorRecord[];
  /** Steps whose records were overwritten before they were drained. */
  lostSteps: number;
}

export interface TensorInfo {
  name: string;
  /** Index of its group. */
  group: number;
  elements: number;
}

/** Differences between a checkpoint and the optimizer that {@link Optimizer.load} accepts. */
export interface Differences {
  settings?: boolean;
  rules?: boolean;
  tensors?: boolean;
}

/** The error of every call here. `kind` is that of the crate: `Build`, `Limit`, `Call`, `DeviceRefused`, `DeviceLost`, … */
export interface OptimizerError extends Error {
  name: 'OptimizerError';
  kind: string;
}

function refusal(kind: string, message: string): OptimizerError {
  return Object.assign(new Error(message), { name: 'OptimizerError' as const, kind });
}

let loading: Promise<unknown> | undefined;

/**
 * Loads the WebAssembly module, once. {@link Optimizer.create} does it if it has not been done. Pass the module's address or bytes
 * if a bundler has moved `wgpu_optim_bg.wasm` away from this file.
 */
export function load(module?: string | URL | Response | BufferSource | WebAssembly.Module): Promise<void> {
  loading ??= (async () => {
    let from: typeof module | Promise<Response> = module;
    if (from === undefined && typeof process === 'object' && process.versions?.node) {
      const { readFile } = await import('node:fs/promises');
      from = await readFile(new URL('./wgpu_optim_bg.wasm', import.meta.url));
    }
    await init(from === undefined ? undefined : { module_or_path: from });
  })();
  return loading.then(
    () => undefined,
    (problem) => {
      loading = undefined;
      throw problem;
    },
  );
}

/** Devices that optimizers were made on, with the pipelines that were compiled for them. */
const hosts = new WeakMap<GPUDevice, HostDevice>();

function hostOf(device: GPUDevice): HostDevice {
  let host = hosts.get(device);
  if (!host) {
    const made = new HostDevice(device);
    hosts.set(device, made);
    void device.lost.then(({ reason, message }) => made.markLost(message || reason || 'it was destroyed'));
    host = made;
  }
  return host;
}

/** Pipelines that are being compiled for a device, for all of its optimizers. */
const compiling = new WeakMap<HostDevice, Promise<unknown>>();

/** Calls a function that creates objects on the device, and reports the device's errors. */
async function scoped<T>(device: GPUDevice, what: string, call: () => T): Promise<T> {
  const filters: GPUErrorFilter[] = ['out-of-memory', 'internal', 'validation'];
  filters.forEach((filter) => device.pushErrorScope(filter));
  let made: { value: T } | { problem: unknown };
  try {
    made = { value: call() };
  } catch (problem) {
    made = { problem };
  }
  // A lost device has no error scopes.
  const refused = await Promise.all(filters.map(() => device.popErrorScope().catch(() => null)));
  if ('problem' in made) throw made.problem;
  // The last scope, out of memory, explains the others.
  const problem = refused.filter((error) => error !== null).at(-1);
  if (problem) throw refusal('DeviceRefused', `${what} was refused by the device: ${problem.message.split('\n')[0]}`);
  return made.value;
}

interface Places {
  buffers: GPUBuffer[];
  numbers: Map<GPUBuffer, number>;
}

/** A slice in the form that the module reads, with the index of its buffer. */
function placed(slice: Slice, what: string, places: Places) {
  const { buffer, offset, size, type } =
    slice && 'buffer' in slice ? slice : { buffer: slice, offset: undefined, size: undefined, type: undefined };
  if (typeof buffer?.size !== 'number' || typeof buffer.usage !== 'number') {
    throw refusal('Build', `${what} is no GPUBuffer: give a buffer, or { buffer, offset, size }`);
  }
  for (const [name, value] of [['offset', offset], ['size', size]] as const) {
    if (value !== undefined && !(Number.isSafeInteger(value) && value >= 0)) {
      throw refusal('Build', `${what}: ${name} is ${value}: give a whole number of bytes`);
    }
  }
  let number = places.numbers.get(buffer);
  if (number === undefined) {
    number = places.buffers.push(buffer) - 1;
    places.numbers.set(buffer, number);
  }
  const start = offset ?? 0;
  return { buffer: number, offset: start, size: size ?? Math.max(buffer.size - start, 0), type };
}

/** Options as JSON, and the buffers to which they refer by index. */
function described(options: OptimizerOptions): { json: string; buffers: GPUBuffer[] } {
  const places: Places = { buffers: [], numbers: new Map() };
  if (!Array.isArray(options?.groups)) throw refusal('Build', 'the optimizer has no groups: give { groups: [{ tensors: […] }] }');
  const several = options.groups.length > 1;
  const groups = options.groups.map((group, index) => {
    const name = group.name ?? (several ? `group ${index}` : 'all');
    if (!Array.isArray(group.tensors)) throw refusal('Build', `group "${name}" has no tensors: give { tensors: [{ param, grad }] }`);
    const tensors = group.tensors.map((tensor, index) => {
      const label = tensor.param && ('buffer' in tensor.param ? '' : tensor.param.label);
      const named = tensor.name ?? (label || `${name}/${index}`);
      return {
        name: named,
        shape: tensor.shape,
        param: placed(tensor.param, `the parameter of tensor "${named}"`, places),
        grad: placed(tensor.grad, `the gradient of tensor "${named}"`, places),
      };
    });
    return { ...group, name, tensors };
  });
  const written = new Map(groups.flatMap((group) => group.tensors.map(({ name, param }) => [param.buffer, name] as const)));
  for (const { name, grad } of groups.flatMap((group) => group.tensors)) {
    const other = written.get(grad.buffer);
    if (other !== undefined) {
      throw refusal(
        'Build',
        `tensor "${name}": its gradient lies in the buffer of the parameters of tensor "${other}", and WebGPU lets no dispatch write a buffer that it reads: use another buffer`,
      );
    }
  }
  const loss = options.loss && placed(options.loss, 'the loss', places);
  return { json: asJson({ ...options, groups, loss }), buffers: places.buffers };
}

/** JSON with infinities as numbers that no f32 can hold, and with NaN as a string, which is an error where a number is expected. */
function asJson(value: unknown): string {
  return JSON.stringify(value, (_, value) =>
    typeof value !== 'number' || Number.isFinite(value) ? value : Number.isNaN(value) ? 'NaN' : Math.sign(value) * 1e300,
  );
}

function isPass(target: GPUCommandEncoder | GPUComputePassEncoder): target is GPUComputePassEncoder {
  return 'dispatchWorkgroups' in target;
}

/** An optimizer on the caller's device, made by {@link Optimizer.create}. */
export class Optimizer {
  /** The device. */
  readonly device: GPUDevice;
  /** Names of the groups. A group with `perTensor` is one for each tensor. */
  readonly groups: readonly string[];
  readonly tensors: readonly TensorInfo[];
  /** Combinations that can be built but are known to fail, and what to use instead. */
  readonly warnings: readonly string[];
  /** One f32 per group, then padding: the learning rates of the last step, for kernels of the caller and for copies. */
  readonly learningRates: GPUBuffer;
  /** One f32: the factor for the loss of the next step, with a `lossScaler`. */
  readonly lossScale: GPUBuffer;
  #inner: HostOptimizer;
  #draining: Promise<unknown> = Promise.resolve();

  private constructor(device: GPUDevice, inner: HostOptimizer) {
    this.device = device;
    this.#inner = inner;
    this.groups = inner.groups;
    this.tensors = inner.tensors;
    this.warnings = inner.warnings;
    this.learningRates = inner.learningRates;
    this.lossScale = inner.lossScale;
  }

  /**
   * Makes an optimizer: checks the description, allocates everything, and compiles the kernels. A second optimizer of the same kind on the
   * same device compiles nothing.
   *
   * Request the device with the adapter's own limits, because WebGPU's default of 8 storage buffers for each kernel is too small for some
   * optimizers, and its bindings hold 128 MiB at most.
   *
   * @throws OptimizerError, which names the tensor or group, the value, and the way out
   */
  static async create(device: GPUDevice, options: OptimizerOptions): Promise<Optimizer> {
    await load();
    const { json, buffers } = described(options);
    const host = hostOf(device);
    const inner = await scoped(device, 'the optimizer', () => host.build(json, buffers));
    const compiled = Promise.all([compiling.get(host), ...host.compiling()]);
    compiling.set(host, compiled);
    try {
      await compiled;
    } catch (problem) {
      // A pipeline that failed must not be used by the next optimizer.
      hosts.delete(device);
      inner.destroy();
      throw refusal('DeviceRefused', `a kernel was refused by the device: ${String((problem as Error)?.message ?? problem)}`);
    }
    host.checkAlive();
    return new Optimizer(device, inner);
  }

  /**
   * Records a step into an encoder, in a compute pass of its own, or into a compute pass. The gradients must be complete by then.
   * `without` are indices of tensors that have no gradients in this step; it needs an encoder.
   */
  encodeStep(target: GPUCommandEncoder | GPUComputePassEncoder, without?: number[]): void {
    if (without !== undefined) this.#inner.encodeStepWithout(this.#encoder(target, 'a step without tensors'), Uint32Array.from(without));
    else if (isPass(target)) this.#inner.encodeStepIn(target);
    else this.#inner.encodeStep(target);
  }

  /** Records a look: the gradients of the last step's batch at the new parameters, for regime `curvature`. */
  encodeLook(encoder: GPUCommandEncoder): void {
    this.#inner.encodeLook(encoder);
  }

  /** Exchanges parameters and averages, to evaluate the averages in place. The next call exchanges them back. */
  encodeSwapAverages(target: GPUCommandEncoder | GPUComputePassEncoder): void {
    if (isPass(target)) this.#inner.encodeSwapAveragesIn(target);
    else this.#inner.encodeSwapAverages(target);
  }

  /** Records a copy of a tensor's averages into another buffer. `tensor` is an index into {@link tensors}. */
  encodeCopyAverages(encoder: GPUCommandEncoder, tensor: number, destination: Slice): void {
    const places: Places = { buffers: [], numbers: new Map() };
    const slice = placed(destination, 'the destination of the averages', places);
    this.#inner.encodeCopyAverages(encoder, tensor, JSON.stringify(slice), places.buffers[0]!);
  }

  /** True if, after all recorded commands, the parameters' buffers hold the averages. No step can be recorded then. */
  get averagesAreSwapped(): boolean {
    return this.#inner.averagesAreSwapped;
  }

  /**
   * Returns the records of all submitted steps that were not drained before. Waits for the device; steps may be recorded and submitted in
   * the meantime.
   *
   * @throws OptimizerError of kind `Halted` where training has halted, until {@link resume}
   */
  drainRecords(): Promise<Records> {
    const drained = this.#draining.then(async () => {
      await this.#inner.startDrain();
      return this.#inner.finishDrain() as Records | null;
    });
    this.#draining = drained.catch(() => undefined);
    return drained.then((records) => records ?? { records: [], tensors: [], lostSteps: 0 });
  }

  /** Continues after a halt, from the state before the skipped steps. */
  resume(): Promise<void> {
    return (this.#draining = this.#draining.then(() => this.#inner.resume())) as Promise<void>;
  }

  /** Changes controls of one group. The change holds for all steps that are submitted later. */
  control(group: string, change: Partial<Controls>): void {
    this.#inner.control(group, asJson(change));
  }

  /** Changes controls of all groups. */
  controlAll(change: Partial<Controls>): void {
    this.#inner.control(undefined, asJson(change));
  }

  /** The controls that {@link control} set last. */
  controls(group: string): Controls {
    return this.#inner.controls(group) as Controls;
  }

  /**
   * Returns a checkpoint as the bytes of a safetensors file, which the Rust crate reads too: the optimizer's state, and the parameters if
   * asked for, whose buffers need `COPY_SRC` then. It is the state after all steps that were submitted. Submit no step until it returns.
   */
  async save(options: { parameters?: boolean; notes?: Record<string, string> } = {}): Promise<Uint8Array<ArrayBuffer>> {
    await this.#draining;
    return (await this.#inner.save(options.parameters ?? false, JSON.stringify(options.notes ?? {}))) as Uint8Array<ArrayBuffer>;
  }

  /**
   * Restores a checkpoint, and the parameters in the caller's buffers if asked for, which need `COPY_DST` then. Returns the number of the
   * next step, the notes, and in words what differed and was accepted.
   *
   * @throws OptimizerError that names what differs. Nothing has changed then, unless the device lacked memory (`DeviceRefused`).
   */
  async load(
    bytes: Uint8Array,
    options: { parameters?: boolean; accept?: Differences } = {},
  ): Promise<{ step: number; notes: Record<string, string>; differences: string[] }> {
    await this.#draining;
    const { settings = false, rules = false, tensors = false } = options.accept ?? {};
    return scoped(this.device, 'room for a checkpoint', () =>
      this.#inner.load(bytes, options.parameters ?? false, settings, rules, tensors),
    );
  }

  /** Frees the optimizer's buffers at once. Without this call the garbage collector does. The optimizer cannot be used any more. */
  destroy(): void {
    this.#inner.destroy();
  }

  #encoder(target: GPUCommandEncoder | GPUComputePassEncoder, what: string): GPUCommandEncoder {
    if (isPass(target)) throw refusal('Call', `${what} has copies, which no compute pass takes: give the command encoder`);
    return target;
  }
}
