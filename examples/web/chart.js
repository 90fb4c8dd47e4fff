// Draws the learning rates over the steps of a run, on a logarithmic axis. Below are the terms of the records that changed ln η, summed by column.

const CAUSES = [
  ['norm', 'norm', 'gradient norm'],
  ['alignment', 'alignment', 'steps agree or contradict'],
  ['brake', 'brake', 'steps overshoot'],
  ['held', 'held', 'held back'],
];

export class Chart {
  constructor(canvas, groups) {
    this.canvas = canvas;
    this.clear(groups);
  }

  clear(groups) {
    this.groups = groups;
    /** By step: the rate of each group, the mean term of each cause, and true where the step was skipped. */
    this.steps = [];
  }

  add(records) {
    for (const { step, group, learningRate, terms, skipped } of records) {
      const at = (this.steps[step] ??= { rates: [], causes: [0, 0, 0, 0, 0], skipped: false });
      at.rates[group] = learningRate;
      at.skipped ||= skipped;
      let others = Object.values(terms).reduce((sum, term) => sum + term, 0);
      CAUSES.forEach(([name], cause) => {
        at.causes[cause] += terms[name] / this.groups.length;
        others -= terms[name];
      });
      at.causes[4] += others / this.groups.length;
    }
  }

  draw(most) {
    const { canvas, steps } = this;
    const scale = devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (canvas.width !== width * scale || canvas.height !== height * scale) {
      [canvas.width, canvas.height] = [width * scale, height * scale];
    }
    const context = canvas.getContext('2d');
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, height);
    const style = getComputedStyle(canvas);
    const colour = (name) => {
      // `light-dark()` is resolved only in a standard property, not in a custom one.
      this.probe ??= canvas.parentElement.appendChild(Object.assign(document.createElement('i'), { hidden: true }));
      this.probe.style.color = `var(--${name})`;
      return getComputedStyle(this.probe).color;
    };
    context.font = `12px ${style.fontFamily}`;
    const [left, right, top] = [46, 8, 18];
    const middle = Math.round(height * 0.58);
    const [barsTop, bottom] = [middle + 36, height - 18];
    const x = (step) => left + ((width - left - right) * step) / Math.max(most, 1);

    const known = steps.flatMap((step) => step?.rates ?? []).filter((rate) => rate > 0);
    let [low, high] = known.length ? [Math.log10(Math.min(...known)), Math.log10(Math.max(...known))] : [-1, 1];
    [low, high] = [Math.floor(low - 0.05), Math.ceil(high + 0.05)];
    const y = (rate) => middle - ((middle - top) * (Math.log10(rate) - low)) / (high - low);

    context.fillStyle = colour('faint');
    context.strokeStyle = colour('line');
    context.lineWidth = 1;
    context.textBaseline = 'middle';
    context.textAlign = 'right';
    const every = Math.ceil((high - low) / 5);
    for (let power = low; power <= high; power += every) {
      const at = Math.round(y(10 ** power)) + 0.5;
      context.beginPath();
      context.moveTo(left, at);
      context.lineTo(width - right, at);
      context.stroke();
      context.fillText(power >= -2 && power <= 3 ? `${10 ** power}` : `1e${power}`, left - 6, at);
    }
    context.textAlign = 'left';
    context.fillText('learning rate', left, 7);
    context.textAlign = 'center';
    for (let step = 0; step <= most; step += most / 4) {
      context.textAlign = step === most ? 'right' : step ? 'center' : 'left';
      context.fillText(`${step ? '' : 'step '}${Math.round(step)}`, x(step), height - 7);
    }

    // Skipped steps.
    context.fillStyle = colour('bad');
    steps.forEach((step, index) => step?.skipped && context.fillRect(x(index) - 1, top, 2, bottom - top));

    const shades = this.groups.length > 1 ? ['norm', 'alignment', 'brake', 'held'] : ['accent'];
    context.lineWidth = 1.75;
    context.lineJoin = 'round';
    this.groups.forEach((name, group) => {
      context.strokeStyle = colour(shades[group % shades.length]);
      context.beginPath();
      steps.forEach((step, index) => step?.rates[group] > 0 && context.lineTo(x(index), y(step.rates[group])));
      context.stroke();
    });
    if (this.groups.length > 1) {
      context.textAlign = 'right';
      let at = width - right;
      for (let group = this.groups.length - 1; group >= 0; group--) {
        context.fillStyle = colour(shades[group % shades.length]);
        context.fillText(this.groups[group], at, 7);
        at -= context.measureText(this.groups[group]).width + 10;
      }
    }

    // The terms that changed the rate, in columns of a few pixels.
    const columns = Math.max(Math.floor((width - left - right) / 5), 1);
    const sums = Array.from({ length: columns }, () => [0, 0, 0, 0, 0]);
    steps.forEach((step, index) => {
      const column = sums[Math.min(Math.floor((index / most) * columns), columns - 1)];
      step?.causes.forEach((term, cause) => (column[cause] += term));
    });
    const reach = Math.max(0.05, ...sums.map((terms) => Math.max(...[1, -1].map((sign) =>
      terms.reduce((sum, term) => sum + Math.max(sign * term, 0), 0)))));
    const zero = (barsTop + bottom) / 2;
    const unit = (bottom - barsTop) / 2 / reach;
    const colours = ['norm', 'alignment', 'brake', 'held', 'other'].map(colour);
    sums.forEach((terms, column) => {
      const ends = [zero, zero];
      const from = left + column * 5;
      terms.forEach((term, cause) => {
        const size = Math.abs(term) * unit;
        context.fillStyle = colours[cause];
        if (term > 0) context.fillRect(from, (ends[0] -= size), 4, size);
        else context.fillRect(from, ends[1], 4, size), (ends[1] += size);
      });
    });
    context.strokeStyle = colour('line');
    context.beginPath();
    context.moveTo(left, zero);
    context.lineTo(width - right, zero);
    context.stroke();
    context.fillStyle = colour('faint');
    context.textAlign = 'right';
    context.fillText('up', left - 6, barsTop + 8);
    context.fillText('down', left - 6, bottom - 8);

    // The legend, with as many of its entries as fit.
    context.textAlign = 'left';
    let at = left;
    for (const [, shade, words] of [...CAUSES, ['', 'other', 'limits']]) {
      const room = 14 + context.measureText(words).width + 12;
      if (at + room > width) break;
      context.fillStyle = colour(shade);
      context.fillRect(at, middle + 17, 9, 9);
      context.fillStyle = colour('faint');
      context.fillText(words, at + 14, middle + 22);
      at += room;
    }
  }
}
