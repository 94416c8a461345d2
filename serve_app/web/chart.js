// Stacked bars by day as SVG. Knows nothing of the API; the same numbers stand in a table beside it.

import { units } from "./format.js";

const WIDTH_MIN = 300; // smaller screens scale it, and its letters
const WIDTH_MAX = 640;
const RIGHT = 16;
const HEIGHT = 260;
const LEFT = 56;
const BOTTOM = 24;
const TOP = 12;
const LINES = 4;
const LABEL_EVERY = 80;
export const SERIES_MAX = 5;

const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const day = new Intl.DateTimeFormat("en", { month: "short", day: "numeric", timeZone: "UTC" });

export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export function dayLabel(iso) {
  return day.format(new Date(`${iso}T00:00:00Z`));
}

/** `days`: ISO days; `series`: [{name, values}] with one value a day; `room`: pixels that it gets. */
export function stackedBars(label, days, series, room) {
  const width = Math.min(Math.max(room, WIDTH_MIN), WIDTH_MAX);
  const totals = days.map((_, index) => series.reduce((sum, one) => sum + one.values[index], 0));
  const top = ceiling(Math.max(...totals, 1));
  const step = (width - LEFT - RIGHT) / days.length;
  const scale = (HEIGHT - BOTTOM - TOP) / top;
  const ground = HEIGHT - BOTTOM;
  const chart = svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, class: "chart", role: "img", "aria-label": label });
  for (let line = 0; line <= LINES; line += 1) {
    const value = (top * line) / LINES;
    const y = ground - value * scale;
    chart.append(
      svg("line", { x1: LEFT, x2: width - RIGHT, y1: y, y2: y }),
      svg("text", { x: LEFT - 8, y: y + 4, "text-anchor": "end" }, compact.format(value)),
    );
  }
  const every = Math.ceil((days.length * LABEL_EVERY) / (width - LEFT));
  days.forEach((iso, index) => {
    const x = LEFT + index * step;
    let y = ground;
    series.forEach(({ name, values }, number) => {
      const height = values[index] * scale;
      if (!height) return;
      y -= height;
      const bar = svg("rect", {
        x: x + step * 0.12, y, width: Math.min(step * 0.76, 48), height: Math.max(height, 1), class: `series-${number}`,
      });
      bar.append(svg("title", {}, `${dayLabel(iso)}, ${name}: ${units(values[index])} CU`));
      chart.append(bar);
    });
    if ((days.length - 1 - index) % every === 0) {
      chart.append(svg("text", { x: x + Math.min(step / 2, 24 + step * 0.12), y: HEIGHT - 6, "text-anchor": "middle" }, dayLabel(iso)));
    }
  });
  return chart;
}

/** The next of 1, 2, 4, 5 times a power of ten: lines at round numbers. */
function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 4, 5, 10].map((one) => one * power).find((one) => one >= value);
}
