// Tables, lists that load page by page, and what stands in their place while there is nothing.

import { explain } from "./api.js";
import { make } from "./dom.js";

/** Columns: {title, cell(row), className}; the first one heads its row. */
export function table(label, columns, rows) {
  const head = columns.map(({ title, className = "" }) =>
    title === null
      ? make("td", { className })
      : make("th", { scope: "col", className }, title),
  );
  return make(
    "div",
    { className: "scroll", tabIndex: 0, role: "region", "aria-label": label },
    make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...lines(columns, rows))),
  );
}

function lines(columns, rows) {
  return rows.map((row) =>
    make(
      "tr",
      {},
      ...columns.map(({ cell, className = "" }, index) =>
        make(index ? "td" : "th", index ? { className } : { className, scope: "row" }, cell(row) ?? "–"),
      ),
    ),
  );
}

/** Show the first page of a listing in `place`, and a button for the next one. */
export async function listing(place, { api, path, label, columns, blank, query = {} }) {
  place.replaceChildren(skeleton());
  let page;
  try {
    page = await api.get(url(path, query));
  } catch (error) {
    failed(place, error, () => listing(place, { api, path, label, columns, blank, query }));
    return;
  }
  if (!page.data.length) {
    place.replaceChildren(blank);
    return;
  }
  const shown = table(label, columns, page.data);
  place.replaceChildren(shown);
  if (page.next) place.append(more(shown, page.next, { api, path, columns, query }));
}

function more(shown, next, { api, path, columns, query }) {
  const button = make("button", { type: "button", className: "wide" }, "Show more");
  const problem = make("p", { className: "problem", role: "alert" });
  let after = next;
  button.addEventListener("click", async () => {
    problem.textContent = "";
    try {
      const page = await api.get(url(path, { ...query, after }));
      shown.querySelector("tbody").append(...lines(columns, page.data));
      after = page.next;
      if (!after) button.remove();
    } catch (error) {
      problem.textContent = explain(error).text;
    }
  });
  return make("div", { className: "more" }, button, problem);
}

/** A path with parameters; those that are null or empty are left out. */
export function url(path, query) {
  const given = Object.entries(query).filter(([, value]) => value !== null && value !== "");
  return given.length ? `${path}?${new URLSearchParams(given)}` : path;
}

export function skeleton() {
  return make("div", { className: "pad stack", "aria-hidden": "true" },
    make("div", { className: "skeleton load" }), make("div", { className: "skeleton load" }));
}

/** A failure in the place of what was wanted, with a way on. */
export function failed(place, error, retry) {
  if (error.name === "AbortError") return;
  const { title, text } = explain(error);
  const again = make("button", { type: "button" }, "Try again");
  again.addEventListener("click", retry);
  place.replaceChildren(
    make("div", { className: "notice", role: "alert" }, make("strong", {}, title), make("p", {}, text),
      make("div", { className: "row" }, again)),
  );
}

export function blank(title, text, ...rest) {
  return make("div", { className: "blank" }, make("h2", {}, title), make("p", { className: "muted" }, text), ...rest);
}
