"use strict";
// The map: tiles for all samples, points for some of them.
const CLASSES = 6;
const MOST_NAMES = 7;
const points = data.map === null ? null : data.map.points;
let shownPoint = null;
let pinned = false;

function chosenColouring() {
  const checked = document.querySelector("input[name=colour]:checked");
  return checked === null ? "necessity" : checked.value;
}

function classesOf(values) {
  const sorted = values.filter((value) => value !== null).sort((left, right) => left - right);
  const limits = [];
  for (let at = 1; at < CLASSES; at += 1) limits.push(sorted[Math.floor((at * sorted.length) / CLASSES)]);
  const ends = [sorted[0], ...limits, sorted[sorted.length - 1]];
  const entries = ends.slice(1).map((high, at) => [color(`seq-${at + 1}`), `${number(ends[at])} to ${number(high)}`]);
  const of = (value) => (value === null ? color("pool") : color(`seq-${limits.filter((limit) => value >= limit).length + 1}`));
  return { colours: values.map(of), entries };
}

function namesOf(values, name) {
  const counts = new Map();
  for (const value of values) if (value !== null) counts.set(value, (counts.get(value) ?? 0) + 1);
  const most = [...counts.keys()].sort((left, right) => counts.get(right) - counts.get(left)).slice(0, MOST_NAMES);
  const entries = most.map((value, at) => [color(`cat-${at + 1}`), name(value)]);
  if (counts.size > most.length) entries.push([color("pool"), `${counts.size - most.length} others`]);
  const of = (value) => (most.includes(value) ? color(`cat-${most.indexOf(value) + 1}`) : color("pool"));
  return { colours: values.map(of), entries };
}

function membershipOf() {
  const tones = ["cat-3", "chosen", "aside", "pool"];
  const of = (point) => color(tones[point.group ?? tones.length - 1]);
  return { colours: points.map(of), entries: data.map.memberships.map((name, at) => [color(tones[at]), name]) };
}

function colouring() {
  const by = chosenColouring();
  if (by === "source") return namesOf(points.map((point) => point.source), (code) => data.map.sources[code]);
  if (by === "membership") return membershipOf();
  if (by === "group") {
    const named = namesOf(points.map((point) => point.group), (group) => `group ${group}`);
    return { ...named, entries: [...named.entries, [color("pool"), "not chosen"]] };
  }
  return classesOf(points.map((point) => (by === "necessity" ? point.necessity : point.scores[by.slice("score:".length)])));
}

function legend(entries) {
  const list = document.getElementById("map-legend");
  list.replaceChildren(
    ...entries.map(([shade, name]) => {
      const entry = document.createElement("li");
      const swatch = document.createElement("i");
      swatch.style.background = shade;
      entry.append(swatch, name);
      return entry;
    }),
  );
}

const tiles = {
  id: "tiles",
  beforeDatasetsDraw(chart) {
    const { ctx, chartArea: area } = chart;
    const { columns, rows, counts } = data.map;
    const highest = Math.log1p(Math.max(...counts));
    const [wide, high] = [area.width / columns, area.height / rows];
    ctx.save();
    ctx.fillStyle = color("ink");
    counts.forEach((count, tile) => {
      if (count === 0) return;
      ctx.globalAlpha = 0.04 + (0.26 * Math.log1p(count)) / highest;
      const [column, row] = [tile % columns, Math.floor(tile / columns)];
      ctx.fillRect(area.left + column * wide, area.bottom - (row + 1) * high, wide + 0.3, high + 0.3);
    });
    ctx.restore();
  },
};

function map() {
  const { colours, entries } = colouring();
  legend(entries);
  const onlyChosen = document.getElementById("only-chosen").checked;
  const dataset = (chosen, style) => {
    const members = points.map((_, at) => at).filter((at) => points[at].chosen === chosen);
    return {
      members,
      data: members.map((at) => ({ x: points[at].x, y: points[at].y })),
      pointBackgroundColor: members.map((at) => colours[at]),
      clip: false,
      ...style,
    };
  };
  const active = { pointHoverRadius: 9, pointHoverBorderWidth: 3, pointHoverBorderColor: color("focus") };
  const pool = dataset(false, { pointRadius: 3, pointBorderWidth: 0, hidden: onlyChosen, ...active });
  const chosen = dataset(true, { pointRadius: 5, pointBorderWidth: 1.5, pointBorderColor: color("ink"), ...active });
  return {
    type: "scatter",
    data: { datasets: [pool, chosen] },
    options: options({
      layout: { padding: 6 },
      interaction: { mode: "nearest", intersect: false },
      scales: { x: { display: false, min: 0, max: 1 }, y: { display: false, min: 0, max: 1 } },
      plugins: { tooltip: { enabled: false } },
      onHover: (event, active, chart) => {
        if (event.native?.type !== "click" && !pinned && active.length) show(chart, active[0]);
      },
      onClick: (event, active, chart) => {
        const again = active.length && shownPoint === at(chart, active[0]);
        pinned = active.length > 0 && !(pinned && again);
        if (active.length) show(chart, active[0]);
      },
    }),
    plugins: [tiles],
  };
}

const at = (chart, element) => chart.data.datasets[element.datasetIndex].members[element.index];

function show(chart, element) {
  shownPoint = at(chart, element);
  chart.setActiveElements([element]);
  chart.draw();
  describe(points[shownPoint]);
}

function groupOf(point) {
  if (point.group === null) return [];
  return [data.map.memberships ? data.map.memberships[point.group] : `group ${point.group}`];
}

function describe(point) {
  const part = (name, text, extra = {}) => Object.assign(document.createElement(name), { textContent: text }, extra);
  const parts = [];
  if (point.image) parts.push(part("img", "", { src: point.image.uri, width: point.image.width, height: point.image.height, alt: `Image of sample ${point.id}` }));
  else parts.push(part("p", point.placeholder, { className: "placeholder" }));
  const scores = Object.entries(point.scores).map(([name, value]) => `, ${name} ${number(value)}`);
  const flags = [point.chosen ? "chosen" : "not chosen", ...(point.seed ? ["seed sample"] : []), ...(point.measured ? [] : ["not scored: mean of its cluster"]), ...groupOf(point)];
  const line = part("p", "", { className: "score" });
  line.append(part("b", number(point.necessity)), `${data.unit.startsWith("nats") ? " nats" : ""}${scores.join("")}`, ...flags.map((flag) => part("span", flag, { className: flag === "chosen" ? "flag yes" : "flag" })));
  const turns = document.createElement("dl");
  for (const [kind, title, text] of [["user", "Question", point.question], ["assistant", "Answer", point.answer]]) {
    const turn = part("div", "", { className: kind });
    turn.append(part("dt", title), part("dd", text, { dir: "auto" }));
    turns.append(turn);
  }
  parts.push(line, turns, part("p", `${data.map.sources[point.source]} · ${point.tokens} answer tokens`, { className: "note" }), part("p", point.id, { className: "id" }));
  document.getElementById("map-detail").replaceChildren(...parts);
}

// From the point shown, arrow keys go to the next one in their direction.
const DIRECTIONS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

function walkMap(chart, key) {
  const from = points[shownPoint];
  const [right, up] = DIRECTIONS[key];
  let best = null;
  chart.data.datasets.forEach((set, datasetIndex) => {
    if (set.hidden) return;
    set.members.forEach((member, index) => {
      const [dx, dy] = [points[member].x - from.x, points[member].y - from.y];
      const ahead = right * dx + up * dy;
      if (member === shownPoint || ahead <= 0) return;
      const cost = ahead + 3 * Math.abs(right * dy + up * dx);
      if (best === null || cost < best.cost) best = { cost, datasetIndex, index };
    });
  });
  if (best !== null) show(chart, best);
}
