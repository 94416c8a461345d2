// The form: choices from the model's capabilities, and what it says as the body of a request.

import { byId, make } from "./dom.js";
import { count } from "./format.js";
import { examples, qualities, sizes } from "./options.js";

const CUSTOM = "custom";
const PREVIEWS = 3; // the most the API has; they are free, and few steps give fewer by themselves
const PARAMS = ["prompt", "model", "size", "n", "quality", "seed"];

const form = byId("settings");
const prompt = byId("prompt");
const model = byId("model");
const size = byId("size");
const seed = byId("seed");
let models = [];

/** Called after every change of a setting. */
let changed = () => {};

export function onChange(callback) {
  changed = callback;
}

/** Fill the form from the list of models; keeps what was chosen where that still exists. */
export function useModels(found) {
  models = found;
  const chosen = model.value;
  model.replaceChildren(...found.map(({ id }) => make("option", { value: id }, id)));
  if (found.some(({ id }) => id === chosen)) model.value = chosen;
  useModel();
}

export function currentModel() {
  return models.find(({ id }) => id === model.value);
}

/** The settings as a request; `prompt` may be blank. */
export function request() {
  const data = new FormData(form);
  const custom = size.value === CUSTOM;
  const body = {
    model: model.value,
    prompt: prompt.value,
    n: Number(data.get("n")),
    size: custom ? `${byId("width").value}x${byId("height").value}` : size.value,
    quality: data.get("quality"),
    output_format: data.get("output_format"),
  };
  // What is no number goes as it is: the server names the field, and the page shows it there.
  const wanted = seed.value.trim();
  if (wanted) body.seed = /^\d+$/.test(wanted) ? Number(wanted) : wanted;
  return body;
}

/** The same as a stream with everything there is to show. */
export function streamed(body) {
  return { ...body, stream: true, stream_progress: true, partial_images: PREVIEWS };
}

/** Fill in a picture's settings, to draw it again or to change one of them. */
export function reuse(picture) {
  prompt.value = picture.prompt;
  if (models.some(({ id }) => id === picture.model)) model.value = picture.model;
  useModel();
  setSize(picture.size);
  choose("quality", picture.quality);
  choose("output_format", picture.output_format);
  form.elements.n.value = "1";
  seed.value = String(picture.seed);
  update();
}

/** The cheapest settings of the model: smallest square, one picture, fewest steps. */
export function cheapest() {
  const { capabilities } = currentModel();
  const [value] = sizes(capabilities).sort(([one], [other]) => pixels(one) - pixels(other))[0];
  setSize(value);
  form.elements.n.value = "1";
  const [{ value: quality }] = qualities(capabilities);
  choose("quality", quality);
  update();
}

/** Show a refusal at the field that it names; false when the form has no such field. */
export function showProblem(param, message) {
  if (!PARAMS.includes(param)) return false;
  byId(`${param}-problem`).textContent = message;
  byId(param).setAttribute("aria-invalid", "true");
  return true;
}

export function clearProblems() {
  for (const param of PARAMS) {
    byId(`${param}-problem`).textContent = "";
    byId(param).removeAttribute("aria-invalid");
  }
}

export function focusPrompt() {
  prompt.focus();
}

function choose(name, value) {
  for (const radio of form.querySelectorAll(`input[name="${name}"]`)) radio.checked = radio.value === value;
}

function pixels(text) {
  const [width, height] = text.split("x").map(Number);
  return width * height;
}

function setSize(text) {
  const known = [...size.options].some(({ value }) => value === text);
  size.value = known ? text : CUSTOM;
  const [width, height] = text.split("x");
  byId("width").value = width;
  byId("height").value = height;
}

/** Choices for the chosen model. */
function useModel() {
  const { capabilities, aliases } = currentModel();
  const chosen = { size: size.value, n: form.elements.n.value, quality: new FormData(form).get("quality") };
  const { min_edge, max_edge, size_multiple, default_size, max_images } = capabilities;
  size.replaceChildren(
    ...sizes(capabilities).map(([value, label]) => make("option", { value }, label)),
    make("option", { value: CUSTOM }, "Custom…"),
  );
  setSize(chosen.size && chosen.size !== CUSTOM ? chosen.size : default_size);
  if (size.value === CUSTOM) setSize(default_size);
  for (const id of ["width", "height"]) {
    Object.assign(byId(id), { min: min_edge, max: max_edge, step: size_multiple });
  }
  const numbers = Array.from({ length: max_images }, (_, index) => String(index + 1));
  byId("n").replaceChildren(...numbers.map((value) => make("option", { value }, value)));
  if (numbers.includes(chosen.n)) byId("n").value = chosen.n;
  showQualities(capabilities, chosen.quality);
  const known = aliases.length ? ` Also answers to ${aliases.join(", ")}.` : "";
  byId("model-facts").textContent = `Edges ${min_edge} to ${max_edge} px in steps of ${size_multiple}.${known}`;
  showExamples();
}

function showQualities(capabilities, chosen) {
  const found = qualities(capabilities);
  const standard = found.find(({ steps }) => steps === capabilities.quality_steps.auto);
  const checked = found.some(({ value }) => value === chosen) ? chosen : standard.value;
  byId("quality").replaceChildren(
    ...found.map(({ value, label, steps }) =>
      make(
        "label",
        {},
        make("input", { type: "radio", name: "quality", value, checked: value === checked }),
        make("span", {}, label, make("span", { className: "visually-hidden" }, `, ${count(steps, "step")}`)),
      ),
    ),
  );
}

function showExamples() {
  byId("examples").replaceChildren(
    ...examples(currentModel()).map((text) => {
      const button = make("button", { type: "button" }, text);
      button.addEventListener("click", () => {
        prompt.value = text;
        prompt.focus();
        update();
      });
      return button;
    }),
  );
}

function update() {
  byId("custom-size").hidden = size.value !== CUSTOM;
  const most = currentModel().capabilities.prompt_max_chars;
  byId("clear-seed").hidden = seed.value === "";
  byId("prompt-count").textContent = `${[...prompt.value].length} / ${most}`;
  byId("examples").hidden = prompt.value !== "";
  changed();
}

form.addEventListener("input", update);
model.addEventListener("change", () => {
  useModel();
  update();
});
byId("clear-seed").addEventListener("click", () => {
  seed.value = "";
  seed.focus();
  update();
});
