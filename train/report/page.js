'use strict';
// Everything from a run reaches the page as text nodes and attributes, never as markup.
let data, runs, several, charts;
const byId = id => document.getElementById(id);

function node(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function svg(name, attributes = {}, ...children) {
  const made = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function format(value, digits = 4) {
  if (value === undefined || value === null) return '–';
  const size = Math.abs(value);
  if (size >= 1e15 || (size !== 0 && size < 1e-3)) return value.toExponential(digits - 2).replace(/\.?0*e\+?/, 'e');
  for (const [unit, name] of [[1e12, 'T'], [1e9, 'G'], [1e6, 'M'], [1e4, 'k']]) {
    if (size >= unit) return +(value / (name === 'k' ? 1e3 : unit)).toPrecision(digits) + ' ' + name;
  }
  return String(+value.toPrecision(digits));
}

// With as many digits as tell them apart.
function formatTicks(values) {
  let labels;
  for (let digits = 4; digits <= 9; ++digits) {
    labels = values.map(value => format(value, digits));
    if (new Set(labels).size === labels.length) break;
  }
  return labels;
}

const colour = i => `var(--c${i % 8})`;
const dashes = ['', '6 3', '2 3', '8 3 2 3', '12 4', '1 4'];

// ---- curves ----

// The mean around each value, weighed by `weight` to the power of the distance: on both sides, so
// that a falling curve is not drawn late.
function smoothed(values, weight) {
  if (weight === 0) return values;
  const sums = new Array(values.length).fill(0), totals = new Array(values.length).fill(0);
  for (const way of [1, -1]) {
    let sum = 0, total = 0;
    for (let k = 0; k < values.length; ++k) {
      const i = way > 0 ? k : values.length - 1 - k;
      sums[i] += sum;
      totals[i] += total;
      sum = weight * (sum + values[i]);
      total = weight * (total + 1);
    }
  }
  return values.map((value, i) => (sums[i] + value) / (totals[i] + 1));
}

function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map(k => k * power).find(s => s >= rough);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-9; at += step) found.push(+at.toPrecision(12));
  return found;
}

function logTicks(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); ++power) {
    for (const k of [1, 2, 5]) if (k * 10 ** power >= low && k * 10 ** power <= high) found.push(k * 10 ** power);
  }
  if (found.length < 3) return ticks(low, high, 4).filter(v => v > 0);
  return found.length > 7 ? found.filter(v => Math.abs(Math.log10(v) % 1) < 1e-9) : found;
}

// Tokens that the run had seen after each of these steps.
function tokensAt(run, steps) {
  const {step, max, mean} = run.series['time/token'];
  const known = [0, ...step], tokens = [0, ...(max || mean)];
  let k = 1;
  return steps.map(at => {
    while (k < known.length - 1 && known[k] < at) ++k;
    return tokens[k - 1] + (tokens[k] - tokens[k - 1]) * (at - known[k - 1]) / (known[k] - known[k - 1]);
  });
}

const axis = () => byId('axis').value;
const positions = (run, steps) => axis() === 'tokens' ? tokensAt(run, steps) : steps;

// One range for all charts, so that what stands below one another is of one time.
function range() {
  return [0, Math.max(...runs.map(run => positions(run, [run.step])[0]), 1)];
}

// A chart: {title, curves: [{name, run, series, smooth, colour, dash}]}.
function drawChart(card, chart) {
  const strength = byId('smooth').value / 100;  // of the points of a curve
  const width = Math.max(card.clientWidth - 24, 120), height = 210;
  const left = 54, right = 10, top = 8, bottom = 22;
  const curves = chart.curves.map(curve => {
    const weight = curve.smooth && strength > 0 ? Math.exp(-1 / (strength * curve.series.mean.length)) : 0;
    return {...curve, weight, x: positions(curve.run, curve.series.step), y: smoothed(curve.series.mean, weight)};
  });
  let low = Infinity, high = -Infinity;
  const log = byId('log').checked && curves.every(c => c.series.mean.some(v => v > 0));
  for (const curve of curves) {
    const sorted = [...curve.series.mean, ...curve.y].filter(v => !log || v > 0).sort((a, b) => a - b);
    // One spike among hundreds of values must not press the rest flat.
    const spare = sorted.length > 200 ? Math.floor(sorted.length / 200) : 0;
    low = Math.min(low, sorted[spare]);
    high = Math.max(high, sorted[sorted.length - 1 - spare]);
  }
  const [first, last] = range();
  if (low === high) { const pad = Math.abs(low) * 0.1 || 1; low -= log ? 0 : pad; high += pad; }
  const scale = v => log ? Math.log(Math.max(v, 1e-300)) : v;
  const pad = (scale(high) - scale(low)) * 0.06;
  const from = scale(low) - pad, to = scale(high) + pad;
  const px = x => left + (x - first) / (last - first) * (width - left - right);
  const py = v => {
    const at = height - bottom - (scale(v) - from) / (to - from) * (height - top - bottom);
    return Math.min(Math.max(at, -1e4), 1e4);
  };
  const clip = `clip${chart.index}`;
  const picture = svg('svg', {class: 'chart', viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': chart.title},
    svg('clipPath', {id: clip}, svg('rect', {x: left, y: 0, width: Math.max(width - left, 1), height: height - bottom + 1})));
  const values = log ? logTicks(Math.exp(from), Math.exp(to)) : ticks(from, to, 5), labels = formatTicks(values);
  values.forEach((value, i) => {
    const label = svg('text', {x: left - 6, y: py(value) + 4, 'text-anchor': 'end'}, labels[i]);
    picture.append(svg('line', {class: 'grid', x1: left, x2: width - right, y1: py(value), y2: py(value)}), label);
  });
  const unit = axis() === 'tokens' ? 'tokens' : 'step';
  for (const x of ticks(first, last, Math.max(4, Math.floor(width / 75))).filter(Number.isInteger)) {
    const text = format(x), most = width - 3.3 * text.length;
    picture.append(svg('text', {x: Math.min(px(x), most), y: height - 5, 'text-anchor': 'middle'}, text));
  }
  picture.append(svg('text', {x: left - 12, y: height - 5, 'text-anchor': 'end', class: 'unit'}, unit));
  drawEvents(picture, chart, px, top, height - bottom);
  const path = (xs, ys) => xs.map((x, i) => `${i ? 'L' : 'M'}${px(x).toFixed(1)} ${py(ys[i]).toFixed(1)}`).join('');
  const lines = svg('g', {'clip-path': `url(#${clip})`});
  for (const {series, smooth, weight, x, y, colour, dash} of curves) {
    if (series.min) {
      const outline = path(x, series.max) + path([...x].reverse(), [...series.min].reverse()).replace('M', 'L');
      lines.append(svg('path', {class: 'band', d: outline + 'Z', style: `fill:${colour}`}));
    }
    if (weight > 0) lines.append(svg('path', {class: 'raw', d: path(x, series.mean), style: `stroke:${colour}`}));
    lines.append(svg('path', {class: 'curve', d: path(x, y), style: `stroke:${colour}`, 'stroke-dasharray': dash}));
    if (x.length === 1 || (!smooth && x.length <= 30)) x.forEach((at, i) => lines.append(svg('circle', {cx: px(at), cy: py(y[i]), r: 2.5, style: `fill:${colour}`})));
  }
  const cross = svg('line', {class: 'cross', y1: top, y2: height - bottom, visibility: 'hidden'});
  picture.append(lines, cross);
  picture.addEventListener('pointermove', event => {
    const box = picture.getBoundingClientRect();
    const pointed = first + ((event.clientX - box.left) / box.width * width - left) / (width - left - right) * (last - first);
    const rows = [];
    let nearest = null;
    for (const curve of curves) {
      let best = 0;
      curve.x.forEach((x, i) => { if (Math.abs(x - pointed) < Math.abs(curve.x[best] - pointed)) best = i; });
      if (!nearest || Math.abs(curve.x[best] - pointed) < Math.abs(nearest.x - pointed)) {
        nearest = {x: curve.x[best], step: curve.series.step[best]};
      }
      const spread = curve.series.min ? ` (${format(curve.series.min[best])} to ${format(curve.series.max[best])})` : '';
      rows.push(node('div', {style: `color:${curve.colour}`}, `${curve.name}: ${format(curve.y[best])}${spread}`));
    }
    cross.setAttribute('x1', px(nearest.x));
    cross.setAttribute('x2', px(nearest.x));
    cross.setAttribute('visibility', 'visible');
    showTip(event, node('div', {}, `step ${nearest.step}${unit === 'tokens' ? `, ${format(nearest.x)} tokens` : ''}`), ...rows);
  });
  picture.addEventListener('pointerleave', () => { cross.setAttribute('visibility', 'hidden'); byId('tip').hidden = true; });
  const legend = node('div', {class: 'legend'});
  if (curves.length > 1 || several) {
    for (const {name, colour, dash} of curves) {
      const key = svg('svg', {width: 22, height: 8}, svg('line', {x1: 0, x2: 22, y1: 4, y2: 4, 'stroke-width': 2, style: `stroke:${colour}`, 'stroke-dasharray': dash}));
      legend.append(node('span', {}, key, name));
    }
  }
  card.replaceChildren(node('h3', {}, chart.title), legend, picture);
}

// Resumes and failures cross the chart; saves are ticks on its axis, where one run is shown.
function drawEvents(picture, chart, px, top, bottom) {
  for (const run of new Set(chart.curves.map(curve => curve.run))) {
    const kinds = {resume: ['mark', top], failed: ['mark failed', top], ...(several ? {} : {save: ['tick', bottom - 6]})};
    const shown = run.events.filter(event => kinds[event.event]).slice(-200);
    const at = positions(run, shown.map(event => event.step));
    shown.forEach((event, i) => {
      const [style, y1] = kinds[event.event];
      picture.append(svg('line', {class: style, x1: px(at[i]), x2: px(at[i]), y1, y2: bottom},
        svg('title', {}, `${run.name}: ${event.event} at step ${event.step}`)));
    });
  }
}

function showTip(event, ...content) {
  const tip = byId('tip');
  tip.replaceChildren(...content);
  tip.hidden = false;
  const x = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 6);
  tip.style.left = `${Math.max(x, 4)}px`;
  tip.style.top = `${Math.max(Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 6), 4)}px`;
}

// [title, keys, the keys whose curves are smoothed]; a key belongs to the first that takes it.
const all = /./, none = /$^/;
const trainEntropy = /^loss\/train\/loss$/, evalEntropy = /^metrics\/eval\/.*CrossEntropy$/;
const lossPlan = () => several
  ? [['Training cross-entropy, nats per token', trainEntropy, all], ['Evaluation cross-entropy, nats per token', evalEntropy, none]]
  : [['Cross-entropy, nats per token', /^loss\/train\/loss$|^metrics\/eval\/.*CrossEntropy$/, trainEntropy]];
const plan = () => [
  ['Training loss, the router’s losses included', /^loss\/train\/total$/, all],
  ...lossPlan(),
  ['Load-balancing loss', /^loss\/train\/lbl$/, all],
  ['Router z-loss', /^loss\/train\/zloss$/, all],
  ['Tokens per second', /^throughput\/(device\/)?tokens_per_sec$/, all],
  ['Learning rate', /^lr-/, none],
  ['Gradient norm', /^l2_norm\/grad\/global$/, all],
  ['Share of the device’s peak FLOPs in use', /^throughput\/device\/mfu$/, all],
  several ? ['Peak memory, GB', /^memory\/peak_(allocated|resident)_mem$/, none] : ['Memory, GB', /^memory\//, none],
  several ? ['The busiest expert’s share of the tokens', /^mb_moe\/all_layers_max/, all]
    : ['Share of the tokens that an expert gets', /^mb_moe\/all_layers_/, all],
  ['Entropy of the expert load (1: even)', /^report\/load_entropy$/, all],
  ['Entropy of the router (1: undecided, 0: certain)', /router_entropy/, all],
  ['Loss scale', /^loss_scale$/, none],
];
const duplicates = /^metrics\/train\/LanguageCrossEntropy$|^time\/|^throughput\/device\/.*_per_sec$|^mb_moe\/layer\d/;
const routerLoss = /^loss\/train\/(lbl|zloss)$/;
const shortName = key => key.replace(/^memory\/(.*)_mem$/, (_, what) => what.replace('_', ' ')).replace(/^mb_moe\/all_layers_(.*)_tpe$/, '$1').replace(/^loss\/train\/loss$/, 'training')
  .replace(/^metrics\/eval\/(.*)LanguageCrossEntropy$/, (_, label) => `evaluation ${label.replace(/\/$/, '')}`.trim());

function planCharts() {
  const found = [...new Set(runs.flatMap(run => Object.keys(run.series)))].filter(key => !duplicates.test(key)).sort();
  // The total of a dense model is its cross-entropy.
  const keys = found.some(key => routerLoss.test(key)) ? found : found.filter(key => key !== 'loss/train/total');
  const taken = new Set(), made = [];
  const add = (title, members, smooth, main) => {
    const curves = [];
    members.forEach((key, k) => runs.forEach((run, r) => {
      if (!run.series[key]) return;
      const label = [several ? run.name : '', members.length > 1 || !several ? shortName(key) : ''].filter(Boolean).join(' · ');
      curves.push({name: label, run, series: run.series[key], smooth: smooth.test(key), colour: colour(several ? r : k),
        dash: several ? dashes[k % dashes.length] : ''});
    }));
    made.push({title, main, curves, index: made.length});
  };
  for (const [title, pattern, smooth] of plan()) {
    const members = keys.filter(key => !taken.has(key) && pattern.test(key));
    members.forEach(key => taken.add(key));
    if (members.length) add(title, members, smooth, true);
  }
  for (const key of keys) if (!taken.has(key)) add(key, [key], all, false);
  return made;
}

// ---- tables, heat maps, texts ----

const utc = time => time.replace('T', ' ').replace('Z', '');

function summary() {
  const lastOf = series => series && series.mean.at(-1);
  const calm = series => series && smoothed(series.mean, Math.exp(-50 / series.mean.length)).at(-1);
  const evalKeys = [...new Set(runs.flatMap(run => Object.keys(run.series)))].filter(key => evalEntropy.test(key)).sort();
  const columns = [
    ['step', run => run.step], ['tokens', run => lastOf(run.series['time/token'])],
    ['training loss', run => calm(run.series['loss/train/total'])],
    ...evalKeys.map(key => [shortName(key), run => lastOf(run.series[key])]),
    ['tokens/s', run => calm(run.series['throughput/tokens_per_sec'])],
  ];
  const head = node('tr', {}, node('th', {}, 'run'), ...columns.map(([name]) => node('th', {}, name)), node('th', {}, 'last event'));
  const rows = runs.map((run, r) => {
    const event = run.events.at(-1);
    return node('tr', {}, node('td', {style: several ? `color:${colour(r)};font-weight:600` : ''}, run.name),
      ...columns.map(([, get]) => node('td', {}, format(get(run)))),
      node('td', event && event.event === 'failed' ? {class: 'bad'} : {}, event ? `${event.event} at ${event.step}` : '–'));
  });
  const parts = [node('div', {class: 'scroll'}, node('table', {}, head, ...rows))];
  for (const run of runs) {
    const last = run.events.at(-1);
    if (last && last.event === 'failed' && last.detail) parts.push(node('p', {class: 'bad'}, `${several ? run.name + ': ' : ''}${last.detail}`));
  }
  const marks = several ? 'dotted lines are resumes' : 'ticks on the axis are saves, dotted lines resumes';
  parts.push(node('p', {class: 'note'}, `Written ${utc(data.written)} UTC. Pale lines are not smoothed, bands are smallest to largest of the steps that a point stands for; ${marks}.`));
  for (const run of runs) {
    if (run.broken_lines) parts.push(node('p', {class: 'note'}, `${run.name}: ${run.broken_lines} unreadable lines were skipped.`));
    if (run.series_left_out) parts.push(node('p', {class: 'note'}, `${run.name}: more than 300 figures; the rest is left out.`));
  }
  byId('summary').replaceChildren(...parts);
}

// 0: an eighth of the even load or less, 0.5: even, 1: eight times and more.
function heatColour(at, dark) {
  const even = dark ? [42, 45, 48] : [241, 241, 239];
  const end = at < 0.5 ? (dark ? [92, 160, 255] : [22, 84, 190]) : (dark ? [255, 150, 80] : [204, 64, 10]);
  const weight = Math.min(1, Math.abs(at - 0.5) * 2) ** 0.7;
  return even.map((c, i) => Math.round(c + (end[i] - c) * weight));
}

function heatMaps(load) {
  const dark = matchMedia('(prefers-color-scheme: dark)').matches;
  const raw = atob(load.load), columns = load.step.length;
  const stops = [...Array(17).keys()].map(i => `rgb(${heatColour(i / 16, dark).join(',')})`);
  const maps = node('div', {class: 'maps'});
  for (let layer = 0; layer < load.layers; ++layer) {
    const canvas = node('canvas', {class: 'heat', width: columns, height: load.experts, role: 'img', 'aria-label': `expert load of layer ${layer}`});
    canvas.style.height = `${Math.min(Math.max(load.experts * 11, 66), 190)}px`;
    const context = canvas.getContext('2d'), image = context.createImageData(columns, load.experts);
    const byte = (expert, column) => raw.charCodeAt((layer * load.experts + expert) * columns + column);
    for (let expert = 0; expert < load.experts; ++expert) {
      for (let column = 0; column < columns; ++column) {
        image.data.set([...heatColour((byte(expert, column) - 1) / 254, dark), 255], (expert * columns + column) * 4);
      }
    }
    context.putImageData(image, 0, 0);
    canvas.addEventListener('pointermove', event => {
      const box = canvas.getBoundingClientRect();
      const column = Math.min(columns - 1, Math.max(0, Math.floor((event.clientX - box.left) / box.width * columns)));
      const expert = Math.min(load.experts - 1, Math.max(0, Math.floor((event.clientY - box.top) / box.height * load.experts)));
      const relative = 2 ** ((byte(expert, column) - 128) / 127 * 3);
      showTip(event, `step ${load.step[column]}, layer ${layer}, expert ${expert}: ${format(+relative.toPrecision(2))}× even`);
    });
    canvas.addEventListener('pointerleave', () => { byId('tip').hidden = true; });
    maps.append(node('div', {class: 'card'}, node('h3', {}, `Layer ${layer}`), canvas,
      node('div', {class: 'axis'}, node('span', {}, `step ${load.step[0]}`), node('span', {}, String(load.step.at(-1))))));
  }
  const scale = node('span', {class: 'scale', style: `background:linear-gradient(90deg,${stops.join(',')})`});
  return [node('h2', {}, 'Expert load over time'),
    node('p', {class: 'note'}, `One row for each of the ${load.experts} experts; tokens relative to an even spread: `,
      node('span', {class: 'key'}, '1/8', scale, '8×')), maps];
}

// The texts of one step, the newest at first; in a page that refreshes, the newest stays the newest.
let sampleBack = 0;
function sampleTexts(samples) {
  const newest = samples.length - 1;
  const slider = node('input', {type: 'range', min: 0, max: newest, value: Math.max(newest - sampleBack, 0), 'aria-label': 'step of the samples'});
  const label = node('output'), texts = node('div', {class: 'box'});
  const show = () => {
    const at = samples[slider.value];
    sampleBack = newest - slider.value;
    label.textContent = `step ${at.step}`;
    texts.replaceChildren(...at.texts.map(({prompt, text}) => node('pre', {}, node('span', {class: 'prompt'}, prompt), text)));
  };
  slider.addEventListener('input', show);
  show();
  const control = node('label', {class: 'steps'}, 'after', label);
  if (newest > 0) control.append(slider);
  return [node('h2', {}, 'Samples'), node('div', {class: 'card'}, control, texts)];
}

function eventTable(run) {
  const rows = [...run.events].reverse().map(e => node('tr', e.event === 'failed' ? {class: 'bad'} : {}, node('td', {}, String(e.step)),
    node('td', {}, e.event), node('td', {class: 'time'}, utc(e.time || '')), node('td', {}, e.detail || '')));
  const head = node('tr', {}, ...['step', 'event', 'UTC', ''].map(name => node('th', {}, name)));
  const parts = [node('h2', {}, 'Events'), node('div', {class: 'card box'}, node('table', {class: 'texts'}, head, ...rows))];
  if (run.events_dropped) parts.push(node('p', {class: 'note'}, `${run.events_dropped} earlier ones are left out.`));
  return parts;
}

function configText(run) {
  const text = node('pre', {});
  const others = runs.filter(other => other !== run && other.config).map(other => new Set(other.config.split('\n')));
  for (const line of run.config.replace(/\n$/, '').split('\n')) {
    const differs = others.some(other => !other.has(line));
    text.append(differs ? node('span', {class: 'differs'}, line) : line, '\n');
  }
  const parts = [node('h2', {}, 'Config'), node('div', {class: 'card box'}, text)];
  if (several) parts.push(node('p', {class: 'note'}, 'Marked lines are not in every run.'));
  return parts;
}

let shown = 0;
function drawRun() {
  const run = runs[shown], parts = [], pair = node('div', {class: 'pair'});
  if (several) {
    const choice = node('select', {'aria-label': 'run'}, ...runs.map((other, r) => node('option', r === shown ? {value: r, selected: ''} : {value: r}, other.name)));
    choice.addEventListener('change', () => { shown = +choice.value; drawRun(); });
    parts.push(node('h2', {}, 'One run: ', choice));
  }
  if (run.load) parts.push(...heatMaps(run.load));
  if (run.samples.length) parts.push(...sampleTexts(run.samples));
  if (run.events.length) pair.append(node('div', {}, ...eventTable(run)));
  if (run.config) pair.append(node('div', {}, ...configText(run)));
  byId('run').replaceChildren(...parts, pair);
}

// ---- the page ----

function draw() {
  byId('smooth-value').textContent = `${(+byId('smooth').value).toFixed(1)} %`;
  for (const chart of charts) if (chart.card.clientWidth > 0) drawChart(chart.card, chart);
}

function show(newData) {
  data = newData;
  runs = data.runs;
  several = runs.length > 1;
  document.title = `${runs.map(run => run.name).join(', ')} · dropless`;
  byId('title').textContent = several ? `${runs.length} runs` : runs[0].name;
  byId('axis-choice').hidden = !runs.every(run => run.series['time/token']);
  if (byId('axis-choice').hidden) byId('axis').value = 'step';
  summary();
  charts = planCharts();
  for (const chart of charts) chart.card = node('div', {class: 'card'});
  byId('charts').replaceChildren(...charts.filter(chart => chart.main).map(chart => chart.card));
  byId('more').lastElementChild.replaceChildren(...charts.filter(chart => !chart.main).map(chart => chart.card));
  byId('more').hidden = charts.every(chart => chart.main);
  if (!charts.length) byId('charts').append(node('p', {class: 'note'}, 'No figures yet.'));
  drawRun();
  draw();
}

show(JSON.parse(byId('data').textContent));
byId('smooth').addEventListener('input', draw);
byId('log').addEventListener('change', draw);
byId('axis').addEventListener('change', draw);
byId('more').addEventListener('toggle', draw);
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', drawRun);
let drawnWidth = innerWidth;
addEventListener('resize', () => { if (innerWidth !== drawnWidth) { drawnWidth = innerWidth; draw(); } });

// ---- a page that `train --serve` shows asks for news; one in a file has nobody to ask ----

const kNews = 5, kPatience = 60;  // seconds between questions, and at most after failed ones
let wait = kNews, tag = '';
async function refresh() {
  if (!document.hidden) {
    try {
      const answer = await fetch('data.json', {headers: {'If-None-Match': tag}, cache: 'no-store'});
      if (answer.status === 200) {
        tag = answer.headers.get('ETag');
        show(await answer.json());
      }
      wait = kNews;
      byId('live').textContent = 'live';
    } catch {
      wait = Math.min(2 * wait, kPatience);
      byId('live').textContent = 'no answer: the run has ended (its report.html has all of it), or its machine is out of reach';
    }
  }
  setTimeout(refresh, wait * 1000);
}
if (data.live) refresh();
