"use strict";
// Draws the charts of the report from the numbers in #report-data. Colours come from the style sheet, so that they
// follow light, dark and print; every chart can be walked through with the arrow keys.
(() => {
  const data = JSON.parse(document.getElementById("report-data").textContent);
  const root = document.documentElement;
  const charts = new Map();
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

  const axisTitle = () => {
    const unit = "necessity (nats per answer token)";
    return bins.tail ? `${unit}; last bar: ${Number(bins.edges[bins.edges.length - 2].toPrecision(3))} and more` : unit;
  };

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
          x: axis("mean necessity of the group (nats per answer token)", { grace: "4%" }),
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
    const shown = data.coverage;
    const curve = (values, name, more) => ({
      label: name,
      data: shown.counts.map((x, place) => ({ x, y: values[place] })),
      borderWidth: 2.5,
      pointRadius: 3,
      pointHoverRadius: 5,
      clip: false,
      ...more,
    });
    const later = { segment: { borderDash: (context) => (context.p1.parsed.x > shown.budget ? [6, 5] : undefined) } };
    const own = { borderColor: color("chosen"), pointBackgroundColor: color("chosen") };
    const random = { borderColor: color("quiet"), pointBackgroundColor: color("quiet"), borderWidth: 1.5, pointRadius: 2 };
    const far = { pointStyle: "triangle", pointRadius: 4 };
    return {
      type: "line",
      data: {
        datasets: [
          curve(shown.p95, "selection, 95% are nearer", { ...own, ...later, ...far }),
          curve(shown.random_p95, "random samples, 95% are nearer", { ...random, ...far, pointRadius: 3 }),
          curve(shown.median, "selection, half are nearer", { ...own, ...later }),
          curve(shown.random_median, "random samples, half are nearer", random),
        ],
      },
      options: options({
        layout: { padding: { top: 18, right: 10 } },
        scales: {
          x: axis("samples (log scale)", {
            type: "logarithmic",
            min: shown.counts[0],
            max: shown.counts[shown.counts.length - 1],
            ticks: {
              autoSkipPadding: 16,
              callback: (value) => (["1", "2", "5"].includes(value.toExponential()[0]) && Number.isInteger(Math.log10(value / Number(value.toExponential()[0]))) ? short.format(value) : null),
            },
          }),
          y: axis("", { beginAtZero: true, ticks: { callback: (value) => Number(value.toPrecision(3)) }, ...sameWidth }),
        },
        plugins: {
          mark: { x: shown.budget, text: "this selection" },
          tooltip: tooltip({
            title: (items) => `${whole.format(items[0].parsed.x)} samples`,
            label: (item) => `${item.dataset.label}: ${item.parsed.y.toFixed(3)}`,
          }),
        },
      }),
      plugins: [budgetMark],
    };
  }

  const budgetMark = {
    id: "mark",
    beforeDatasetsDraw(chart, _, { x, text }) {
      const { ctx, chartArea: area, scales } = chart;
      const at = scales.x.getPixelForValue(x);
      ctx.save();
      ctx.strokeStyle = ctx.fillStyle = color("ink");
      ctx.setLineDash([2, 3]);
      ctx.beginPath();
      ctx.moveTo(at, area.top);
      ctx.lineTo(at, area.bottom);
      ctx.stroke();
      ctx.font = `12px ${Chart.defaults.font.family}`;
      ctx.textAlign = at > (area.left + area.right) / 2 ? "right" : "left";
      ctx.fillText(text, at, area.top - 6);
      ctx.restore();
    },
  };

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

  function colouring() {
    const by = chosenColouring();
    if (by === "source") return namesOf(points.map((point) => point.source), (code) => data.map.sources[code]);
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

  function describe(point) {
    const part = (name, text, extra = {}) => Object.assign(document.createElement(name), { textContent: text }, extra);
    const parts = [];
    if (point.image) parts.push(part("img", "", { src: point.image.uri, width: point.image.width, height: point.image.height, alt: `Image of sample ${point.id}` }));
    else parts.push(part("p", point.placeholder, { className: "placeholder" }));
    const scores = Object.entries(point.scores).map(([name, value]) => `, ${name} ${number(value)}`);
    const flags = [point.chosen ? "chosen" : "not chosen", ...(point.seed ? ["seed sample"] : []), ...(point.group === null ? [] : [`group ${point.group}`])];
    const line = part("p", "", { className: "score" });
    line.append(part("b", number(point.necessity)), ` nats${scores.join("")}`, ...flags.map((flag) => part("span", flag, { className: flag === "chosen" ? "flag yes" : "flag" })));
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

  function walk(chart, key) {
    const count = chart.data.datasets[0].data.length;
    const active = chart.tooltip.getActiveElements();
    const step = key === "ArrowRight" || key === "ArrowUp" ? 1 : -1;
    const index = active.length ? (active[0].index + step + count) % count : step > 0 ? 0 : count - 1;
    const sets = chart.options.interaction.mode === "index" ? chart.data.datasets.map((_, set) => set) : [0];
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
})();
