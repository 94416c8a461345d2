// Replicas and open work of every model, asked for every two seconds while somebody can see them.

import { explain } from "./api.js";
import { byId, make } from "./dom.js";
import { count, units } from "./format.js";

const EVERY_MS = 2000;

export class Fleet {
  #api;
  #onRefused;
  #timer = null;
  #wanted = false;
  #round = 0;

  constructor(api, onRefused) {
    this.#api = api;
    this.#onRefused = onRefused;
    document.addEventListener("visibilitychange", () => this.#turn());
  }

  start() {
    this.#wanted = true;
    this.#turn();
  }

  stop() {
    this.#wanted = false;
    this.#turn();
  }

  #turn() {
    clearTimeout(this.#timer);
    this.#round += 1;
    if (!this.#wanted) return;
    if (document.hidden) say("paused", "Paused");
    else this.#ask(this.#round);
  }

  async #ask(round) {
    try {
      const { models } = await this.#api.get("admin/v1/status");
      if (round !== this.#round) return;
      byId("fleet-problem").replaceChildren();
      show(models);
      say("live", "Live");
    } catch (error) {
      if (round !== this.#round) return;
      if (error.status === 401 || error.status === 403) {
        this.#onRefused(error);
        return;
      }
      const { title, text } = explain(error);
      byId("fleet-problem").replaceChildren(
        make("div", { className: "notice" }, make("strong", {}, title), make("p", {}, text)),
      );
      say("broken", "Trying again");
    }
    this.#timer = setTimeout(() => this.#ask(round), EVERY_MS);
  }
}

function say(state, text) {
  const live = byId("live");
  live.dataset.state = state;
  if (live.textContent !== text) live.textContent = text;
}

function show(models) {
  byId("fleet").replaceChildren(
    ...models.map((model) =>
      make(
        "article",
        { className: "tile" },
        make("h3", {}, model.id),
        make("p", { className: "muted small" }, replicas(model)),
        figures([
          ["Replicas", units(model.replicas.running)],
          ["Jobs open", units(model.open_holds)],
          ["Images", units(model.held_images)],
        ]),
        make("p", { className: "small numbers" }, `${units(model.held_units)} CU held`),
      ),
    ),
  );
}

function replicas({ replicas: { running, starting, stopping, target }, num_gpus: gpus }) {
  if (target === null) return "Not deployed";
  const parts = [target === 0 && running === 0 ? "Scaled to zero" : `${count(target, "replica")} wanted`];
  if (starting) parts.push(`${starting} starting`);
  if (stopping) parts.push(`${stopping} stopping`);
  if (gpus) parts.push(`${gpus} GPU each`);
  return parts.join(" · ");
}

/** Numbers under their names. */
export function figures(pairs, className = "") {
  return make(
    "dl",
    { className: `figures ${className}` },
    ...pairs.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))),
  );
}
