// The API as pages use it: one key, relative paths, every failure an ApiError with a sentence.

import { events } from "./sse.js";

const ROOT = new URL("./", document.baseURI);

/** Where the API is, for code that a person copies: ".../v1". */
export const BASE_URL = new URL("v1", ROOT).href;

/** A failure that a person can be told of. `status` 0: the server was not reached. */
export class ApiError extends Error {
  constructor(status, body, retryAfter) {
    const error = body?.error ?? {};
    super(error.message ?? `The server answered with status ${status}.`);
    this.status = status;
    this.code = error.code ?? null;
    this.param = error.param ?? null;
    this.retryAfter = Number(retryAfter) || null;
  }

  /** The request was right: sent again later it may work. */
  get temporary() {
    return this.status === 0 || this.status >= 500 || this.status === 429 || this.status === 408;
  }
}

const TITLES = new Map([
  [0, "The server cannot be reached"],
  [401, "The API key is not accepted"],
  [402, "Not enough compute units"],
  [403, "The API key may not do this"],
  [404, "Not found"],
  [429, "Too many requests"],
  [500, "The model failed"],
  [503, "The server is busy"],
  [504, "It took too long"],
]);

/** A failure as a heading and a sentence. */
export function explain(error) {
  const title = TITLES.get(error.status) ?? "The request was refused";
  if (error.status === 401) {
    return { title, text: "It may be mistyped, revoked or expired. Enter another one." };
  }
  const wait = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
  return { title, text: error.message + wait };
}

export class Api {
  constructor(key = "") {
    this.key = key;
  }

  get(path, options = {}) {
    return this.#json(path, { ...options, method: "GET" });
  }

  post(path, body, options = {}) {
    return this.#json(path, { ...options, method: "POST", body });
  }

  put(path, body, options = {}) {
    return this.#json(path, { ...options, method: "PUT", body });
  }

  /** What is to be saved as a file. */
  async file(path) {
    return (await this.#send(path, { method: "GET" })).blob();
  }

  /** POST, and give each event of the answer to `onEvent`. */
  async stream(path, body, onEvent, options = {}) {
    const reply = await this.#send(path, { ...options, method: "POST", body });
    try {
      for await (const event of events(reply.body)) {
        if (event.error) throw new ApiError(STREAM_STATUS.get(event.error.code) ?? 500, event);
        onEvent(event);
      }
    } catch (error) {
      throw asApiError(error, "The connection broke off. Pictures that arrived are charged, the others are not.");
    }
  }

  async #json(path, options) {
    const reply = await this.#send(path, options);
    try {
      return await reply.json();
    } catch (error) {
      throw asApiError(error, "The server's answer broke off.");
    }
  }

  async #send(path, { method, body, signal, headers: more = {} }) {
    const headers = this.key ? { ...more, authorization: `Bearer ${this.key}` } : { ...more };
    if (body !== undefined) headers["content-type"] = "application/json";
    let reply;
    try {
      reply = await fetch(new URL(path, ROOT), {
        method,
        headers,
        signal,
        body: body === undefined ? undefined : JSON.stringify(body),
        cache: "no-store",
        credentials: "omit",
      });
    } catch (error) {
      throw asApiError(error, "It may be stopped or restarting, or your network is down.");
    }
    if (reply.ok) return reply;
    const told = await reply.json().catch(() => null);
    throw new ApiError(reply.status, told, reply.headers.get("retry-after"));
  }
}

/** Statuses of failures that come inside a stream, where there is no status any more. */
const STREAM_STATUS = new Map([
  ["timeout", 504],
  ["server_is_overloaded", 503],
  ["service_unavailable", 503],
  ["ledger_unavailable", 503],
  ["store_unavailable", 503],
  ["server_is_draining", 503],
]);

function asApiError(error, message) {
  // An abort is no failure: whoever aborted knows.
  if (error instanceof ApiError || error.name === "AbortError") return error;
  return new ApiError(0, { error: { message } });
}
