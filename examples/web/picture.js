// Fits a picture with a sum of Gaussians. The kernels are those of examples/fit_image.
import { Optimizer } from 'wgpu-optim';
import { buffer, injections, kernel, Reader, text } from './kernels.js';

export const SIDE = 128;
const SPLATS = 512;
const TILE = 8;
const SHADERS = '/examples/fit_image/';
/** Tensors with name and parameters per Gaussian, in their order in the buffer. */
const TENSORS = [['position', 2], ['shape', 3], ['colour', 3], ['opacity', 1]];
const PER_SPLAT = 9;

/** Returns round, half opaque Gaussians at random places with random colours. */
function start() {
  const sigma = Math.log(0.6 / Math.sqrt(SPLATS));
  const random = () => Math.random();
  const each = (make) => Array.from({ length: SPLATS }, make).flat();
  return Float32Array.from([
    ...each(() => [random(), random()]),
    ...each(() => [sigma, sigma, Math.PI * random()]),
    ...each(() => [random(), random(), random()]),
    ...each(() => [0]),
  ]);
}

export class Picture {
  static rules = ['sgdm', 'sgd', 'nesterov', 'signsgd', 'signum'];
  steps = 2000;
  perFrame = 1;

  static async make(device, pixels) {
    const picture = new Picture();
    picture.device = device;
    await picture.#build();
    picture.aim(pixels);
    return picture;
  }

  async #build() {
    const { device } = this;
    const shared = await text(`${SHADERS}splat.wgsl`);
    const constants = { WIDTH: SIDE, HEIGHT: SIDE, SPLATS };
    const make = async (name, buffers, workgroups) =>
      kernel(device, shared + (await text(`${SHADERS}${name}.wgsl`)), name === 'loss' ? { WIDTH: SIDE, HEIGHT: SIDE } : constants, buffers, workgroups);
    const tiles = SIDE / TILE;
    const words = SPLATS / 32;
    this.parameters = buffer(device, 'parameters', PER_SPLAT * SPLATS);
    this.gradients = buffer(device, 'gradients', PER_SPLAT * SPLATS);
    this.goal = buffer(device, 'target', 4 * SIDE * SIDE);
    const splats = buffer(device, 'splats', 16 * SPLATS);
    const cover = buffer(device, 'cover', tiles * tiles * words);
    const residual = buffer(device, 'residual', 4 * SIDE * SIDE);
    this.forward = await Promise.all([
      make('prepare', [this.parameters, splats], [SPLATS / 64]),
      make('cover', [splats, cover], [words / 8, (tiles * tiles) / 8]),
      make('render', [splats, cover, this.goal, residual], [tiles, tiles]),
    ]);
    this.backward = await make('gradient', [splats, residual, this.gradients], [SPLATS]);
    this.inject = await injections(device, this.gradients);
    this.reader = new Reader(device, [residual]);
  }

  /** Sets the target, which is SIDE × SIDE pixels of RGBA bytes. */
  aim(pixels) {
    this.target = Float32Array.from(pixels, (byte, index) => (index % 4 === 3 ? 0 : byte / 255));
    this.device.queue.writeBuffer(this.goal, 0, this.target);
  }

  async restart(rule) {
    this.optimizer?.destroy();
    this.device.queue.writeBuffer(this.parameters, 0, start());
    let at = 0;
    const groups = TENSORS.map(([name, per]) => {
      const slice = { offset: at, size: 4 * per * SPLATS };
      at += slice.size;
      return { name, tensors: [{ name, param: { buffer: this.parameters, ...slice }, grad: { buffer: this.gradients, ...slice } }] };
    });
    // Each kind of parameter has a group, and therefore a learning rate.
    this.optimizer = await Optimizer.create(this.device, { rule, groups });
  }

  encodeStep(encoder, injection) {
    const pass = encoder.beginComputePass();
    this.forward.forEach((kernel) => kernel.encode(pass));
    this.backward.encode(pass);
    pass.end();
    if (injection) this.inject[injection](encoder);
    this.optimizer.encodeStep(encoder);
  }

  /** Returns the current picture as RGBA bytes, and its peak signal-to-noise ratio in dB. */
  async look() {
    const encoder = this.device.createCommandEncoder();
    const pass = encoder.beginComputePass();
    this.forward.forEach((kernel) => kernel.encode(pass));
    pass.end();
    this.reader.encode(encoder);
    this.device.queue.submit([encoder.finish()]);
    const [residual] = await this.reader.read();
    let square = 0;
    const pixels = new Uint8ClampedArray(residual.length);
    residual.forEach((difference, index) => {
      if (index % 4 === 3) {
        pixels[index] = 255;
      } else {
        square += difference * difference;
        pixels[index] = 255 * (this.target[index] + difference);
      }
    });
    return { pixels, psnr: -10 * Math.log10(square / (3 * SIDE * SIDE)) };
  }
}
