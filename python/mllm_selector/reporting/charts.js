"use strict";
// The charts of the report but the map, drawn by Chart.js from the numbers in #report-data. Colours come from the
// style sheet, so that they follow light, dark and print. What stands here at the top is shared with map.js and report.js.
const data = JSON.parse(document.getElementById("report-data").textContent);
const root = document.documentElement;
const whole = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const percent = (value, digits = 1) => `${(100 * value).toFixed(digits)}%`;
const number = (value) => {
  if (value === null) return "–";
  const size = Math.abs(value);
  return size >= 1000 ? whole.format(Math.round(value)) : size >= 1 ? value.toPrecision(3) : value.toFixed(3);
};
const color = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();
const faded = (name, share) => color(name) + Math.round(255 * share).toString(16).padStart(2, "0");

// What the charts have in common.
function axis(title, extra = {}) {
  return {
    title: { display: Boolean(title), text: title, color: color("quiet"), font: { size: 12 } },
    grid: { color: color("line"), drawTicks: false },
    border: { display: false },
    ...extra,
    ticks: { color: color("quiet"), padding: 6, maxRotation: 0, font: { size: 12 }, ...extra.ticks },
  };
}

function tooltip(callbacks, extra = {}) {
  return {
    backgroundColor: color("ink"),
    titleColor: color("paper"),
    bodyColor: color("paper"),
    padding: 10,
    cornerRadius: 6,
    displayColors: false,
    callbacks,
    ...extra,
  };
}

const options = (extra) => ({
  animation: false,
  responsive: true,
  maintainAspectRatio: false,
  interaction: { mode: "index", axis: "x", intersect: false },
  ...extra,
  plugins: { legend: { display: false }, ...extra.plugins },
});

// Histograms: bins of one width are drawn at their middles, the tail in one bar behind them.
const bins = data.histogram;
const width = bins.edges[1] - bins.edges[0];
const middles = bins.pool.map((_, bin) => bins.edges[0] + width * (bin + 0.5));
const binName = (bin) => {
  const [low, high] = [bins.edges[bin], bins.edges[bin + 1]].map((edge) => Number(edge.toPrecision(4)));
  return bins.tail && bin === bins.pool.length - 1 ? `${low} and more, up to ${high}` : `${low} to ${high}`;
};
// An empty bin has no bar: the least height of bars is for few samples, not for none.
const inBins = (counts) => counts.map((count, bin) => ({ x: middles[bin], y: count === 0 ? null : count }));
const bar = (counts, name, order) => ({
  data: inBins(counts),
  backgroundColor: color(name),
  grouped: false,
  order,
  barPercentage: 0.94,
  categoryPercentage: 1,
  minBarLength: 1,
});
const binAxis = (title, extra = {}) => {
  const regular = middles.length - (bins.tail ? 1 : 0);
  return axis(title, {
    type: "linear",
    min: bins.edges[0],
    max: bins.edges[0] + width * middles.length,
    offset: false,
    ...extra,
    grid: { display: false },
    ticks: {
      ...extra.ticks,
      callback: (value) => (value <= bins.edges[0] + width * regular + 1e-9 ? Number(value.toPrecision(6)) : ""),
    },
  });
};
const countOf = (pool, chosen) => `${whole.format(pool)} samples, ${whole.format(chosen)} chosen` + (pool ? ` (${percent(chosen / pool)})` : "");
const sameWidth = { afterFit: (scale) => { scale.width = 58; } };

function histogram(shown, small) {
  const label = (item) => countOf(shown.pool[item.dataIndex], shown.chosen[item.dataIndex]);
  return {
    type: "bar",
    data: { datasets: [bar(shown.pool, "pool", 2), bar(shown.chosen, "chosen", 1)] },
    options: options({
      layout: { padding: { right: 4 } },
      scales: {
        x: binAxis(small ? "" : axisTitle(), small ? { ticks: { maxTicksLimit: 5, font: { size: 11 } } } : {}),
        y: axis("", { display: !small, beginAtZero: true, ticks: { precision: 0, callback: (value) => short.format(value) }, ...(small ? {} : sameWidth) }),
      },
      plugins: { tooltip: tooltip({ title: (items) => binName(items[0].dataIndex), label, }, { filter: (item) => item.datasetIndex === 0 }) },
    }),
  };
}

const withUnit = (text) => (data.unit ? `${text} (${data.unit})` : text);
const axisTitle = () => {
  const unit = withUnit("necessity");
  return bins.tail ? `${unit}; last bar: ${Number(bins.edges[bins.edges.length - 2].toPrecision(3))} and more` : unit;
};

// Two selections: their bars stand beside each other.
function two() {
  const names = ["first", "second"];
  const set = (counts, tone) => ({ ...bar(counts, tone, 1), grouped: true });
  return {
    type: "bar",
    data: { datasets: [set(bins.pool, "chosen"), set(bins.chosen, "aside")] },
    options: options({
      layout: { padding: { right: 4 } },
      scales: {
        x: binAxis(axisTitle()),
        y: axis("", { beginAtZero: true, ticks: { precision: 0, callback: (value) => short.format(value) }, ...sameWidth }),
      },
      plugins: {
        tooltip: tooltip({
          title: (items) => binName(items[0].dataIndex),
          label: (item) => `${names[item.datasetIndex]}: ${whole.format(item.parsed.y ?? 0)} samples`,
        }),
      },
    }),
  };
}

function rates() {
  const overall = data.chosen / data.samples;
  const rate = bins.pool.map((pool, bin) => (pool ? bins.chosen[bin] / pool : 0));
  const ends = [bins.edges[0], bins.edges[0] + width * middles.length];
  return {
    type: "bar",
    data: {
      datasets: [
        { ...bar(rate, "chosen", 2), minBarLength: 0 },
        { type: "line", data: ends.map((x) => ({ x, y: overall })), borderColor: color("ink"), borderWidth: 1.5, borderDash: [5, 4], pointRadius: 0, pointHitRadius: 0, order: 1 },
      ],
    },
    options: options({
      layout: { padding: { right: 4 } },
      interaction: { mode: "nearest", axis: "x", intersect: false },
      scales: {
        x: binAxis("", { ticks: { display: false } }),
        y: axis("", { beginAtZero: true, ticks: { maxTicksLimit: 4, callback: (value) => `${Number((100 * value).toPrecision(3))}%` }, ...sameWidth }),
      },
      plugins: {
        tooltip: tooltip(
          { title: (items) => binName(items[0].dataIndex), label: (item) => `${percent(rate[item.dataIndex])} chosen` },
          { filter: (item) => item.datasetIndex === 0 },
        ),
      },
    }),
  };
}

function groups() {
  const shown = data.groups;
  const overall = data.chosen / data.samples;
  const largest = Math.max(...shown.map((group) => group.size));
  const most = Math.min(16, Math.max(5, 110 / Math.sqrt(shown.length)));
  const necessities = shown.map((group) => group.necessity);
  const ends = [Math.min(...necessities), Math.max(...necessities)];
  return {
    type: "bubble",
    data: {
      datasets: [
        {
          data: shown.map((group) => ({ x: group.necessity, y: group.chosen / group.size, r: Math.max(2, most * Math.sqrt(group.size / largest)) })),
          backgroundColor: faded("chosen", 0.4),
          hoverBackgroundColor: faded("chosen", 0.85),
          borderColor: color("chosen"),
          borderWidth: 1,
          hoverRadius: 0,
          clip: false,
        },
        { type: "line", data: ends.map((x) => ({ x, y: overall })), borderColor: color("ink"), borderWidth: 1.5, borderDash: [5, 4], pointRadius: 0, pointHitRadius: 0 },
      ],
    },
    options: options({
      layout: { padding: { right: most, top: most } },
      interaction: { mode: "nearest", intersect: false },
      scales: {
        x: axis(withUnit("mean necessity of the group"), { grace: "4%" }),
        y: axis("", { beginAtZero: true, ticks: { callback: (value) => `${Number((100 * value).toPrecision(3))}%` }, ...sameWidth }),
      },
      plugins: {
        tooltip: tooltip(
          {
            title: (items) => `group ${shown[items[0].dataIndex].group}`,
            label: (item) => {
              const group = shown[item.dataIndex];
              const lines = [`${whole.format(group.chosen)} of ${whole.format(group.size)} chosen (${percent(group.chosen / group.size)})`, `mean necessity ${number(group.necessity)}`];
              return group.source === null ? lines : [...lines, `mostly ${group.source}`];
            },
          },
          { filter: (item) => item.datasetIndex === 0 },
        ),
      },
    }),
  };
}

function coverage() {
  const { curves } = data.coverage;
  const all = curves.flatMap((curve) => curve.counts);
  const line = (curve, values, what, far) => ({
    label: `${curve.name}, ${what}`,
    data: curve.counts.map((x, place) => ({ x, y: values[place] })),
    borderColor: color(curve.tone),
    pointBackgroundColor: color(curve.tone),
    borderWidth: curve.tone === "quiet" ? 1.5 : 2.5,
    pointRadius: (curve.tone === "quiet" ? 2 : 3) + (far ? 1 : 0),
    pointStyle: far ? "triangle" : "circle",
    pointHoverRadius: 5,
    clip: false,
    segment: { borderDash: (context) => (context.p1.parsed.x > curve.budget ? [6, 5] : undefined) },
  });
  const round = (value) => ["1", "2", "5"].some((digit) => value === Number(`${digit}e${Math.floor(Math.log10(value))}`));
  return {
    type: "line",
    data: {
      datasets: curves.flatMap((curve) => [line(curve, curve.p95, "95% are nearer", true), line(curve, curve.median, "half are nearer", false)]),
    },
    options: options({
      layout: { padding: { top: 18, right: 10 } },
      scales: {
        x: axis("samples (log scale)", {
          type: "logarithmic",
          min: Math.min(...all),
          max: Math.max(...all),
          ticks: { autoSkipPadding: 16, callback: (value) => (round(value) ? short.format(value) : null) },
        }),
        y: axis("", { beginAtZero: true, ticks: { callback: (value) => Number(value.toPrecision(3)) }, ...sameWidth }),
      },
      interaction: { mode: "nearest", axis: "x", intersect: false },
      plugins: {
        tooltip: tooltip({
          title: (items) => `${whole.format(items[0].parsed.x)} samples`,
          label: (item) => `${item.dataset.label}: ${item.parsed.y.toFixed(3)}`,
        }),
      },
    }),
    plugins: [budgetMarks],
  };
}

const budgetMarks = {
  id: "marks",
  beforeDatasetsDraw(chart) {
    const { ctx, chartArea: area, scales } = chart;
    ctx.save();
    ctx.strokeStyle = ctx.fillStyle = color("ink");
    ctx.setLineDash([2, 3]);
    ctx.font = `12px ${Chart.defaults.font.family}`;
    data.coverage.marks.forEach(({ x, text }, number) => {
      const at = scales.x.getPixelForValue(x);
      ctx.beginPath();
      ctx.moveTo(at, area.top);
      ctx.lineTo(at, area.bottom);
      ctx.stroke();
      ctx.textAlign = number === 0 && at > (area.left + area.right) / 2 ? "right" : "left";
      ctx.fillText(text, at, area.top - 6);
    });
    ctx.restore();
  },
};
