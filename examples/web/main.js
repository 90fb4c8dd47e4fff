// The page: two runs side by side, each with numbers, a chart and sentences from its records.
import { bandwidth } from './bandwidth.js';
import { Chart } from './chart.js';
import { Digits, SAMPLES } from './digits.js';
import { Picture, SIDE } from './picture.js';

const byId = (id) => document.getElementById(id);

/** Formats a number with some digits, and with an exponent only if it is very small or large. */
function figure(value, digits) {
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) return value.toExponential(digits - 1);
  return String(Number(value.toPrecision(digits)));
}

function fail(message) {
  byId('problem').hidden = false;
  byId('problem').textContent = message;
}

/** A run: buttons, numbers, chart, and the sentences of its records. */
class Panel {
  constructor(root, run, show) {
    root.append(byId('panel').content.cloneNode(true));
    this.root = root;
    this.run = run;
    this.show = show;
    this.find = (name) => root.querySelector(`.${name}`);
    this.chart = new Chart(this.find('chart'), []);
    for (const rule of run.constructor.rules) this.find('rule').append(new Option(rule));
    this.find('pause').onclick = () => this.pause(!this.paused);
    this.find('restart').onclick = () => this.restart();
    this.find('rule').onchange = () => this.restart();
    for (const kind of ['nan', 'spike']) this.find(kind).onclick = () => this.inject(kind);
  }

  /** Restarts the run after the current frame. */
  restart() {
    this.restarting = true;
    this.pause(false);
  }

  pause(paused) {
    this.paused = paused;
    this.find('pause').textContent = paused ? 'Go on' : 'Pause';
  }

  inject(kind) {
    this.injection = kind;
    this.pause(false);
  }

  async #start() {
    this.restarting = false;
    await this.run.restart(this.find('rule').value);
    this.chart.clear(this.run.optimizer.groups);
    this.find('story').replaceChildren();
    this.step = 0;
    this.drawn = 0;
    this.began = performance.now();
    this.spikes = new Set();
  }

  /** Takes some steps in one submit, and updates the display from time to time. */
  async frame(device) {
    if (this.restarting ?? true) await this.#start();
    const { run } = this;
    if (!this.paused && (this.step < run.steps || this.injection)) {
      const encoder = device.createCommandEncoder();
      for (let i = 0; i < run.perFrame; i++) {
        if (this.injection === 'spike') this.spikes.add(this.step);
        run.encodeStep(encoder, this.injection);
        this.injection = undefined;
        this.step += 1;
      }
      device.queue.submit([encoder.finish()]);
      this.stale = true;
    }
    const now = performance.now();
    if (this.stale && now - this.drawn > 120) {
      this.drawn = now;
      this.stale = this.step < run.steps && !this.paused;
      const [{ records }, found] = await Promise.all([run.optimizer.drainRecords(), run.look()]);
      this.chart.add(records);
      // The axis grows with the run.
      this.chart.draw(Math.max(200, 2 ** Math.ceil(Math.log2(this.step / 200)) * 200));
      this.#tell(records);
      this.#numbers(this.show(found, this.root));
    }
  }

  #numbers(more) {
    const { step, run, root } = this;
    const rates = this.chart.steps.at(-1)?.rates ?? [];
    const rate = rates.length > 1 ? `${figure(Math.min(...rates), 2)} to ${figure(Math.max(...rates), 2)}` : figure(rates[0] ?? 0, 3);
    const rows = [['step', `${step}`], ...more, [rates.length > 1 ? 'learning rates' : 'learning rate', rate]];
    root.querySelector('.numbers').replaceChildren(...rows.map(([name, value]) => {
      const row = document.createElement('div');
      for (const [tag, words] of [['dt', name], ['dd', value]]) row.append(Object.assign(document.createElement(tag), { textContent: words }));
      return row;
    }));
    root.dataset.step = step;
    root.dataset.done = step >= run.steps;
  }

  /** Adds the sentence of the step with the largest change of the rate, or those of steps with an injected fault. */
  #tell(records) {
    const moved = (record) => Math.abs(Object.values(record.terms).reduce((sum, term) => sum + term, 0));
    const events = records.filter(({ skipped, step, group }) => (skipped || this.spikes.has(step)) && (group === 0 || !skipped));
    const most = records.filter(({ skipped }) => !skipped).sort((a, b) => moved(b) - moved(a))[0];
    const told = [...(events.length || !most ? [] : [most]), ...events.slice(0, 2)];
    const story = this.find('story');
    for (const record of told) {
      const line = document.createElement('li');
      line.textContent = record.sentence + (this.spikes.has(record.step) ? ' (spike)' : '');
      line.classList.toggle('event', events.includes(record));
      story.prepend(line);
    }
    // Sentences about events are removed last.
    while (story.children.length > 3) {
      const plain = [...story.children].slice(1).reverse().find((line) => !line.classList.contains('event'));
      (plain ?? story.lastChild).remove();
    }
  }
}

/** Draws the held-out digits with their predicted classes. */
function drawSamples(canvas, run) {
  const scale = devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  [canvas.width, canvas.height] = [width * scale, height * scale];
  const context = canvas.getContext('2d');
  context.scale(scale, scale);
  // The number of columns that makes the cells largest.
  let [columns, cell] = [1, 0];
  for (let count = 1; count <= SAMPLES; count++) {
    const size = Math.min(width / count, height / Math.ceil(SAMPLES / count) / 1.42);
    if (size > cell) [columns, cell] = [count, size];
  }
  const side = Math.floor((cell - 4) / 8);
  const style = getComputedStyle(canvas.parentElement);
  const probe = canvas.parentElement.querySelector('figcaption');
  const colours = ['--good', '--bad'].map((name) => {
    probe.style.color = `var(${name})`;
    const { color } = getComputedStyle(probe);
    probe.style.color = '';
    return color;
  });
  context.font = `600 ${Math.max(11, Math.round(cell * 0.34))}px ${style.fontFamily}`;
  context.textAlign = 'center';
  context.textBaseline = 'top';
  const { labels } = run.data.test;
  for (let sample = 0; sample < SAMPLES; sample++) {
    const left = Math.round((sample % columns) * cell);
    const top = Math.round(Math.floor(sample / columns) * cell * 1.42);
    for (let pixel = 0; pixel < 64; pixel++) {
      const value = Math.round(255 * run.shown[64 * sample + pixel]);
      context.fillStyle = `rgb(${value} ${value} ${value})`;
      context.fillRect(left + (pixel % 8) * side, top + Math.floor(pixel / 8) * side, side, side);
    }
    const taken = run.classes[sample];
    context.fillStyle = colours[taken === labels[sample] ? 0 : 1];
    context.fillText(`${taken}`, left + 4 * side, top + 8 * side + 2);
  }
}

/** Lets the visitor draw a digit, and converts it to 8 × 8 values as in the data: counts of ink in blocks of 4 × 4, centred. */
function listen(pad, run) {
  const context = pad.getContext('2d', { willReadFrequently: true });
  context.lineCap = context.lineJoin = 'round';
  context.lineWidth = 14;
  let last;
  const at = (event) => {
    const box = pad.getBoundingClientRect();
    return [((event.clientX - box.left) * pad.width) / box.width, ((event.clientY - box.top) * pad.height) / box.height];
  };
  pad.onpointerdown = (event) => {
    pad.setPointerCapture(event.pointerId);
    if (performance.now() - (pad.ended ?? 0) > 900) context.clearRect(0, 0, pad.width, pad.height);
    last = at(event);
    pad.onpointermove(event);
  };
  pad.onpointermove = (event) => {
    if (!last) return;
    context.strokeStyle = '#fff';
    context.beginPath();
    context.moveTo(...last);
    context.lineTo(...(last = at(event)));
    context.stroke();
  };
  pad.onpointerup = pad.onpointercancel = () => {
    last = undefined;
    pad.ended = performance.now();
    const { data } = context.getImageData(0, 0, pad.width, pad.height);
    const ink = [];
    for (let i = 3; i < data.length; i += 4) if (data[i] > 127) ink.push([((i - 3) / 4) % pad.width, Math.floor((i - 3) / 4 / pad.width)]);
    if (!ink.length) return;
    const range = (axis) => ink.reduce(([low, high], point) => [Math.min(low, point[axis]), Math.max(high, point[axis])], [Infinity, -Infinity]);
    const [[x0, x1], [y0, y1]] = [range(0), range(1)];
    // Digits in the data fill the height of 32 pixels.
    const size = Math.max(y1 - y0, (x1 - x0) * 1.15, 1) + 1;
    const bitmap = new Uint8Array(32 * 32);
    for (const [x, y] of ink) {
      const column = Math.floor(16 + ((x - (x0 + x1) / 2) / size) * 32);
      const row = Math.floor(16 + ((y - (y0 + y1) / 2) / size) * 32);
      if (column >= 0 && column < 32 && row >= 0 && row < 32) bitmap[32 * row + column] = 1;
    }
    const values = new Float32Array(64);
    bitmap.forEach((set, index) => (values[8 * Math.floor(index / 128) + Math.floor((index % 32) / 4)] += set / 16));
    run.draw(values);
    pad.drawn = true;
  };
}

/** Draws a picture to fit: a sky with a sun, ridges, a ball, and a striped post. */
function scene(context) {
  const fill = (style, path) => {
    context.fillStyle = style;
    context.beginPath();
    path();
    context.fill();
  };
  const sky = context.createLinearGradient(0, 0, 0, SIDE);
  [['#2a3a7a', 0], ['#f08a5d', 0.55], ['#f9d29d', 1]].forEach(([colour, at]) => sky.addColorStop(at, colour));
  fill(sky, () => context.rect(0, 0, SIDE, SIDE));
  const glow = context.createRadialGradient(88, 40, 4, 88, 40, 44);
  [['#fff6d5', 0], ['#ffe29aee', 0.28], ['#ffd07a00', 1]].forEach(([colour, at]) => glow.addColorStop(at, colour));
  fill(glow, () => context.rect(0, 0, SIDE, SIDE));
  const ridge = (style, base, waves) => fill(style, () => {
    context.moveTo(0, SIDE);
    for (let x = 0; x <= SIDE; x += 2) context.lineTo(x, base + waves.reduce((sum, [size, length]) => sum + size * Math.sin(x / length), 0));
    context.lineTo(SIDE, SIDE);
  });
  ridge('#7a4f72', 66, [[7, 17], [3, 6]]);
  ridge('#1c3440', 88, [[6, 21], [2, 4]]);
  const ball = context.createRadialGradient(28, 46, 2, 34, 54, 22);
  [['#fff', 0], ['#f0536b', 0.25], ['#4a0d2c', 1]].forEach(([colour, at]) => ball.addColorStop(at, colour));
  fill(ball, () => context.arc(34, 54, 21, 0, 7));
  for (let stripe = 0; stripe < 10; stripe++) fill(stripe % 2 ? '#f2ede2' : '#b3262a', () => context.rect(108, 58 + 6 * stripe, 10, 6));
}

/** Draws the largest square in the middle of a picture. */
function crop(context, image) {
  const side = Math.min(image.width, image.height);
  context.drawImage(image, (image.width - side) / 2, (image.height - side) / 2, side, side, 0, 0, SIDE, SIDE);
}

async function open() {
  if (!navigator.gpu) throw new Error('This browser has no WebGPU: use a recent Chrome, Edge, Safari or Firefox, on https or on this machine.');
  const adapter = await navigator.gpu.requestAdapter({ powerPreference: 'high-performance' });
  if (!adapter) throw new Error('WebGPU has no adapter here: update the graphics driver, or switch on hardware acceleration in the settings.');
  const { maxStorageBuffersPerShaderStage, maxStorageBufferBindingSize, maxBufferSize } = adapter.limits;
  const device = await adapter.requestDevice({
    requiredLimits: {
      maxStorageBuffersPerShaderStage: Math.min(10, maxStorageBuffersPerShaderStage),
      maxStorageBufferBindingSize,
      maxBufferSize,
    },
  });
  device.addEventListener('uncapturederror', ({ error }) => fail(error.message));
  void device.lost.then(({ message }) => fail(`The device is lost: ${message}. Reload the page.`));
  const { vendor, architecture, device: model, description } = adapter.info;
  byId('adapter').textContent = description || [vendor, architecture, model].filter(Boolean).join(' ') || 'your device';
  return device;
}

async function main() {
  const device = await open();
  const measured = await bandwidth(device);
  byId('bandwidth').textContent =
    `A step of SGD over ${measured.parameters.toLocaleString('en')} parameters takes ${figure(measured.milliseconds, 2)} ms here: ` +
    `${figure(measured.bytes / 1e9, 2)} GB/s, ${Math.round(100 * measured.share)} % of what a copy reaches.`;

  const target = byId('picture').querySelector('.target').getContext('2d', { willReadFrequently: true });
  scene(target);
  const pixels = () => target.getImageData(0, 0, SIDE, SIDE).data;
  const [digits, picture] = await Promise.all([Digits.make(device), Picture.make(device, pixels())]);

  const pad = byId('digits').querySelector('.pad');
  listen(pad, digits);
  const panels = [
    new Panel(byId('digits'), digits, ({ loss, accuracy }, root) => {
      drawSamples(root.querySelector('.samples'), digits);
      root.querySelector('.guess').textContent = pad.drawn ? `taken for ${digits.classes[SAMPLES]}` : 'draw a digit';
      root.dataset.accuracy = accuracy;
      return [['held-out accuracy', `${(100 * accuracy).toFixed(1)} %`], ['held-out loss', figure(loss, 3)]];
    }),
    new Panel(byId('picture'), picture, ({ pixels, psnr }, root) => {
      root.querySelector('.fit').getContext('2d').putImageData(new ImageData(pixels, SIDE, SIDE), 0, 0);
      root.dataset.psnr = psnr;
      return [['PSNR', `${psnr.toFixed(1)} dB`]];
    }),
  ];
  byId('picture').querySelector('input').onchange = async ({ target: { files } }) => {
    if (!files[0]) return;
    crop(target, await createImageBitmap(files[0]));
    picture.aim(pixels());
    panels[1].restart();
  };
  addEventListener('resize', () => panels.forEach((panel) => (panel.stale = true)));
  for (;;) {
    await new Promise(requestAnimationFrame);
    for (const panel of panels) await panel.frame(device);
  }
}

main().catch((error) => {
  fail(error.message);
  throw error;
});
