// The price as one types: the newest settings are asked for, answers to older ones are dropped.

import { byId } from "./dom.js";
import { count, duration, units } from "./format.js";

const DEBOUNCE_MS = 200; // a pause in typing
const NO_PROMPT = "-"; // prices do not depend on the prompt, but the API wants one

const output = byId("quote");
const area = output.parentElement;

export class Quoter {
  #api;
  #timer = 0;
  #asked = null;
  #onQuote;
  #onProblem;
  /** The newest answer; null while it is out of date. */
  current = null;

  constructor(api, onQuote, onProblem) {
    this.#api = api;
    this.#onQuote = onQuote;
    this.#onProblem = onProblem;
  }

  /** Ask soon, unless something changes until then. */
  ask(body) {
    this.#stop();
    this.#timer = setTimeout(() => this.askNow(body), DEBOUNCE_MS);
  }

  async askNow(body) {
    this.#stop();
    const asked = new AbortController();
    this.#asked = asked;
    try {
      const wanted = body.prompt.trim() ? body : { ...body, prompt: NO_PROMPT };
      const quote = await this.#api.post("v1/images/quote", wanted, { signal: asked.signal });
      if (this.#asked !== asked) return;
      this.#show(quote);
      this.#onQuote(quote);
    } catch (error) {
      if (this.#asked !== asked || error.name === "AbortError") return;
      this.#show(null);
      this.#onProblem(error);
    }
  }

  #stop() {
    clearTimeout(this.#timer);
    this.#asked?.abort();
    this.#asked = null;
    this.current = null;
    area.setAttribute("aria-busy", "true");
  }

  #show(quote) {
    this.current = quote;
    area.setAttribute("aria-busy", "false");
    byId("quote-units").textContent = quote ? units(quote.units) : "–";
    const facts = quote ? [count(quote.steps, "step")] : [];
    if (quote?.estimated_s !== undefined) facts.push(`about ${duration(quote.estimated_s)}`);
    if (quote && !quote.affordable) facts.push("over the balance");
    byId("quote-facts").textContent = facts.join("\n");
    byId("generate").setAttribute("aria-disabled", String(quote !== null && !quote.affordable));
  }
}
