// Measures which share of the bandwidth of a copy a step of the optimizer reaches with many parameters.
import { Optimizer } from 'wgpu-optim';
import { buffer, kernel } from './kernels.js';

const PARAMETERS = 1 << 22;
/** Bytes that a step of SGD with a rate from the norm moves per parameter: it reads g, then w and g, and writes w. */
const STEP_BYTES = 16;
const COPY_BYTES = 8;
const ROUNDS = 5;
const REPEATS = 4;

/** The median time of a dispatch in seconds. */
async function time(device, encode) {
  const submit = (times) => {
    const encoder = device.createCommandEncoder();
    for (let i = 0; i < times; i++) encode(encoder);
    device.queue.submit([encoder.finish()]);
    return device.queue.onSubmittedWorkDone();
  };
  await submit(1);
  const times = [];
  for (let round = 0; round < ROUNDS; round++) {
    const start = performance.now();
    await submit(REPEATS);
    times.push((performance.now() - start) / 1000 / REPEATS);
  }
  return times.sort((a, b) => a - b)[ROUNDS >> 1];
}

export async function bandwidth(device) {
  const [param, grad] = ['parameters', 'gradients'].map((label) => buffer(device, label, PARAMETERS));
  device.queue.writeBuffer(grad, 0, new Float32Array(PARAMETERS).fill(0.5));
  const copy = await kernel(
    device,
    `@group(0) @binding(0) var<storage, read> original: array<vec4f>;
     @group(0) @binding(1) var<storage, read_write> copied: array<vec4f>;
     @compute @workgroup_size(64) fn copy(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
       for (var at = id.x; at < arrayLength(&copied); at += 64u * groups.x) { copied[at] = original[at]; }
     }`,
    {}, [grad, param], [4096],
  );
  const copies = [
    (encoder) => {
      const pass = encoder.beginComputePass();
      copy.encode(pass);
      pass.end();
    },
    (encoder) => encoder.copyBufferToBuffer(grad, 0, param, 0, grad.size),
  ];
  // The copy is the faster one of a kernel and a copy command.
  const copied = Math.min(await time(device, copies[0]), await time(device, copies[1]));
  const optimizer = await Optimizer.create(device, {
    rule: 'sgd', regime: 'norm-ratio', groups: [{ tensors: [{ param, grad }] }],
  });
  const stepped = await time(device, (encoder) => optimizer.encodeStep(encoder));
  optimizer.destroy();
  param.destroy();
  grad.destroy();
  const rate = (STEP_BYTES * PARAMETERS) / stepped;
  return { parameters: PARAMETERS, milliseconds: 1000 * stepped, bytes: rate, share: rate / ((COPY_BYTES * PARAMETERS) / copied) };
}
