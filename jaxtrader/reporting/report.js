// Draws the charts of report.html as they come into view. `Plotly` is in a script before this one.
"use strict";

const COARSE = matchMedia("(pointer: coarse)").matches; // fingers: one scrolls the page, two zoom
const DARK = matchMedia("(prefers-color-scheme: dark)");
const CONFIG = {
  // Plotly's own buttons include one that sends the data to a server.
  displayModeBar: false,
  showTips: false,
  showSendToCloud: false,
  plotlyServerURL: "",
};

const json = (element) => JSON.parse(element.textContent);

/** The page's colours and fonts as a Plotly template. */
function template() {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const font = { color: colour("--text"), family: getComputedStyle(document.body).fontFamily, size: 13 };
  const axis = {
    automargin: true, gridcolor: colour("--line"), linecolor: colour("--line"),
    tickcolor: colour("--line"), zerolinecolor: colour("--muted"), title: { font: { size: 13 } },
  };
  return {
    layout: {
      font, paper_bgcolor: colour("--page"), plot_bgcolor: colour("--page"),
      xaxis: { ...axis, showgrid: false, showline: true, ticks: "outside", zeroline: false,
        spikecolor: colour("--muted"), spikethickness: 1 },
      yaxis: axis,
      legend: { font: { size: 13 } },
      hoverlabel: { bgcolor: colour("--raised"), bordercolor: colour("--line"), font, align: "left" },
    },
  };
}

// ------------------------------------------------------------------ time axes that count bars

const DAY = new Intl.DateTimeFormat("en-US", { timeZone: "UTC", month: "short", day: "numeric" });
const MONTH = new Intl.DateTimeFormat("en-US", { timeZone: "UTC", month: "short", year: "numeric" });
const date = (minutes) => new Date(minutes * 60000);
const iso = (minutes) => date(minutes).toISOString();
const day = (m) => Math.floor(m / 1440);
const month = (m) => 12 * date(m).getUTCFullYear() + date(m).getUTCMonth();

// From fine to coarse: what changes where a tick may stand, its label, and the label's second line.
const level = (of, label, below = () => "") => ({ of, label, below });
const days = (of) => level(of, (m) => DAY.format(date(m)), (m) => iso(m).slice(0, 4));
const LEVELS = [
  level((m) => m, (m) => iso(m).slice(11, 16), (m) => DAY.format(date(m))),
  days(day),
  days((m) => Math.floor((day(m) + 3) / 7)), // weeks begin on Monday
  ...[1, 2, 3, 6].map((n) => level((m) => Math.floor(month(m) / n), (m) => MONTH.format(date(m)))),
  ...[1, 2, 5].map((n) => level((m) => Math.floor(month(m) / 12 / n), (m) => iso(m).slice(0, 4))),
];

/** Positions and labels of at most `room` ticks for the bars `from` to `to` of `times`. */
function ticks(times, from, to, room) {
  const first = Math.max(0, Math.ceil(from));
  const last = Math.min(times.length - 1, Math.floor(to));
  const starts = ({ of }) => {
    const at = [];
    for (let i = first; i <= last; i++) {
      if (of === LEVELS[0].of || (i > 0 && of(times[i]) !== of(times[i - 1]))) at.push(i);
    }
    return at;
  };
  let chosen = LEVELS.find((one) => starts(one).length <= room) ?? LEVELS.at(-1);
  if (starts(chosen).length < 3) chosen = LEVELS[Math.max(0, LEVELS.indexOf(chosen) - 1)];
  let at = starts(chosen);
  const every = Math.ceil(at.length / room);
  at = at.filter((_, n) => n % every === 0);
  let shown = "";
  const text = at.map((i) => {
    const below = chosen.below(times[i]);
    const line = below === shown ? "" : `<br>${below}`;
    shown = below;
    return chosen.label(times[i]) + line;
  });
  return { tickvals: at, ticktext: text };
}

/** Range of a y axis that holds what its visible traces have from one bar to another. */
function span(div, axis, [left, right]) {
  const [from, to] = [Math.floor(left), Math.ceil(right)]; // lines lead there
  let low = Infinity;
  let high = -Infinity;
  for (const trace of div._fullData) {
    if (trace.visible !== true || (trace.yaxis ?? "y") !== axis) continue;
    for (let i = 0; i < trace.y.length; i++) {
      if (trace.x[i] < from || trace.x[i] > to) continue;
      low = Math.min(low, trace.y[i]);
      high = Math.max(high, trace.y[i]);
    }
  }
  if (low > high) return null;
  const pad = 0.06 * (high - low) || 0.01 * Math.abs(high) || 1;
  return [low - pad, high + pad];
}

const room = (div) => Math.max(2, Math.floor(div.clientWidth / 85));

/** What else changes when one zooms: the button; on a time axis also its dates, and the y axes. */
function follow(chart, div, times) {
  const reset = chart.querySelector(".reset");
  div.adjust = async () => {
    const x = div._fullLayout.xaxis;
    reset.hidden = x.autorange;
    if (!times) return;
    const { tickvals, ticktext } = ticks(times, ...x.range, room(div));
    const change = { "xaxis.tickvals": tickvals, "xaxis.ticktext": ticktext };
    for (const name of Object.keys(div._fullLayout).filter((key) => /^yaxis\d*$/.test(key))) {
      const range = x.autorange ? null : span(div, name.replace("axis", ""), x.range);
      change[range ? `${name}.range` : `${name}.autorange`] = range ?? true;
    }
    await Plotly.relayout(div, change);
  };
  div.on("plotly_relayout", (change) => {
    if (Object.keys(change).some((key) => /^xaxis\.(auto)?range/.test(key))) div.adjust();
  });
  reset.addEventListener("click", () => Plotly.relayout(div, { "xaxis.autorange": true }));
  pinch(div);
}

/** Two fingers keep the bars under them while they move. */
function pinch(div) {
  const [low, high] = div._fullLayout.xaxis.range; // all there is
  let held = null;
  const places = (event) => {
    const left = div.getBoundingClientRect().left + div._fullLayout.xaxis._offset;
    return [...event.touches].map((touch) => touch.clientX - left).sort((a, b) => a - b);
  };
  div.addEventListener("touchstart", (event) => {
    held = event.touches.length === 2 ? places(event).map((p) => div._fullLayout.xaxis.p2d(p)) : null;
  }, { capture: true, passive: true });
  div.addEventListener("touchmove", (event) => {
    if (!held || event.touches.length !== 2) return;
    event.preventDefault();
    const [a, b] = places(event);
    const scale = (held[1] - held[0]) / Math.max(b - a, 20);
    const from = Math.max(low, held[0] - a * scale);
    const to = Math.min(high, held[0] + (div._fullLayout.xaxis._length - a) * scale);
    if (div.waiting) return;
    div.waiting = requestAnimationFrame(() => {
      div.waiting = null;
      const whole = from <= low && to >= high;
      Plotly.relayout(div, whole ? { "xaxis.autorange": true } : { "xaxis.range": [from, to] });
    });
  }, { passive: false });
}

// ------------------------------------------------------------------------------------ charts

/** Whether a trace belongs to what is chosen around its chart. */
function isChosen(trace, chart) {
  const inputs = [...chart.closest("section").querySelectorAll(".choice input")];
  return inputs.every(({ checked, dataset, value }) => {
    const own = trace.meta?.[dataset.key];
    return own === undefined || !checked || own === value;
  });
}

/** Plotly's own `responsive` leaves charts behind when several are resized at once. */
const fitter = new ResizeObserver((entries) => {
  for (const { target: div } of entries) {
    div.fitted = div.fitted.then(async () => {
      const width = div.clientWidth; // by now
      if (!width || width === div._fullLayout.width) return;
      await Plotly.relayout(div, { width });
      await div.adjust?.();
    });
  }
});

async function draw(chart) {
  const div = chart.querySelector(".plot");
  const { data, layout } = json(chart.querySelector("script"));
  const times = chart.dataset.times ? json(document.getElementById(chart.dataset.times)) : null;
  for (const trace of data) {
    trace.visible = isChosen(trace, chart);
    if (trace.meta?.clock) trace.text = trace.x.map((i) => `${iso(times[i]).slice(0, 16).replace("T", " ")} UTC`);
  }
  layout.template = template();
  const zooms = chart.querySelector(".reset");
  layout.dragmode = COARSE || !zooms ? false : "zoom";
  layout.width = div.clientWidth;
  if (times) Object.assign((layout.xaxis ??= {}), ticks(times, 0, times.length - 1, room(div)));
  await Plotly.newPlot(div, data, layout, CONFIG);
  if (zooms) follow(chart, div, times);
  div.fitted = Promise.resolve();
  fitter.observe(div);
  chart.dataset.drawn = "yes";
}

const charts = [...document.querySelectorAll(".plot")].map((div) => div.closest(".chart"));
const drawn = () => charts.filter((chart) => chart.dataset.drawn);
const begin = (chart) => {
  if (chart.dataset.begun) return;
  chart.dataset.begun = "yes";
  draw(chart);
};

const watcher = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    watcher.unobserve(target);
    begin(target);
  }
}, { rootMargin: "800px" });
for (const chart of charts) watcher.observe(chart);
addEventListener("beforeprint", () => charts.forEach(begin));

document.addEventListener("change", ({ target }) => {
  if (!target.closest(".choice")) return;
  for (const chart of drawn().filter((c) => c.closest("section") === target.closest("section"))) {
    const div = chart.querySelector(".plot");
    const own = div.data.flatMap((trace, i) => (trace.meta?.[target.dataset.key] === undefined ? [] : [i]));
    if (!own.length) continue;
    const visible = own.map((i) => isChosen(div.data[i], chart));
    Plotly.restyle(div, { visible }, own).then(() => div.adjust?.());
  }
});

DARK.addEventListener("change", () => {
  for (const chart of drawn()) Plotly.relayout(chart.querySelector(".plot"), { template: template() });
});
