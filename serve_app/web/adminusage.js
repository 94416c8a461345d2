// Usage by day and model: bars, the same as a table, and the file.

import { byId, make } from "./dom.js";
import { SERIES_MAX, dayLabel, stackedBars, svg } from "./chart.js";
import { count, units } from "./format.js";
import { blank, failed, skeleton, table, url } from "./tables.js";

const PAGE = 1000; // rows a request: 90 days of ten models
const DAY_MS = 86_400_000;

export class UsageView {
  #api;
  #asking = null;

  constructor(api) {
    this.#api = api;
    for (const id of ["usage-days", "usage-account"]) byId(id).addEventListener("change", () => this.show());
    byId("usage-csv").addEventListener("click", () => this.#save());
  }

  /** Accounts to choose from; the chosen one stays. */
  useAccounts(accounts) {
    const select = byId("usage-account");
    const chosen = select.value;
    select.replaceChildren(
      make("option", { value: "" }, "All accounts"),
      ...accounts.map(({ id, name }) => make("option", { value: id }, name)),
    );
    select.value = accounts.some(({ id }) => id === chosen) ? chosen : "";
  }

  async show() {
    this.#asking?.abort();
    this.#asking = new AbortController();
    const place = byId("usage");
    if (!place.childElementCount) place.append(skeleton());
    const days = this.#days();
    try {
      const rows = await this.#rows(days, this.#asking.signal);
      if (rows.length) place.replaceChildren(draw(days, rows, roomOf(place)));
      else place.replaceChildren(blank("Nothing drawn yet", "In this period no pictures were charged."));
    } catch (error) {
      failed(place, error, () => this.show());
    }
  }

  async #rows(days, signal) {
    const found = [];
    let after = null;
    do {
      const query = { ...this.#query(days), by: "day,model", limit: PAGE, after };
      const page = await this.#api.get(url("admin/v1/usage", query), { signal });
      found.push(...page.data);
      after = page.next;
    } while (after);
    return found;
  }

  #query(days) {
    return { from: days[0], to: days.at(-1), account: byId("usage-account").value };
  }

  #days() {
    const many = Number(byId("usage-days").value);
    const today = Date.now();
    return Array.from({ length: many }, (_, index) =>
      new Date(today - (many - 1 - index) * DAY_MS).toISOString().slice(0, 10),
    );
  }

  async #save() {
    try {
      const file = await this.#api.file(url("admin/v1/usage", { ...this.#query(this.#days()), format: "csv" }));
      const link = make("a", { href: URL.createObjectURL(file), download: "usage.csv" });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href));
    } catch (error) {
      failed(byId("usage"), error, () => this.show());
    }
  }
}

/** Pixels for the chart: it shares the row with its table where the page is wide. */
function roomOf(place) {
  return matchMedia("(max-width: 60rem)").matches ? place.clientWidth : place.clientWidth / 2;
}

function draw(days, rows, room) {
  const models = byUnits(rows);
  const shown = models.slice(0, models.length > SERIES_MAX ? SERIES_MAX - 1 : SERIES_MAX);
  const series = shown.map((name) => ({ name, values: perDay(days, rows.filter(({ model }) => model === name)) }));
  if (shown.length < models.length) {
    const rest = rows.filter(({ model }) => !shown.includes(model));
    series.push({ name: "other models", values: perDay(days, rest) });
  }
  const total = sum(rows, "units");
  const label = `${units(total)} compute units in ${days.length} days, ${count(sum(rows, "images"), "image")}`;
  const legend = make(
    "ul",
    { className: "legend" },
    ...series.map(({ name, values }, index) =>
      make("li", {}, mark(index), `${name}: ${units(values.reduce((one, other) => one + other, 0))} CU`),
    ),
  );
  const columns = [
    { title: "Day (UTC)", cell: ({ day }) => dayLabel(day) },
    { title: "Model", cell: ({ model }) => model, className: "text" },
    { title: "Jobs", cell: ({ jobs }) => units(jobs), className: "num roomy" },
    { title: "Images", cell: ({ images }) => units(images), className: "num" },
    { title: "CU", cell: (row) => units(row.units), className: "num" },
  ];
  return make(
    "div",
    { className: "usage" },
    make("figure", { className: "stack" }, stackedBars(label, days, series, room), legend),
    table("Usage by day and model", columns, [...rows].reverse()),
  );
}

function mark(index) {
  return svg("svg", { viewBox: "0 0 12 12", "aria-hidden": "true" }, svg("rect", { width: 12, height: 12, rx: 3, class: `series-${index}` }));
}

function sum(rows, name) {
  return rows.reduce((total, row) => total + row[name], 0);
}

function perDay(days, rows) {
  return days.map((day) => sum(rows.filter((row) => row.day === day), "units"));
}

/** Names of models, the one with most units first. */
function byUnits(rows) {
  const names = [...new Set(rows.map(({ model }) => model))];
  const total = (name) => sum(rows.filter(({ model }) => model === name), "units");
  return names.sort((one, other) => total(other) - total(one) || one.localeCompare(other));
}
