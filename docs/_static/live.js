/* Replaces the stored picture of a cell with `#| live: name` by a figure with controls. Without this script, the picture stays.
   tests/test_live.py compares the mathematics and the controls with the notebooks. */
const live = (() => {
  // Schedules, as in chapter 05
  const schedCos = (start, end) => pos => start + (1 - Math.cos(Math.PI*pos))*(end - start)/2;
  function combineScheds(pcts, scheds) {
    let sum = 0;
    const pieces = scheds.map((sched, i) => ({ sched, pct: pcts[i] })).filter(p => p.pct > 0);
    for (const p of pieces) { p.start = sum; p.end = sum = Math.min(sum + p.pct, 1); }
    const last = pieces[pieces.length - 1];
    last.end = 1;
    return pos => {
      const p = pieces.find(p => pos < p.end) || last;
      return p.sched(p.end > p.start ? (pos - p.start)/(p.end - p.start) : 1);
    };
  }
  const upDown = (warm, start, high, end) => combineScheds([warm, 1 - warm], [schedCos(start, high), schedCos(high, end)]);
  const mean = f => range(100).reduce((sum, i) => sum + f((i + 0.5)/100), 0)/100;

  // Moving averages, as in chapter 07; its numbers in hundredths, in base 36
  const numbers = 'arapd7cpg9ftd080esaeevere8hch0d7a596fhg3fk9kcyj1fzc9dfeehribgjbkc7dzcjelf4e7fof4dmg3d3e1fcka9t9hc1gbgueed9ctfecscnfyi4nd9nahiycdcbgggzhh9sl1cleu9dcdckciaxgzdig5lzo5jwm8okl4p4n8ljsmh0m3jcjkmbo7qtign6noezhilln0mxmgn6nhnijtoejnlmfgm1m5own7jom2kikyrkl4mkpgosq3jsl2k0ntnxnjrnjam0mkklislyjdldmxlimkmwpgn1nblolwmrk3gymlkan3monb'.match(/../g).map(n => parseInt(n, 36)/100);
  function movingAverage(numbers, momentum, debiased) {
    let avg = 0;
    return numbers.map((n, i) => (avg += momentum*(n - avg))/(debiased ? 1 - (1 - momentum)**(i + 1) : 1));
  }
  const noiseLeft = momentum => Math.sqrt(momentum/(2 - momentum));
  const stepsToHalf = curve => curve.slice(80).findIndex(a => a > 6.5) + 1;   // 0: never

  // Two ways to read activations, as in chapter 04b
  function softmax(x) {
    const e = x.map(v => Math.exp(v - Math.max(...x)));
    return e.map(v => v/total(e));
  }
  const binomial = x => x.map(v => 1/(1 + Math.exp(-v)));

  // Is item i's channel j averaged together with item n's channel c? (C channels, counted from 0)
  const partners = (norm, groups, C, n, c) => (i, j) => (norm === 'batch' || i === n) && (norm === 'layer' || (norm === 'group' ? Math.floor(j*groups/C) === Math.floor(c*groups/C) : j === c));

  // Drawing
  const range = n => [...Array(n).keys()], total = x => x.reduce((a, b) => a + b);
  const fixed = (v, digits = 2) => v.toFixed(digits).replace(/^-(?=.*[1-9])/, '\u2212').replace('-', ''), percent = v => `${fixed(v*100, 0)}%`;
  const put = (e, attrs, ...kids) => { for (const k in attrs) e.setAttribute(k, attrs[k]); e.append(...kids); return e; };
  const html = (tag, attrs, ...kids) => put(document.createElement(tag), attrs, ...kids);
  const svg = (tag, attrs, ...kids) => put(document.createElementNS('http://www.w3.org/2000/svg', tag), attrs, ...kids);
  const text = (x, y, s, anchor = 'middle') => svg('text', { x, y, 'text-anchor': anchor }, s);
  const rect = (x, y, width, height, cls) => svg('rect', { x, y, width, height, class: cls });
  const key = (x, cls, s) => [svg('path', { d: `M${x} 12h26`, class: cls }), text(x + 32, 16, s, 'start')];

  // A frame with ticks, functions x and y that place a number in it, and lines
  function frame(left, top, right, bottom, [x0, x1], [y0, y1], xticks, yticks) {
    const x = v => left + (v - x0)/(x1 - x0)*(right - left), y = v => bottom - (v - y0)/(y1 - y0)*(bottom - top);
    const parts = [rect(left, top, right - left, bottom - top, 'frame'), ...xticks.map(v => text(x(v), bottom + 17, v)),
      ...yticks.flatMap(v => [text(left - 6, y(v) + 4, v, 'end'), svg('path', { d: `M${left} ${y(v)}H${right}`, class: 'frame' })])];
    return { x, y, parts, line: (cls, points) => svg('polyline', { class: cls, points: points.map(([a, b]) => `${x(a)},${y(b)}`).join(' ') }) };
  }

  // The figures: the notebook's controls, and draw(state, width, choose), which returns height, label, sentence and parts
  const classes = ['cat', 'dog', 'plane', 'fish', 'building'], image = [0.02, -2.49, -1.75, 2.07, 1.25];
  const figures = {
    schedule: {
      controls: {
        high: { label: 'Peak rate', min: 0.1, max: 2, step: 0.1, value: 0.6 },
        warm: { label: 'Warm-up fraction', min: 0.05, max: 0.95, step: 0.05, value: 0.3, show: percent },
        end: { label: 'Final rate', min: 0, max: 1, step: 0.05, value: 0.2 } },
      draw({ high, warm, end }, width) {
        const top = high > 1 ? 2 : 1, rate = upDown(warm, 0.3, high, end), line = (f, cls, sched) => f.line(cls, range(101).map(i => [i/100, sched(i/100)]));
        const above = frame(40, 26, width - 12, 186, [0, 1], [0, top], [], [0, top/2, top]);
        const below = frame(40, 222, width - 12, 292, [0, 1], [0.84, 0.96], [0, 0.25, 0.5, 0.75, 1], [0.85, 0.9, 0.95]);
        return [334, 'Learning rate and momentum in a training run', `The learning rate goes from 0.30 to ${fixed(high)} in the first ${percent(warm)} of the run, then to ${fixed(end)}. Its mean is ${fixed(mean(rate), 3)}.`,
          ...above.parts, ...below.parts, line(above, 'blue', rate), line(below, 'green', upDown(warm, 0.95, 0.85, 0.95)),
          text(40, 18, 'learning rate', 'start'), text(40, 214, 'momentum', 'start'), text(width/2 + 14, 328, 'position in training')];
      },
    },
    average: {
      controls: { momentum: { label: 'Momentum', min: 0.01, max: 1, step: 0.01, value: 0.1 }, debiased: { label: 'Debiased', value: true } },
      draw({ momentum, debiased }, width) {
        const f = frame(30, 36, width - 12, 226, [0, 160], [0, 11], [0, 40, 80, 120, 160], [0, 5, 8]);
        const curve = debiased => movingAverage(numbers, momentum, debiased), line = (cls, debiased) => f.line(cls, curve(debiased).map((v, i) => [i, v])), steps = stepsToHalf(curve(debiased));
        return [268, 'A moving average of noisy numbers, which jump from 5 to 8',
          `The ${debiased ? 'debiased ' : ''}average ${steps ? '' : 'never '}gets past 6.5, halfway up the jump${steps ? `, after ${steps} of the new numbers` : ''}. ${percent(noiseLeft(momentum))} of the noise is left.`,
          ...f.parts, text(width/2 + 9, 262, 'step'), ...numbers.map((n, i) => svg('circle', { cx: f.x(i), cy: f.y(n), r: 2 })), ...key(30, 'blue', 'average'), line('blue'),
          ...debiased ? [...key(130, 'orange', 'debiased'), line('orange', true)] : []];
      },
    },
    temperature: {
      controls: {
        temperature: { label: 'Temperature', min: 0.1, max: 10, step: 0.1, value: 1 },
        constant: { label: 'Added to all five', min: -4, max: 4, step: 0.04, value: 0 },
        fish: { label: 'Added to fish only', min: -4, max: 4, step: 0.04, value: 0 } },
      draw({ temperature, constant, fish }, width) {
        const x = image.map((v, i) => (v + constant + (i === 3 ? fish : 0))/temperature), f = frame(30, 40, width - 12, 228, [0, 5], [0, 1.1], [], [0, 0.5, 1]), w = (f.x(1) - f.x(0))*0.43;
        const both = [['softmax', softmax(x), 'bar'], ['sigmoid', binomial(x), 'outline']].map(([name, p, cls]) => ({ name, p, cls, sum: fixed(total(p)) }));
        const bars = both.flatMap(({ name, p, cls, sum }, k) => [rect(30 + k*155, 6, 14, 12, cls), text(50 + k*155, 16, `${name}, sum ${sum}`, 'start'), ...p.flatMap((v, i) => {
          const left = f.x(i + 0.5) + (k - 1)*w;
          return [rect(left, f.y(v), w, 228 - f.y(v), cls), text(left + w/2, f.y(v) - 4, fixed(v))];
        })]);
        return [270, 'Softmax and sigmoid of five activations', both.map(({ name, p, sum }) => `${name}: ${classes.map((c, i) => `${c} ${fixed(p[i])}`).join(', ')}, sum ${sum}`).join('; ') + '.',
          ...f.parts, ...bars, ...classes.flatMap((name, i) => [text(f.x(i + 0.5), 246, name), text(f.x(i + 0.5), 264, fixed(x[i]))])];
      },
    },
    norms: {
      controls: {
        norm: { label: 'Norm', values: ['batch', 'layer', 'instance', 'group'], value: 'group' },
        groups: { label: 'Groups', values: [1, 2, 3, 6], value: 2, show: String, off: state => state.norm !== 'group' },
        item: { label: 'Item', min: 1, max: 4, step: 1, value: 2, show: String },
        channel: { label: 'Channel', min: 1, max: 6, step: 1, value: 5, show: String } },
      draw({ norm, groups, item, channel }, width, choose) {
        const size = Math.min(20, (width - 50)/21), x = j => 50 + size*3.6*j, y = i => 40 + size*3.6*i, on = partners(norm, groups, 6, item - 1, channel - 1);
        const maps = range(24).map(k => ({ i: Math.floor(k/6), j: k % 6 })), lit = maps.filter(({ i, j }) => on(i, j)), js = lit.map(m => m.j + 1);
        return [y(4), 'Four items with six channels of nine pixels each',
          `The mean for item ${item}, channel ${channel} is over ${lit.length*9} numbers: ${norm === 'batch' ? 'all items' : `item ${item}`}, ${js.at(-1) > js[0] ? `channels ${js[0]} to ${js.at(-1)}` : `channel ${channel}`}, all pixels.`,
          text(x(3), 12, 'channel'), text(0, 29, 'item', 'start'), ...range(6).map(j => text(x(j) + size*1.5, 29, j + 1)), ...range(4).map(i => text(36, y(i) + size*1.5 + 4, i + 1, 'end')),
          ...maps.map(({ i, j }) => {
            const chosen = i === item - 1 && j === channel - 1, map = svg('g', { class: on(i, j) ? 'on' : 'off' },
              ...range(9).map(p => rect(x(j) + size*(p % 3), y(i) + size*Math.floor(p/3), size, size, chosen && p === 4 ? 'chosen' : '')));
            map.onclick = () => choose({ item: i + 1, channel: j + 1 });
            return map;
          })];
      },
    },
  };

  // Replaces a picture by a figure; screen readers announce its sentence once the controls rest
  function build(name, still) {
    const { controls, draw } = figures[name], state = {}, updates = [], picture = svg('svg', { role: 'img' }), room = still.parentElement;
    const fit = () => Math.min(room.clientWidth, 640), said = html('p', { 'aria-hidden': true }), announced = html('p', { class: 'announced', role: 'status' });
    let width, timer;

    function render() {
      updates.forEach(update => update());
      const [height, label, sentence, ...parts] = draw(state, width = fit(), changes => { Object.assign(state, changes); render(); });
      put(picture, { viewBox: `0 0 ${width} ${height}`, 'aria-label': label }).replaceChildren(...parts);
      said.textContent = sentence;
      clearTimeout(timer);
      timer = setTimeout(() => announced.textContent = sentence, 400);
    }

    const rows = Object.entries(controls).map(([k, { label, value, values, min = 0, max = values?.length - 1, step = 1, show = fixed, off }]) => {
      const id = `live-${name}-${k}`, output = html('output', { for: id, 'aria-live': 'off' }), type = value === true ? 'checkbox' : 'range';
      const input = isNaN(value) ? html('select', { id }, ...values.map(v => html('option', {}, v))) : html('input', { id, type, min, max, step });
      state[k] = value;
      input.oninput = () => { state[k] = value === true ? input.checked : isNaN(value) ? input.value : values ? values[input.value] : +input.value; render(); };
      updates.push(() => {
        const v = state[k];
        input.checked = v;
        input.value = values && !isNaN(v) ? values.indexOf(v) : v;
        input.disabled = off?.(state);
        if (input.type === 'range') put(input, { 'aria-valuetext': output.textContent = show(v) });
      });
      return html('div', {}, html('label', { for: id }, label), input, output);
    });

    render();
    still.replaceWith(html('div', { class: 'live' }, picture, ...rows, said, announced));
    new ResizeObserver(() => width === fit() || render()).observe(room);
  }

  globalThis.document?.querySelectorAll('[class*=tag_live-]').forEach(cell => build(cell.className.match(/tag_live-(\w+)/)[1], cell.querySelector('.cell_output img')));

  return { schedCos, combineScheds, upDown, mean, numbers, movingAverage, noiseLeft, stepsToHalf, image, softmax, binomial, partners, figures };
})();
