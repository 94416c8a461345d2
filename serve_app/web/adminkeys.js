// The keys of one account: make, limit, revoke. A secret is shown once and then gone from the page.

import { byId, make } from "./dom.js";
import { when } from "./format.js";
import { ask, field, reason, text, whole } from "./forms.js";
import { blank, listing } from "./tables.js";

export class Keys {
  #api;
  #say;

  constructor(api, say) {
    this.#api = api;
    this.#say = say;
    const dialog = byId("secret");
    byId("secret-copy").addEventListener("click", copy);
    dialog.querySelector("[data-close]").addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", () => {
      byId("secret-text").textContent = "";
      byId("secret-state").textContent = "";
    });
  }

  /** The card with an account's keys. */
  card(account) {
    const place = make("div", { className: "card flush" });
    const create = make("button", { type: "button", className: "primary" }, "New key");
    const refresh = () => this.#list(place, account, refresh);
    create.addEventListener("click", () => this.#create(account, refresh));
    refresh();
    return [make("div", { className: "head" }, make("h2", {}, "API keys"), create), place];
  }

  #list(place, account, refresh) {
    const columns = [
      { title: "Key", cell: ({ prefix }) => make("code", {}, `${prefix}…`) },
      { title: "State", cell: state },
      { title: "Scopes", cell: ({ scopes }) => scopes.join(", "), className: "roomy" },
      { title: "Limits", cell: limits, className: "text roomy" },
      { title: "Last used", cell: ({ last_used_at: at }) => (at ? when(at) : "never"), className: "roomy" },
      { title: null, cell: (key) => this.#actions(key, refresh), className: "num" },
    ];
    const query = { account: account.id };
    const nothing = blank("No keys yet", "An account draws with an API key of its own.");
    return listing(place, { api: this.#api, path: "admin/v1/keys", label: "API keys", columns, blank: nothing, query });
  }

  #actions(key, refresh) {
    if (key.revoked_at) return "";
    const act = (name, run, className = "") => {
      const button = make("button", { type: "button", className, "aria-label": `${name} key ${key.prefix}…` }, name);
      button.addEventListener("click", run);
      return button;
    };
    return make(
      "div",
      { className: "row" },
      act("Limits", () => this.#limit(key, refresh)),
      act("Revoke", () => this.#revoke(key, refresh), "danger"),
    );
  }

  #create(account, refresh) {
    const expiry = field({ name: "expires_at", label: "Expires", hint: "your time; empty: never", type: "datetime-local" });
    ask({
      title: `New key for ${account.name}`,
      send: "Make the key",
      body: [scopes(), ...limitFields({}), expiry, reason()],
      act: async (form) => {
        const at = text(form, "expires_at");
        const body = {
          account: account.id,
          scopes: [...form.querySelectorAll("[name=scopes]:checked")].map(({ value }) => value),
          expires_at: at && new Date(at).toISOString(),
          ...limitsOf(form),
          reason: text(form, "reason"),
        };
        const { secret } = await this.#api.post("admin/v1/keys", body);
        byId("secret-text").textContent = secret;
        byId("secret").showModal();
        this.#say("The key was made.");
        refresh();
      },
    });
  }

  #limit(key, refresh) {
    ask({
      title: `Limits of ${key.prefix}…`,
      send: "Set the limits",
      body: [make("p", { className: "muted" }, "They hold from its next request on. An empty field is no limit."), ...limitFields(key), reason()],
      act: async (form) => {
        await this.#api.put(`admin/v1/keys/${key.id}/limits`, { ...limitsOf(form), reason: text(form, "reason") });
        this.#say("The limits were set.");
        refresh();
      },
    });
  }

  #revoke(key, refresh) {
    ask({
      title: `Revoke ${key.prefix}…?`,
      send: "Revoke the key",
      destructive: true,
      body: [make("p", {}, "It is refused from its next request on. There is no way back; jobs under way may finish."), reason()],
      act: async (form) => {
        await this.#api.post(`admin/v1/keys/${key.id}/revoke`, { reason: text(form, "reason") });
        this.#say("The key was revoked.");
        refresh();
      },
    });
  }
}

async function copy() {
  const said = byId("secret-state");
  try {
    await navigator.clipboard.writeText(byId("secret-text").textContent);
    said.textContent = "Copied.";
  } catch {
    getSelection().selectAllChildren(byId("secret-text"));
    said.textContent = "The browser does not let this page copy. It is selected: press Ctrl+C.";
  }
}

function scopes() {
  const box = (value, title, checked) =>
    make("label", {}, make("input", { type: "checkbox", name: "scopes", value, checked }), title);
  return make(
    "fieldset",
    { className: "field" },
    make("legend", { className: "label" }, "Opens"),
    make("div", { className: "checks" }, box("images", "Drawing", true), box("admin", "Administration", false)),
    make("p", { className: "problem", "data-problem": "scopes" }),
  );
}

function limitFields({ rpm, images_max: images, models }) {
  return [
    make(
      "div",
      { className: "pair tight" },
      field({ name: "rpm", label: "Requests a minute", inputMode: "numeric", placeholder: "no limit", value: rpm ?? "" }),
      field({ name: "images_max", label: "Images at once", inputMode: "numeric", placeholder: "no limit", value: images ?? "" }),
    ),
    field({ name: "models", label: "Models", hint: "ids, with commas between", placeholder: "all", value: models?.join(", ") ?? "" }),
  ];
}

function limitsOf(form) {
  const models = text(form, "models");
  return {
    rpm: whole(form, "rpm"),
    images_max: whole(form, "images_max"),
    models: models && models.split(",").map((one) => one.trim()).filter(Boolean),
  };
}

function state({ revoked_at: revoked, expires_at: expires }) {
  if (revoked) return make("span", { className: "badge off", title: when(revoked) }, "revoked");
  if (expires && new Date(expires) <= new Date()) return make("span", { className: "badge off" }, "expired");
  return make("span", { className: "badge" }, expires ? `until ${when(expires)}` : "works");
}

function limits({ rpm, images_max: images, models }) {
  const found = [];
  if (rpm) found.push(`${rpm} a minute`);
  if (images) found.push(`${images} images at once`);
  if (models) found.push(models.join(", "));
  return found.join("; ") || "none";
}
