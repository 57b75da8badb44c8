"use strict";
// Draws all charts, again when colours change or for paper, and lets the arrow keys walk through them.
const charts = new Map();

function walk(chart, key) {
  const count = chart.data.datasets[0].data.length;
  const active = chart.tooltip.getActiveElements();
  const step = key === "ArrowRight" || key === "ArrowUp" ? 1 : -1;
  const index = active.length ? (active[0].index + step + count) % count : step > 0 ? 0 : count - 1;
  // Whatever stands at the same place is told together.
  const { x } = chart.data.datasets[0].data[index];
  const sets = chart.data.datasets.map((_, set) => set).filter((set) => chart.data.datasets[set].data[index]?.x === x);
  const elements = sets.map((datasetIndex) => ({ datasetIndex, index }));
  const place = chart.getDatasetMeta(0).data[index];
  chart.setActiveElements(elements);
  chart.tooltip.setActiveElements(elements, { x: place.x, y: place.y });
  chart.update("none");
  const { title, body } = chart.tooltip;
  document.getElementById("spoken").textContent = [...(title ?? []), ...(body ?? []).flatMap((part) => part.lines)].join(", ");
}

function onKey(event) {
  const chart = charts.get(event.currentTarget);
  if (!(event.key in DIRECTIONS) && event.key !== "Escape") return;
  event.preventDefault();
  if (event.key === "Escape") {
    pinned = false;
    chart.setActiveElements([]);
    chart.tooltip.setActiveElements([], { x: 0, y: 0 });
    chart.update("none");
  } else if (event.currentTarget.dataset.plot === "map") {
    pinned = true;
    walkMap(chart, event.key);
  } else {
    walk(chart, event.key);
  }
}

const kinds = {
  histogram: () => histogram(bins, false),
  rates,
  source: (canvas) => histogram(data.sources[Number(canvas.dataset.index)], true),
  two,
  groups,
  coverage,
  map,
};

function draw(canvas) {
  charts.get(canvas)?.destroy();
  charts.set(canvas, new Chart(canvas, kinds[canvas.dataset.plot](canvas)));
}

function drawAll() {
  Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
  document.querySelectorAll("canvas[data-plot]").forEach(draw);
  const canvas = document.querySelector("canvas[data-plot=map]");
  if (canvas === null) return;
  const chart = charts.get(canvas);
  chart.data.datasets.forEach((set, datasetIndex) => {
    const index = set.members.indexOf(shownPoint);
    if (index >= 0) show(chart, { datasetIndex, index });
  });
}

if (points !== null) {
  const rank = (point) => (point.chosen ? 1e6 : 0) + (point.necessity ?? -1);
  shownPoint = points.reduce((best, point, place) => (rank(point) > rank(points[best]) ? place : best), 0);
  describe(points[shownPoint]);
  document.getElementById("map-controls").addEventListener("change", drawAll);
}
drawAll();
document.querySelectorAll("canvas[data-plot]").forEach((canvas) => canvas.addEventListener("keydown", onKey));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
// A canvas keeps its pixels: for paper it is drawn again in the colours and size of print.
const forPrint = (printing) => () => {
  root.classList.toggle("printing", printing);
  drawAll();
};
addEventListener("beforeprint", forPrint(true));
addEventListener("afterprint", forPrint(false));
root.dataset.drawn = "true";
