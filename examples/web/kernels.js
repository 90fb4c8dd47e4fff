// Kernels of the page: WGSL from files, with buffers bound in the order in which they are given.

/** Returns the text of a file of this repository. */
export async function text(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Error(`${path}: ${response.status}`);
  return response.text();
}

/** Creates a storage buffer of 4-byte elements, with contents or a length. */
export function buffer(device, label, contents) {
  const bytes = typeof contents === 'number' ? 4 * contents : contents.byteLength;
  const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
  const made = device.createBuffer({ label, size: Math.ceil(Math.max(bytes, 16) / 16) * 16, usage });
  if (typeof contents !== 'number') device.queue.writeBuffer(made, 0, contents);
  return made;
}

/** Creates a dispatch, whose `encode` records it into a compute pass. */
export async function kernel(device, code, constants, buffers, workgroups, entryPoint) {
  const module = device.createShaderModule({ code });
  const compute = { module, constants, ...(entryPoint && { entryPoint }) };
  const pipeline = await device.createComputePipelineAsync({ layout: 'auto', compute });
  const group = device.createBindGroup({
    layout: pipeline.getBindGroupLayout(0),
    entries: buffers.map((buffer, binding) => ({ binding, resource: { buffer } })),
  });
  return {
    encode(pass) {
      pass.setPipeline(pipeline);
      pass.setBindGroup(0, group);
      pass.dispatchWorkgroups(...workgroups);
    },
  };
}

/** Copies buffers to the host, one copy at a time. */
export class Reader {
  constructor(device, buffers) {
    this.buffers = buffers;
    const size = buffers.reduce((sum, { size }) => sum + size, 0);
    this.staging = device.createBuffer({ size, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST });
    this.busy = false;
  }

  encode(encoder) {
    let at = 0;
    for (const buffer of this.buffers) {
      encoder.copyBufferToBuffer(buffer, 0, this.staging, at, buffer.size);
      at += buffer.size;
    }
  }

  /** Returns the contents of each buffer as f32, after the submitted commands have finished. */
  async read() {
    await this.staging.mapAsync(GPUMapMode.READ);
    const all = this.staging.getMappedRange();
    let at = 0;
    const contents = this.buffers.map(({ size }) => new Float32Array(all.slice(at, (at += size))));
    this.staging.unmap();
    return contents;
  }
}

/** Creates commands that multiply the gradients by 100, or write a NaN into them. */
export async function injections(device, gradients) {
  const spike = await kernel(
    device,
    `@group(0) @binding(0) var<storage, read_write> gradients: array<f32>;
     @compute @workgroup_size(64) fn spike(@builtin(global_invocation_id) id: vec3u) {
       if (id.x < arrayLength(&gradients)) { gradients[id.x] *= 100.0; }
     }`,
    {}, [gradients], [Math.ceil(gradients.size / 256)],
  );
  const nan = buffer(device, 'a NaN', Float32Array.of(NaN));
  return {
    spike(encoder) {
      const pass = encoder.beginComputePass();
      spike.encode(pass);
      pass.end();
    },
    nan: (encoder) => encoder.copyBufferToBuffer(nan, 0, gradients, 4 * 17, 4),
  };
}
