// The admin page: connects, and shows the view that the address names. All it does is the admin API.
// Data flow: key -> #overview | #accounts | #account/ID | #acts -> its module -> admin/v1/...

import { Accounts } from "./adminaccounts.js";
import { showActs } from "./adminacts.js";
import { Fleet } from "./adminfleet.js";
import { Keys } from "./adminkeys.js";
import { UsageView } from "./adminusage.js";
import { Api, explain } from "./api.js";
import { byId, showOnly } from "./dom.js";
import { forgetKey, storeKey, storedKey } from "./session.js";

const LOADING_SHOWN_AFTER_MS = 150; // a skeleton that only flashes is worse than none
const NAMES_MAX = 1000; // accounts to choose from, and to name in the log
const PAGE = "admin";

const api = new Api();
const fleet = new Fleet(api, refuseKey);
const usage = new UsageView(api);
const accounts = new Accounts(api, new Keys(api, say), say);
const panels = ["loading", "offline", "connect", "overview", "accounts", "account", "acts"].map(byId);
const [loading, offline, connect] = panels;
let developmentKey = null;
let connected = false;

async function start() {
  const waiting = setTimeout(() => show(loading), LOADING_SHOWN_AFTER_MS);
  try {
    ({ development_key: developmentKey } = await api.get("web/start.json"));
    const key = storedKey(PAGE) ?? developmentKey;
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
  await api.get("admin/v1/accounts?limit=1");
  storeKey(key, PAGE);
  connected = true;
  route();
}

function show(shown) {
  showOnly([shown], panels);
  byId("nav").hidden = !connected;
  byId("change-key").hidden = !connected;
}

/** Show what the address names. */
async function route() {
  if (!connected) return;
  if (location.hash === "#main") return; // the skip link
  const [name, id] = location.hash.slice(1).split("/");
  const view = ["accounts", "account", "acts"].includes(name) ? name : "overview";
  for (const link of byId("nav").children) {
    const here = link.hash === `#${view === "account" ? "accounts" : view}`;
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  show(byId(view));
  if (view === "overview") fleet.start();
  else fleet.stop();
  if (view === "accounts") accounts.list();
  if (view === "account") accounts.show(id ?? "");
  if (view === "acts") showActs(api, await names());
  if (view === "overview") {
    usage.show();
    await names();
  }
}

/** Names of accounts by id; the choice of the usage chart, too. Without them ids are shown. */
async function names() {
  try {
    const { data } = await api.get(`admin/v1/accounts?limit=${NAMES_MAX}`);
    usage.useAccounts(data);
    return new Map(data.map(({ id, name }) => [id, name]));
  } catch {
    return new Map();
  }
}

function say(text) {
  byId("status").textContent = text;
}

function showOffline(error) {
  byId("offline-reason").textContent = explain(error).text;
  show(offline);
}

function askForKey(problem = "") {
  connected = false;
  fleet.stop();
  byId("use-development").hidden = developmentKey === null;
  byId("key-problem").textContent = problem;
  if (problem) byId("key").setAttribute("aria-invalid", "true");
  else byId("key").removeAttribute("aria-invalid");
  show(connect);
  byId("key").focus();
}

function refuseKey(error) {
  forgetKey(PAGE);
  const { title, text } = explain(error);
  askForKey(`${title}. ${text}`);
}

async function connectWith(key) {
  byId("key-problem").textContent = "";
  try {
    await open(key);
    byId("key").value = "";
    byId("main").focus({ preventScroll: true });
  } catch (error) {
    if (error.status === 401 || error.status === 403) refuseKey(error);
    else askForKey(`${explain(error).title}. ${explain(error).text}`);
  }
}

connect.addEventListener("submit", (event) => {
  event.preventDefault();
  connectWith(byId("key").value.trim());
});
byId("use-development").addEventListener("click", () => connectWith(developmentKey));
byId("reconnect").addEventListener("click", start);
byId("change-key").addEventListener("click", () => {
  forgetKey(PAGE);
  byId("key").value = "";
  askForKey();
});
window.addEventListener("hashchange", route);
window.addEventListener("online", () => {
  if (!offline.hidden) start();
});
start();
