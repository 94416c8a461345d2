// Forms that talk to the API: fields from a list, one request at a time, problems where they belong.

import { explain } from "./api.js";
import { byId, closable, make } from "./dom.js";

let serial = 0;

/** A labelled field: {name, label, hint, type, ...properties of the input}. */
export function field({ name, label, hint = "", ...properties }) {
  const id = `field-${++serial}`;
  const input = make("input", {
    id, name, autocomplete: "off", "aria-describedby": `${id}-problem`, ...properties,
  });
  return make(
    "div",
    { className: "field" },
    make("label", { className: "label", htmlFor: id }, label, make("span", { className: "muted" }, hint)),
    input,
    make("p", { className: "problem", id: `${id}-problem`, "data-problem": name }),
  );
}

export const reason = (required = false) =>
  field({ name: "reason", label: "Reason", hint: required ? "for the books" : "optional", maxLength: 1000 });

/** A whole number of a form, null when left empty; what is no number goes to the server as it is. */
export function whole(form, name) {
  const text = form.elements[name].value.replaceAll(/[\s,_]/g, "");
  if (text === "") return null;
  return /^\d{1,15}$/.test(text) ? Number(text) : text;
}

/** The text of a field, null when left empty. */
export function text(form, name) {
  return form.elements[name].value.trim() || null;
}

/** An idempotency key that nobody else has; `crypto.randomUUID` is missing on plain HTTP. */
export function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Run `act` when the form is sent; failures go to their field, else to `problem`. */
export function onSend(form, problem, act) {
  const button = form.querySelector("button.primary");
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (button.getAttribute("aria-disabled") === "true") return;
    clear(form, problem);
    button.setAttribute("aria-disabled", "true");
    try {
      await act();
    } catch (error) {
      show(form, problem, error);
    } finally {
      button.removeAttribute("aria-disabled");
    }
  });
}

function clear(form, problem) {
  problem.textContent = "";
  for (const place of form.querySelectorAll("[data-problem]")) place.textContent = "";
  for (const input of form.querySelectorAll("[aria-invalid]")) input.removeAttribute("aria-invalid");
}

function show(form, problem, error) {
  const place = error.param && form.querySelector(`[data-problem="${CSS.escape(error.param)}"]`);
  if (!place) {
    const { title, text: sentence } = explain(error);
    problem.textContent = `${title}. ${sentence}`;
    return;
  }
  place.textContent = error.message;
  const input = form.elements[error.param];
  if (!(input instanceof HTMLElement)) return;
  input.setAttribute("aria-invalid", "true");
  input.focus();
}

/** Ask in the dialog: `act(form)` runs when it is sent; the dialog closes when that went well. */
export function ask({ title, body, send, act, destructive = false }) {
  const dialog = byId("ask");
  const old = byId("ask-form");
  const form = old.cloneNode(true); // without the listeners of the question before
  old.replaceWith(form);
  closable(dialog);
  byId("ask-title").textContent = title;
  byId("ask-body").replaceChildren(...body);
  byId("ask-send").textContent = send;
  byId("ask-send").classList.toggle("destructive", destructive);
  byId("ask-problem").textContent = "";
  onSend(form, byId("ask-problem"), async () => {
    await act(form);
    dialog.close();
  });
  dialog.showModal();
  (form.querySelector("#ask-body input") ?? byId("ask-send")).focus();
}
