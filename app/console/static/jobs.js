"use strict";

// Draws the pictures of one job, or of several over each other, from what `/console/jobs/ID/curves` says, and
// follows them as they grow. uPlot draws the lines; a range of steps that is looked at closer is asked for anew.
(() => {
  const root = document.getElementById("pictures");
  if (!root) return;

  const REM = parseFloat(getComputedStyle(document.documentElement).fontSize); // larger on large screens
  const HEIGHT = 15 * REM;
  const DASHES = JSON.parse(root.dataset.dashes);
  const jobs = JSON.parse(root.dataset.jobs).map((job, place) => ({ ...job, place, said: null, isAsked: false, isDue: false }));
  const isOverlay = jobs.length > 1;
  let range = null; // the steps that are looked at, or null for all of them

  const numbers = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });
  const steps = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
  const shorten = (value) => (value !== 0 && Math.abs(value) < 0.001 ? value.toExponential(1) : numbers.format(value));

  // Pictures

  class Picture {
    constructor(figure) {
      this.figure = figure;
      this.key = figure.dataset.key;
      this.lines = JSON.parse(figure.dataset.lines);
      this.plot = figure.querySelector(".plot");
      this.legend = figure.querySelector(".legend");
      this.chart = null;
      this.drawn = "";
    }

    get width() { return Math.max(200, Math.floor(this.plot.clientWidth)); }

    /** The lines that have points, each with its job. */
    get present() {
      return jobs.flatMap((job) => this.lines
        .filter((line) => job.said?.lines[line.name]?.[0].length)
        .map((line) => ({ ...line, job, points: job.said.lines[line.name] })));
    }

    draw() {
      const present = this.present;
      const drawn = present.map((line) => `${line.job.place}${line.name}`).join();
      if (drawn !== this.drawn) {
        this.chart?.destroy();
        this.chart = null;
        this.drawn = drawn;
        this.showLegend(present);
      }
      if (!present.length) return;
      const data = join(present.map((line) => line.points));
      if (this.chart) {
        this.chart.setData(data, false);
        this.chart.setScale("x", visible());
      } else {
        this.chart = new uPlot(this.options(present), data, this.plot);
        this.chart.setScale("x", visible());
        this.chart.ctx.canvas.setAttribute("role", "img");
        this.chart.ctx.canvas.setAttribute("aria-label", `${this.plot.dataset.label}; the numbers are in the table below`);
        listenToTouch(this.chart.over);
      }
      this.showValues(null);
    }

    redraw() { // the colours have changed
      this.drawn = "";
      this.draw();
    }

    showLegend(present) {
      this.legend.replaceChildren(...present.map((line) => {
        const item = document.createElement("li");
        item.className = classOf(line);
        const label = document.createElement("span");
        label.textContent = isOverlay ? `${line.job.title}: ${line.label}` : line.label;
        const value = document.createElement("output");
        item.append(swatch(line), label, value);
        return item;
      }));
    }

    showValues(index) {
      const items = this.legend.children;
      this.present.forEach((line, place) => {
        const [at, values] = line.points;
        let position = at.length - 1;
        if (index !== null) {
          const step = this.chart.data[0][index];
          position = nearest(at, step);
        }
        items[place].querySelector("output").textContent = `${shorten(values[position])} at ${steps.format(at[position])}`;
      });
    }

    options(present) {
      const style = getComputedStyle(this.figure);
      const soft = getComputedStyle(this.legend).color;
      const line = getComputedStyle(this.plot).borderTopColor;
      const axis = {
        stroke: soft, font: `${0.75 * REM}px ${style.fontFamily}`, grid: { stroke: line, width: 1 }, ticks: { show: false }, gap: 0.375 * REM,
      };
      return {
        width: this.width,
        height: HEIGHT,
        padding: [1.125 * REM, 1.75 * REM, 0, 0],
        legend: { show: false },
        scales: { x: { time: false, auto: false }, y: { range: (_, low, high) => padded(low, high) } },
        axes: [
          { ...axis, size: 1.875 * REM, space: 3.125 * REM, values: (_, found) => found.map((value) => (Number.isInteger(value) ? steps.format(value) : "")) },
          { ...axis, size: 3.5 * REM, space: 1.875 * REM, values: (_, found) => found.map(shorten) },
        ],
        cursor: {
          drag: { x: true, y: false, setScale: false },
          points: { size: 7 },
          sync: { key: "steps", setSeries: false },
          bind: { dblclick: () => () => { look(null); return null; } },
        },
        series: [{}, ...present.map((each, place) => this.series(each, this.legend.children[place]))],
        hooks: {
          setCursor: [(chart) => this.showValues(chart.cursor.idx ?? null)],
          setSelect: [(chart) => {
            if (chart.select.width < 4) return;
            const [first, last] = [chart.select.left, chart.select.left + chart.select.width].map((left) => Math.round(chart.posToVal(left, "x")));
            chart.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
            look([first, last]);
          }],
          draw: [(chart) => {
            if (isOverlay) return;
            markCheckpoints(chart, soft);
            if (this.key === "loss") placeCheckpoints(chart);
          }],
        },
      };
    }

    series(each, item) {
      const colour = getComputedStyle(item).color;
      const isEvaluation = each.style === "some" || each.style === "all";
      return {
        stroke: each.style === "steps" ? faint(colour) : colour,
        width: each.style === "steps" ? 1 : 2,
        dash: dashOf(each),
        points: isEvaluation
          ? { show: true, size: each.style === "all" ? 8 : 6, width: 2, stroke: colour, fill: each.style === "all" ? colour : getComputedStyle(this.figure).backgroundColor }
          : { show: each.points[0].length < 2, stroke: colour },
      };
    }
  }

  const pictures = [...root.querySelectorAll(".picture")].map((figure) => new Picture(figure));

  /** One column of steps with the values of every line, as uPlot takes them; like `uPlot.join`, for sorted steps. */
  function join(lines) {
    const all = Float64Array.from(new Set(lines.flatMap(([at]) => at))).sort();
    const place = new Map();
    all.forEach((step, index) => place.set(step, index));
    return [Array.from(all), ...lines.map(([at, values]) => {
      const column = new Array(all.length); // what is not there is no gap
      at.forEach((step, index) => { column[place.get(step)] = values[index]; });
      return column;
    })];
  }

  function nearest(sorted, step) {
    let low = 0;
    let high = sorted.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (sorted[middle] < step) low = middle + 1; else high = middle;
    }
    return low > 0 && step - sorted[low - 1] < sorted[low] - step ? low - 1 : low;
  }

  const padded = (low, high) => {
    if (low === null) return [0, 1];
    const space = (high - low || Math.abs(high) || 1) * 0.06;
    return [low - space, high + space];
  };

  function visible() {
    if (range) return { min: range[0], max: range[1] };
    const last = Math.max(...jobs.map((job) => job.said?.last_step ?? 1));
    return { min: 1, max: Math.max(2, last) };
  }

  const faint = (colour) => colour.replace(/^rgb\((.*)\)$/, "rgba($1, 0.35)");
  const classOf = (line) => (isOverlay ? `of-job-${line.job.place + 1}` : `is-${line.style}`);
  const dashOf = (line) => (isOverlay ? DASHES[line.job.place] : line.style === "some" ? [6, 4] : []);
  const playground = (name) => `/console/playground?${new URLSearchParams({ model: name })}`;

  function swatch(line) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const set = (element, values) => { for (const [name, value] of Object.entries(values)) element.setAttribute(name, value); return element; };
    const make = (name, values) => set(document.createElementNS("http://www.w3.org/2000/svg", name), values);
    set(svg, { width: 30, height: 12, "aria-hidden": "true", focusable: "false", class: "swatch" });
    const isThin = line.style === "steps";
    svg.append(make("path", { d: "M1 6h28", "stroke-width": isThin ? 1 : 2, opacity: isThin ? 0.5 : 1, "stroke-dasharray": dashOf(line).join(" ") }));
    if (line.style === "some") svg.append(make("circle", { cx: 15, cy: 6, r: 3, class: "hollow" }));
    if (line.style === "all") svg.append(make("circle", { cx: 15, cy: 6, r: 4, class: "filled" }));
    return svg;
  }

  function markCheckpoints(chart, colour) {
    const { ctx, bbox } = chart;
    const pixels = devicePixelRatio;
    ctx.save();
    ctx.strokeStyle = colour;
    ctx.globalAlpha = 0.45;
    ctx.lineWidth = pixels;
    ctx.setLineDash([pixels, 3 * pixels]);
    ctx.beginPath();
    for (const { step } of jobs[0].said.checkpoints) {
      const left = Math.round(chart.valToPos(step, "x", true));
      if (left < bbox.left || left > bbox.left + bbox.width) continue;
      ctx.moveTo(left, bbox.top);
      ctx.lineTo(left, bbox.top + bbox.height);
    }
    ctx.stroke();
    ctx.restore();
  }

  /** Links over the picture, one for each checkpoint as far as there is room; the table has all of them. */
  function placeCheckpoints(chart) {
    const { over } = chart;
    over.querySelectorAll(".mark").forEach((mark) => mark.remove());
    let before = -Infinity;
    for (const { step, name } of [...jobs[0].said.checkpoints].sort((one, other) => one.step - other.step)) {
      const left = chart.valToPos(step, "x");
      if (left < 0 || left > over.clientWidth || left - before < 16) continue;
      before = left;
      const mark = document.createElement("a");
      mark.className = "mark";
      mark.href = playground(name);
      mark.title = `Ask the checkpoint at step ${steps.format(step)}`;
      mark.tabIndex = -1;
      mark.setAttribute("aria-hidden", "true"); // the table of checkpoints has the same links
      mark.style.left = `${left}px`;
      over.append(mark);
    }
  }

  function showReadings(job) {
    if (isOverlay) return;
    for (const picture of pictures) {
      const paragraph = picture.figure.querySelector(".reading");
      const reading = job.said.readings[picture.key];
      const said = JSON.stringify(reading);
      if (paragraph.dataset.said === said) continue;
      paragraph.dataset.said = said;
      paragraph.replaceChildren(reading.text);
      if (reading.better) {
        const link = document.createElement("a");
        link.href = playground(reading.better.name);
        link.textContent = `The checkpoint at step ${steps.format(reading.better.step)}`;
        paragraph.append(" ", link, " may be the better one: ask both.");
      }
    }
  }

  // What is asked

  async function ask(job, query) {
    const columns = Math.max(...pictures.map((picture) => picture.width));
    const response = await toque.fetch(`${job.path}/curves?${new URLSearchParams({ columns, ...query })}`);
    if (!response.ok) throw new Error(`The points cannot be read now (${response.status}).`);
    return response.json();
  }

  async function readAll(job) {
    const looked = range;
    const said = await ask(job, looked ? { first: looked[0], last: looked[1] } : {});
    if (looked === range) job.said = said;
  }

  async function readNew(job) {
    const said = await ask(job, { first: job.said.last_step + 1 });
    const lines = { ...job.said.lines };
    let length = 0;
    for (const [name, [at, values]] of Object.entries(said.lines)) {
      const [before, valuesBefore] = lines[name] ?? [[], []];
      lines[name] = [before.concat(at), valuesBefore.concat(values)];
      length = Math.max(length, lines[name][0].length);
    }
    job.said = { ...said, lines };
    if (length > 8 * Math.max(...pictures.map((picture) => picture.width))) await readAll(job); // thinned out anew
  }

  async function update(job, isNew) {
    if (job.isAsked) { job.isDue = true; return; }
    job.isAsked = true;
    const problem = document.getElementById("pictures-problem");
    try {
      if (!job.said || !isNew) await readAll(job);
      else if (!range) await readNew(job);
      problem.hidden = true;
    } catch (error) {
      problem.textContent = `${error.message} They are asked for again with the next step.`;
      problem.hidden = false;
    }
    job.isAsked = false;
    if (job.said) show(job);
    if (job.isDue) { job.isDue = false; await update(job, true); }
  }

  function show(job) {
    performance.mark("pictures:begin");
    for (const picture of pictures) picture.draw();
    performance.measure("pictures:drawn", "pictures:begin");
    showReadings(job);
    showRange();
    root.dataset.drawn = Math.max(...jobs.map((each) => each.said?.last_step ?? 0));
  }

  // The range of steps

  const [first, last, showSteps, allSteps] = ["first-step", "last-step", "show-steps", "all-steps"].map((id) => document.getElementById(id));

  let isTyped = false; // and not asked for yet, so that news of the job must not replace it

  function showRange() {
    const { min, max } = visible();
    if (!isTyped && document.activeElement !== first) first.value = min;
    if (!isTyped && document.activeElement !== last) last.value = max;
    allSteps.hidden = !range;
  }

  function look(wanted) {
    isTyped = false;
    const end = Math.max(...jobs.map((job) => job.said?.last_step ?? 1));
    if (wanted) wanted = [Math.max(1, wanted[0]), Math.min(end, wanted[1])];
    range = wanted && wanted[1] > wanted[0] && (wanted[0] > 1 || wanted[1] < end) ? wanted : null;
    for (const job of jobs) {
      job.isAsked = false;
      update(job, false);
    }
  }

  showSteps.addEventListener("click", () => {
    const wanted = [first, last].map((field) => Number.parseInt(field.value.replace(/\D/g, ""), 10));
    if (wanted.every(Number.isFinite)) look(wanted);
  });
  for (const field of [first, last]) {
    field.addEventListener("input", () => { isTyped = true; });
    field.addEventListener("keydown", (event) => { if (event.key === "Enter") showSteps.click(); });
  }
  const fields = first.closest(".range");
  fields.addEventListener("focusout", (event) => { if (!fields.contains(event.relatedTarget)) isTyped = false; });
  allSteps.addEventListener("click", () => { look(null); first.focus(); });

  /** Two fingers look closer, a double tap shows all; one finger scrolls the page. */
  function listenToTouch(over) {
    let began = null;
    let tapped = 0;
    const left = (touch) => touch.clientX - over.getBoundingClientRect().left;
    const span = (touches) => [left(touches[0]), left(touches[1])].sort((one, other) => one - other);
    over.addEventListener("touchstart", (event) => {
      if (event.touches.length === 2) began = { at: span(event.touches), shown: visible() };
      else if (event.timeStamp - tapped < 300) look(null);
      tapped = event.timeStamp;
    }, { passive: true });
    over.addEventListener("touchmove", (event) => {
      if (!began || event.touches.length !== 2) return;
      event.preventDefault();
      began.now = span(event.touches);
    }, { passive: false });
    over.addEventListener("touchend", () => {
      if (began?.now) {
        const { min, max } = began.shown;
        const perPixel = (max - min) / over.clientWidth;
        const scale = Math.max(1, began.at[1] - began.at[0]) / Math.max(1, began.now[1] - began.now[0]);
        const middle = min + ((began.at[0] + began.at[1]) / 2) * perPixel;
        const half = ((max - min) * scale) / 2;
        look([Math.round(middle - half), Math.round(middle + half)]);
      }
      began = null;
    });
  }

  // What changes

  for (const job of jobs) {
    document.addEventListener(job.event, () => update(job, true));
    update(job, false);
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => pictures.forEach((picture) => picture.redraw()));
  let resized = 0;
  new ResizeObserver(() => {
    cancelAnimationFrame(resized);
    resized = requestAnimationFrame(() => {
      for (const picture of pictures) {
        if (picture.chart && picture.chart.width !== picture.width) {
          picture.chart.setSize({ width: picture.width, height: HEIGHT });
        }
      }
    });
  }).observe(root);
})();
