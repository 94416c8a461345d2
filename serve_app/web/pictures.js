// The pictures of this tab: one entry a job, one tile a picture, from "waiting" to a finished file.
// Data flow: events of the stream -> Job -> tiles. Files live in memory and end with the tab.

import { byId, closable, make } from "./dom.js";
import { count, duration, size as shownSize, units } from "./format.js";
import { curl, fileName, python } from "./snippets.js";

const PICTURES_KEPT = 100; // each is a file in memory: the oldest jobs make room

const list = byId("jobs");
const empty = byId("empty");
const viewer = byId("viewer");
const code = byId("code");
closable(viewer);
closable(code);
for (const button of code.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", () => copy(byId(button.dataset.copy)));
}

/** A job on the page: `request` is the body that was sent. */
export class Job {
  #tiles;
  #facts = make("p", { className: "muted small numbers" });
  #element;
  #cancel = make("button", { type: "button", className: "quiet" }, "Cancel");
  #started = performance.now();
  charged = 0;

  /** `onReuse(picture)` fills the form, `onCancel()` ends the job. */
  constructor(request, { onReuse, onCancel }) {
    this.request = request;
    this.#tiles = Array.from({ length: request.n }, () => new Tile(request.size, onReuse));
    const title = make("h3", { className: "job-prompt" }, request.prompt);
    this.#element = make(
      "li",
      { className: "job latest" },
      make("div", { className: "job-head" }, make("div", {}, title, this.#facts), this.#cancel),
      make("div", { className: "tiles" }, ...this.#tiles.map((tile) => tile.element)),
    );
    this.#cancel.addEventListener("click", onCancel);
    for (const older of list.children) older.classList.remove("latest");
    list.prepend(this.#element);
    empty.hidden = true;
    this.#tell("Sent");
  }

  get finished() {
    return this.#tiles.filter((tile) => tile.done).length;
  }

  /** Bring the job into view where the settings are above the pictures. */
  reveal() {
    this.#element.scrollIntoView({ block: "nearest" });
  }

  /** Take an event of the stream; returns what to tell people who listen, if anything. */
  take(event) {
    if (event.type === "image_generation.queued") return this.#queued(event);
    const tile = this.#tiles[event.image_index];
    if (event.type === "image_generation.progress") tile.progress(event.step, event.steps);
    if (event.type === "image_generation.partial_image") tile.preview(event);
    if (event.type === "image_generation.completed") return this.#completed(tile, event);
    return null;
  }

  /** No more events: drop the tiles that stayed empty, and the job if all did. */
  end(outcome) {
    for (const tile of this.#tiles) if (!tile.done) tile.element.remove();
    if (this.finished === 0) {
      this.#element.remove();
      list.firstElementChild?.classList.add("latest");
    }
    empty.hidden = list.children.length > 0;
    this.#cancel.remove();
    this.#tell(outcome);
    makeRoom();
  }

  #queued({ ahead, estimated_s }) {
    const parts = [ahead ? `${count(ahead, "picture")} ahead` : "Next in line"];
    if (estimated_s !== null) parts.push(`about ${duration(estimated_s)}`);
    const text = parts.join(" · ");
    for (const tile of this.#tiles) if (!tile.done) tile.wait(text);
    this.#tell("Drawing");
    return text;
  }

  #completed(tile, event) {
    const { prompt, model } = this.request;
    const { size, quality, output_format, seed } = event;
    tile.complete({ prompt, model, size, quality, output_format, seed }, event.b64_json);
    this.charged += event.usage.compute_units;
    this.#tell("Drawing");
    return `Picture ${this.finished} of ${this.request.n} is done.`;
  }

  #tell(outcome) {
    const seconds = duration((performance.now() - this.#started) / 1000);
    const parts = [outcome, shownSize(this.request.size), this.request.model];
    if (this.charged) parts.push(`${units(this.charged)} CU`, seconds);
    this.#facts.textContent = parts.join(" · ");
  }
}

/** One picture in the making, then the picture. */
class Tile {
  done = false;
  #bar = make("progress", { max: 1, "aria-label": "Steps drawn" });
  #text = make("p", { className: "muted small numbers" }, "Waiting for the model");
  #frame = make("div", { className: "frame" });
  #onReuse;

  constructor(size, onReuse) {
    this.#onReuse = onReuse;
    this.#shape(this.#frame, size);
    const state = make("div", { className: "tile-state" }, this.#bar, this.#text);
    this.element = make("div", { className: "tile" }, this.#frame, state);
  }

  wait(text) {
    this.#text.textContent = text;
  }

  progress(step, steps) {
    this.#bar.max = steps;
    this.#bar.value = step;
    this.#text.textContent = step < steps ? `Step ${step} of ${steps}` : "Finishing";
  }

  preview({ b64_json, output_format }) {
    this.#release();
    const image = make("img", { src: objectUrl(b64_json, output_format), alt: "Preview" });
    this.#frame.classList.add("preview");
    this.#frame.replaceChildren(image);
  }

  complete(picture, b64_json) {
    this.#release();
    this.done = true;
    const url = objectUrl(b64_json, picture.output_format);
    const alt = `${picture.prompt}, seed ${picture.seed}`;
    const open = make(
      "button",
      { type: "button", className: "frame", "aria-label": `Enlarge: ${alt}` },
      make("img", { src: url, alt: "" }),
    );
    this.#shape(open, picture.size);
    open.addEventListener("click", () => enlarge(url, alt, picture));
    const seed = make("p", { className: "muted small numbers" }, `Seed ${picture.seed}`);
    this.element.replaceChildren(open, seed, this.#actions(url, picture));
  }

  #actions(url, picture) {
    const seed = `, seed ${picture.seed}`;
    const download = make("a", { className: "button", href: url, download: fileName(picture), "aria-label": `Download${seed}` }, "Download");
    const asCode = make("button", { type: "button", "aria-label": `Code${seed}` }, "Code");
    asCode.addEventListener("click", () => showCode(picture));
    const reuse = make("button", { type: "button", "aria-label": `Reuse${seed}` }, "Reuse");
    reuse.addEventListener("click", () => this.#onReuse(picture));
    return make("div", { className: "actions" }, download, asCode, reuse);
  }

  #shape(element, size) {
    element.style.aspectRatio = size.replace("x", " / ");
  }

  #release() {
    const old = this.#frame.querySelector("img");
    if (old) URL.revokeObjectURL(old.src);
  }
}

function objectUrl(base64, format) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  return URL.createObjectURL(new Blob([bytes], { type: `image/${format}` }));
}

function makeRoom() {
  while (list.children.length > 1 && list.querySelectorAll("a[download]").length > PICTURES_KEPT) {
    const oldest = list.lastElementChild;
    for (const link of oldest.querySelectorAll("a[download]")) URL.revokeObjectURL(link.href);
    oldest.remove();
  }
}

function enlarge(url, alt, picture) {
  const image = byId("viewer-image");
  image.src = url;
  image.alt = alt;
  byId("viewer-title").textContent = `Seed ${picture.seed} · ${shownSize(picture.size)}`;
  viewer.showModal();
}

function showCode(picture) {
  byId("curl-text").textContent = curl(picture);
  byId("python-text").textContent = python(picture);
  byId("copy-state").textContent = "";
  code.showModal();
}

/** Browsers hand out the clipboard on https and loopback only; elsewhere the text is selected. */
async function copy(element) {
  try {
    await navigator.clipboard.writeText(element.textContent);
    byId("copy-state").textContent = "Copied.";
  } catch {
    getSelection().selectAllChildren(element);
    byId("copy-state").textContent = "The browser does not allow copying here. The text is selected: press Ctrl+C.";
  }
}
