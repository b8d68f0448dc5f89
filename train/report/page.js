'use strict';
// Everything from a run reaches the page as text nodes and attributes, never as markup.
const data = JSON.parse(document.getElementById('data').textContent);
const runs = data.runs;
const several = runs.length > 1;
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

function format(value) {
  if (value === undefined || value === null) return '–';
  const size = Math.abs(value);
  if (size !== 0 && size < 1e-3) return value.toExponential(2).replace('.00e', 'e');
  for (const [unit, name] of [[1e12, 'T'], [1e9, 'G'], [1e6, 'M'], [1e4, 'k']]) {
    if (size >= unit) return +(value / (name === 'k' ? 1e3 : unit)).toPrecision(4) + ' ' + name;
  }
  return String(+value.toPrecision(4));
}

const colour = i => `var(--c${i % 8})`;
const dashes = ['', '6 3', '2 3', '8 3 2 3', '12 4', '1 4'];

// ---- curves ----

// Mean over about 1 / (1 - weight) points, the first ones not drawn towards zero.
function smoothed(values, weight) {
  let sum = 0, total = 0;
  return values.map(value => {
    sum = weight * sum + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return sum / total;
  });
}

function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(k => k * power).find(s => s >= rough);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-9; at += step) found.push(+at.toPrecision(12));
  return found;
}

function logTicks(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); ++power) {
    for (const k of [1, 2, 5]) if (k * 10 ** power >= low && k * 10 ** power <= high) found.push(k * 10 ** power);
  }
  if (found.length < 2) return ticks(low, high, 4).filter(v => v > 0);
  return found.length > 7 ? found.filter(v => Math.abs(Math.log10(v) % 1) < 1e-9) : found;
}

// A chart: {title, smooth, curves: [{name, run, series, colour, dash}]}.
function drawChart(card, chart) {
  const weight = chart.smooth ? byId('smooth').value / 100 : 0;
  const width = card.clientWidth - 24, height = 210;
  const left = 54, right = 8, top = 8, bottom = 22;
  const curves = chart.curves.map(curve => ({...curve, y: smoothed(curve.series.mean, weight)}));
  let low = Infinity, high = -Infinity, first = Infinity, last = -Infinity;
  const log = byId('log').checked && curves.every(c => c.series.mean.some(v => v > 0));
  for (const curve of curves) {
    const sorted = [...curve.series.mean, ...curve.y].filter(v => !log || v > 0).sort((a, b) => a - b);
    // One spike among hundreds of values must not press the rest flat.
    const spare = sorted.length > 200 ? Math.floor(sorted.length / 200) : 0;
    low = Math.min(low, sorted[spare]);
    high = Math.max(high, sorted[sorted.length - 1 - spare]);
    first = Math.min(first, curve.series.step[0]);
    last = Math.max(last, curve.series.step.at(-1));
  }
  if (first === last) { first -= 1; last += 1; }
  if (low === high) { const pad = Math.abs(low) * 0.1 || 1; low -= log ? 0 : pad; high += pad; }
  const scale = v => log ? Math.log(Math.max(v, 1e-300)) : v;
  const pad = (scale(high) - scale(low)) * 0.04;
  const from = scale(low) - pad, to = scale(high) + pad;
  const px = step => left + (step - first) / (last - first) * (width - left - right);
  const py = v => {
    const at = height - bottom - (scale(v) - from) / (to - from) * (height - top - bottom);
    return Math.min(Math.max(at, -1e4), 1e4);
  };
  const clip = `clip${chart.index}`;
  const picture = svg('svg', {class: 'chart', viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': chart.title},
    svg('clipPath', {id: clip}, svg('rect', {x: left, y: 0, width: Math.max(width - left, 1), height: height - bottom + 1})));
  for (const value of log ? logTicks(low, high) : ticks(low, high, 4)) {
    const label = svg('text', {x: left - 6, y: py(value) + 4, 'text-anchor': 'end'}, format(value));
    picture.append(svg('line', {class: 'grid', x1: left, x2: width - right, y1: py(value), y2: py(value)}), label);
  }
  for (const step of ticks(first, last, Math.max(3, Math.floor(width / 70)))) {
    picture.append(svg('text', {x: px(step), y: height - 5, 'text-anchor': px(step) > width - 30 ? 'end' : 'middle'}, format(step)));
  }
  for (const run of new Set(chart.curves.map(curve => curve.run))) {
    for (const event of run.events.filter(e => e.event === 'resume').slice(-20)) {
      if (event.step < first || event.step > last) continue;
      picture.append(svg('line', {class: 'mark', x1: px(event.step), x2: px(event.step), y1: top, y2: height - bottom},
        svg('title', {}, `${run.name}: resumed at step ${event.step}`)));
    }
  }
  const path = (xs, ys) => xs.map((x, i) => `${i ? 'L' : 'M'}${px(x).toFixed(1)} ${py(ys[i]).toFixed(1)}`).join('');
  const lines = svg('g', {'clip-path': `url(#${clip})`});
  for (const {series, y, colour, dash} of curves) {
    if (series.min) {
      const outline = path(series.step, series.max) + path([...series.step].reverse(), [...series.min].reverse()).replace('M', 'L');
      lines.append(svg('path', {class: 'band', d: outline + 'Z', style: `fill:${colour}`}));
    }
    if (weight > 0) lines.append(svg('path', {class: 'raw', d: path(series.step, series.mean), style: `stroke:${colour}`}));
    lines.append(svg('path', {class: 'curve', d: path(series.step, y), style: `stroke:${colour}`, 'stroke-dasharray': dash}));
    if (series.step.length <= 30) {
      series.step.forEach((step, i) => lines.append(svg('circle', {cx: px(step), cy: py(y[i]), r: 2.5, style: `fill:${colour}`})));
    }
  }
  const cross = svg('line', {class: 'cross', y1: top, y2: height - bottom, visibility: 'hidden'});
  picture.append(lines, cross);
  picture.addEventListener('pointermove', event => {
    const box = picture.getBoundingClientRect();
    const step = first + ((event.clientX - box.left) / box.width * width - left) / (width - left - right) * (last - first);
    const rows = [];
    let at = null;
    for (const curve of curves) {
      let best = 0;
      curve.series.step.forEach((s, i) => { if (Math.abs(s - step) < Math.abs(curve.series.step[best] - step)) best = i; });
      at = at === null || Math.abs(curve.series.step[best] - step) < Math.abs(at - step) ? curve.series.step[best] : at;
      const spread = curve.series.min ? ` (${format(curve.series.min[best])} to ${format(curve.series.max[best])})` : '';
      rows.push(node('div', {style: `color:${curve.colour}`}, `${curve.name}: ${format(curve.y[best])}${spread}`));
    }
    cross.setAttribute('x1', px(at));
    cross.setAttribute('x2', px(at));
    cross.setAttribute('visibility', 'visible');
    showTip(event, node('div', {}, `step ${at}`), ...rows);
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

function showTip(event, ...content) {
  const tip = byId('tip');
  tip.replaceChildren(...content);
  tip.hidden = false;
  const x = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 6);
  tip.style.left = `${Math.max(x, 4)}px`;
  tip.style.top = `${Math.max(Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 6), 4)}px`;
}

// [title, keys, smoothed]; a key belongs to the first that takes it.
const plan = [
  ['Training loss', /^loss\/train\/total$/, true],
  ['Evaluation, cross-entropy', /^metrics\/eval\/.*CrossEntropy$/, false],
  ['Training cross-entropy', /^loss\/train\/loss$/, true],
  ['Load-balancing loss', /^loss\/train\/lbl$/, true],
  ['Router z-loss', /^loss\/train\/zloss$/, true],
  ['Tokens per second', /^throughput\/(device\/)?tokens_per_sec$/, true],
  ['Learning rate', /^lr-/, false],
  ['Gradient norm', /^l2_norm\/grad\/global$/, true],
  ['Memory', /^memory\//, false],
  ['Tokens per expert, all layers', /^mb_moe\/all_layers_/, true],
  ['Entropy of the expert load (1 = even)', /^report\/load_entropy$/, true],
  ['Router entropy', /router_entropy/, true],
  ['Loss scale', /^loss_scale$/, false],
];
const duplicates = /^metrics\/train\/LanguageCrossEntropy$|^time\//;
const shortName = key => key.replace(/^mb_moe\/all_layers_(.*)_tpe$/, '$1').replace(/^metrics\/eval\//, '').replace(/LanguageCrossEntropy$/, 'cross-entropy');

function planCharts() {
  const keys = [...new Set(runs.flatMap(run => Object.keys(run.series)))].filter(key => !duplicates.test(key)).sort();
  const taken = new Set(), charts = [];
  const add = (title, members, smooth, main) => {
    const curves = [];
    members.forEach((key, k) => runs.forEach((run, r) => {
      if (!run.series[key]) return;
      const label = [several ? run.name : '', members.length > 1 || !several ? shortName(key) : ''].filter(Boolean).join(' · ');
      curves.push({name: label, run, series: run.series[key], colour: colour(several ? r : k), dash: several ? dashes[k % dashes.length] : ''});
    }));
    charts.push({title, smooth, main, curves, index: charts.length});
  };
  for (const [title, pattern, smooth] of plan) {
    const members = keys.filter(key => !taken.has(key) && pattern.test(key));
    members.forEach(key => taken.add(key));
    if (members.length) add(title, members, smooth, true);
  }
  for (const key of keys) if (!taken.has(key)) add(key, [key], true, false);
  return charts;
}

// ---- tables, heat maps, texts ----

function summary() {
  const lastOf = series => series && series.mean.at(-1);
  const calm = series => series && smoothed(series.mean, 0.95).at(-1);
  const evalKeys = [...new Set(runs.flatMap(run => Object.keys(run.series)))].filter(key => /^metrics\/eval\/.*CrossEntropy$/.test(key)).sort();
  const columns = [
    ['step', run => run.step], ['tokens', run => lastOf(run.series['time/token'])],
    ['loss (smoothed)', run => calm(run.series['loss/train/total'])],
    ...evalKeys.map(key => [shortName(key).replace(/^cross-entropy/, 'evaluation'), run => lastOf(run.series[key])]),
    ['tokens/s', run => calm(run.series['throughput/tokens_per_sec'])],
  ];
  const head = node('tr', {}, node('th', {}, 'run'), ...columns.map(([name]) => node('th', {}, name)), node('th', {}, 'last event'));
  const rows = runs.map((run, r) => {
    const event = run.events.at(-1);
    return node('tr', {}, node('td', {style: several ? `color:${colour(r)};font-weight:600` : ''}, run.name),
      ...columns.map(([, get]) => node('td', {}, format(get(run)))), node('td', {}, event ? `${event.event} at ${event.step}` : '–'));
  });
  byId('summary').append(node('div', {class: 'scroll'}, node('table', {}, head, ...rows)),
    node('p', {class: 'note'}, `Written ${data.written.replace('T', ' ').replace('Z', ' UTC')}. Bands are minimum to maximum where a point stands for many steps; dotted lines are resumes.`));
  for (const run of runs) {
    if (run.broken_lines) byId('summary').append(node('p', {class: 'note'}, `${run.name}: ${run.broken_lines} unreadable lines were skipped.`));
    if (run.series_left_out) byId('summary').append(node('p', {class: 'note'}, `${run.name}: more than 300 figures; the rest is left out.`));
  }
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
  return [node('h2', {}, 'Expert load'),
    node('p', {class: 'note'}, 'One row an expert; tokens relative to an even spread. 1/8', scale, '8×'), maps];
}

function configText(run) {
  const lines = run.config.split('\n');
  const text = node('pre', {});
  const others = runs.filter(other => other !== run && other.config).map(other => new Set(other.config.split('\n')));
  for (const line of lines) {
    const differs = others.some(other => !other.has(line));
    text.append(differs ? node('span', {class: 'differs'}, line) : line, '\n');
  }
  return text;
}

function showRun(run) {
  const parts = [];
  if (run.load) parts.push(...heatMaps(run.load));
  if (run.samples.length) {
    const slider = node('input', {type: 'range', min: 0, max: run.samples.length - 1, value: run.samples.length - 1, 'aria-label': 'sample'});
    const label = node('span', {class: 'note'}), text = node('pre', {class: 'box'});
    const show = () => {
      const sample = run.samples[slider.value];
      label.textContent = ` step ${sample.step}`;
      text.replaceChildren(node('span', {class: 'prompt'}, sample.prompt), sample.text);
    };
    slider.addEventListener('input', show);
    show();
    parts.push(node('h2', {}, 'Samples'), node('div', {class: 'card'}, slider, label, text));
  }
  if (run.events.length) {
    const rows = [...run.events].reverse().map(e => node('tr', {}, node('td', {}, String(e.step)), node('td', {}, e.event),
      node('td', {}, (e.time || '').replace('T', ' ').replace('Z', '')), node('td', {}, e.detail || '')));
    const head = node('tr', {}, ...['step', 'event', 'UTC', ''].map(name => node('th', {}, name)));
    parts.push(node('h2', {}, 'Events'), node('div', {class: 'card box'}, node('table', {class: 'texts'}, head, ...rows)));
    if (run.events_dropped) parts.push(node('p', {class: 'note'}, `${run.events_dropped} earlier ones are left out.`));
  }
  if (run.config) {
    parts.push(node('h2', {}, 'Config'), node('div', {class: 'card box'}, configText(run)));
    if (several) parts.push(node('p', {class: 'note'}, 'Marked lines are not in every run.'));
  }
  return parts;
}

// ---- the page ----

document.title = `${runs.map(run => run.name).join(', ')} · dropless`;
byId('title').textContent = several ? `${runs.length} runs` : runs[0].name;
summary();
const charts = planCharts();
for (const chart of charts) {
  chart.card = node('div', {class: 'card'});
  (chart.main ? byId('charts') : byId('more').lastElementChild).append(chart.card);
}
byId('more').hidden = charts.every(chart => chart.main);

function draw() {
  byId('smooth-value').textContent = `${byId('smooth').value} %`;
  for (const chart of charts) if (chart.card.clientWidth > 0) drawChart(chart.card, chart);
}
let shown = 0;
const runBody = node('div');
function drawRun() { runBody.replaceChildren(...showRun(runs[shown])); }
if (several) {
  const choice = node('select', {'aria-label': 'run'}, ...runs.map((run, r) => node('option', {value: r}, run.name)));
  choice.addEventListener('change', () => { shown = +choice.value; drawRun(); });
  byId('run').append(node('h2', {}, 'One run: ', choice));
}
byId('run').append(runBody);
drawRun();
draw();
byId('smooth').addEventListener('input', draw);
byId('log').addEventListener('change', draw);
byId('more').addEventListener('toggle', draw);
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', drawRun);
let drawnWidth = innerWidth;
addEventListener('resize', () => { if (innerWidth !== drawnWidth) { drawnWidth = innerWidth; draw(); } });
