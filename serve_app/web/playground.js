// The playground: connects, keeps the price up to date, draws, and says what went wrong.
// Data flow: key -> models and account -> form -> quote -> stream -> pictures -> account.

import { Account } from "./account.js";
import { Api, explain } from "./api.js";
import { byId, make, showOnly } from "./dom.js";
import { count, units } from "./format.js";
import { Job } from "./pictures.js";
import { Quoter } from "./quote.js";
import { forgetKey, storeKey, storedKey } from "./session.js";
import * as settings from "./settings.js";

const LOADING_SHOWN_AFTER_MS = 150; // a skeleton that only flashes is worse than none

const api = new Api();
const account = new Account(api);
const quoter = new Quoter(api, onQuote, onRefusedQuote);
const panels = ["loading", "offline", "connect", "settings", "account"].map(byId);
const [loading, offline, connect, form, accountCard] = panels;
const status = byId("status");
let developmentKey = null;
let drawing = null; // the AbortController of the job under way

// --- connecting

async function start() {
  const waiting = setTimeout(() => show([loading]), LOADING_SHOWN_AFTER_MS);
  try {
    ({ development_key: developmentKey } = await api.get("web/start.json"));
    const key = storedKey() ?? developmentKey;
    if (key) await open(key);
    else askForKey();
  } catch (error) {
    if (error.status === 401 || error.status === 403) refuseKey(error);
    else showOffline(error);
  } finally {
    clearTimeout(waiting);
  }
}

/** Use a key if the server takes it; raises what it answers otherwise. */
async function open(key) {
  api.key = key;
  const [{ data: models }] = await Promise.all([api.get("v1/models"), account.refresh()]);
  storeKey(key);
  byId("development-note").hidden = key !== developmentKey;
  settings.useModels(models);
  show([form, accountCard]);
  quote();
}

function show(shown) {
  showOnly(shown, panels);
  const connected = shown.includes(form);
  byId("balance").hidden = !connected;
  byId("change-key").hidden = !connected;
}

function showOffline(error) {
  byId("offline-reason").textContent = explain(error).text;
  show([offline]);
}

function askForKey(problem = "") {
  byId("use-development").hidden = developmentKey === null;
  byId("key-problem").textContent = problem;
  byId("key").toggleAttribute("aria-invalid", false);
  if (problem) byId("key").setAttribute("aria-invalid", "true");
  show([connect]);
  byId("key").focus();
}

function refuseKey(error) {
  drawing?.abort();
  forgetKey();
  const { title, text } = explain(error);
  askForKey(`${title}. ${text}`);
}

async function connectWith(key) {
  byId("key-problem").textContent = "";
  try {
    await open(key);
    settings.focusPrompt();
  } catch (error) {
    if (error.status === 401 || error.status === 403) refuseKey(error);
    else askForKey(sentence(error));
  }
}

// --- the price

function quote() {
  settings.clearProblems();
  clearNotice();
  quoter.ask(settings.request());
}

function onQuote({ affordable, units: price }) {
  if (!affordable) showPoverty(price);
}

function onRefusedQuote(error) {
  if (settings.showProblem(error.param, error.message)) return;
  report(error);
}

// --- drawing

async function draw() {
  if (drawing) return;
  const body = settings.request();
  settings.clearProblems();
  clearNotice();
  if (!body.prompt.trim()) {
    settings.showProblem("prompt", "Describe the picture first.");
    settings.focusPrompt();
    return;
  }
  const price = quoter.current?.units ?? null;
  if (quoter.current && !quoter.current.affordable) {
    showPoverty(price);
    return;
  }
  const job = begin(body);
  const take = (event) => {
    const news = job.take(event);
    if (news) status.textContent = news;
    if (event.type === "image_generation.queued") account.refresh().catch(() => {}); // what is held
  };
  try {
    const options = { signal: drawing.signal };
    await api.stream("v1/images/generations", settings.streamed(body), take, options);
    finish(job, "Done");
  } catch (error) {
    finish(job, error.name === "AbortError" ? "Cancelled" : "Broke off");
    if (error.name !== "AbortError") onFailedJob(error, price);
  }
}

function begin(body) {
  drawing = new AbortController();
  const onReuse = (picture) => {
    settings.reuse(picture);
    settings.focusPrompt();
  };
  const job = new Job(body, { onReuse, onCancel: () => drawing?.abort() });
  byId("cancel").hidden = false;
  byId("generate").hidden = true;
  byId("cancel").focus({ preventScroll: true });
  status.textContent = `Drawing ${count(body.n, "picture")}.`;
  job.reveal();
  return job;
}

function finish(job, outcome) {
  drawing = null;
  const focused = document.activeElement === byId("cancel");
  byId("generate").hidden = false;
  byId("cancel").hidden = true;
  if (focused) byId("generate").focus({ preventScroll: true });
  job.end(outcome);
  const charge = job.charged ? `${units(job.charged)} CU charged.` : "Nothing was charged.";
  const text = `${outcome}: ${count(job.finished, "picture")}. ${charge}`;
  status.textContent = text;
  if (outcome === "Cancelled") notice("Cancelled", charge, [], "warn");
  account.settle(job.charged).then(() => quoter.ask(settings.request()));
}

function onFailedJob(error, price) {
  if (error.status === 401) refuseKey(error);
  else if (error.status === 402) account.refresh().then(() => showPoverty(price), report);
  else if (!settings.showProblem(error.param, error.message)) report(error);
}

// --- notices

function sentence(error) {
  const { title, text } = explain(error);
  return `${title}. ${text}`;
}

function report(error) {
  if (error.status === 401) {
    refuseKey(error);
    return;
  }
  const { title, text } = explain(error);
  const again = make("button", { type: "button" }, "Try again");
  again.addEventListener("click", retry);
  notice(title, text, error.temporary ? [again] : []);
}

/** What failed was the price or the drawing: ask for the price; drawing is for the person to start. */
function retry() {
  account.refresh().then(quote, report);
}

/** `price` null: the job was refused before its price was known. */
function showPoverty(price) {
  const { name, available } = account.current;
  const asked = price === null ? "This costs more" : `This costs ${units(price)} CU`;
  const smaller = make("button", { type: "button" }, "Use the cheapest settings");
  smaller.addEventListener("click", () => settings.cheapest());
  notice(
    "Not enough compute units",
    `${asked}, and the account “${name}” has ${units(available)} CU. Choose less, or ask for a grant.`,
    [smaller],
    "warn",
  );
}

function notice(title, text, buttons = [], kind = "") {
  const row = buttons.length ? [make("div", { className: "row" }, ...buttons)] : [];
  byId("notices").replaceChildren(
    make("div", { className: `notice ${kind}` }, make("strong", {}, title), make("p", {}, text), ...row),
  );
}

function clearNotice() {
  byId("notices").replaceChildren();
}

// --- events of the page

connect.addEventListener("submit", (event) => {
  event.preventDefault();
  connectWith(byId("key").value.trim());
});
byId("use-development").addEventListener("click", () => connectWith(developmentKey));
byId("reconnect").addEventListener("click", start);
byId("change-key").addEventListener("click", () => {
  drawing?.abort();
  forgetKey();
  byId("key").value = "";
  askForKey();
});
form.addEventListener("submit", (event) => {
  event.preventDefault();
  draw();
});
byId("cancel").addEventListener("click", () => drawing?.abort());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !document.querySelector("dialog[open]")) drawing?.abort();
  const send = event.key === "Enter" && (event.ctrlKey || event.metaKey);
  if (send && !form.hidden) draw();
});
window.addEventListener("online", () => {
  if (!offline.hidden) start();
});
settings.onChange(quote);
start();
