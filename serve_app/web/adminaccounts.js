// Accounts: the list, and one of them with its balance, grants, budgets, keys and acts.

import { figures } from "./adminfleet.js";
import { actColumns } from "./adminacts.js";
import { byId, make } from "./dom.js";
import { units, when } from "./format.js";
import { ask, field, newKey, onSend, reason, text, whole } from "./forms.js";
import { blank, failed, listing, skeleton } from "./tables.js";

export class Accounts {
  #api;
  #keys;
  #say;

  constructor(api, keys, say) {
    this.#api = api;
    this.#keys = keys;
    this.#say = say;
    byId("new-account").addEventListener("click", () => this.#create());
  }

  list() {
    const columns = [
      { title: "Name", cell: ({ id, name }) => make("a", { href: `#account/${id}` }, name) },
      { title: "Available CU", cell: ({ available }) => units(available), className: "num" },
      { title: "Held", cell: ({ held }) => units(held), className: "num roomy" },
      { title: "Captured", cell: ({ captured }) => units(captured), className: "num roomy" },
      { title: "Budget a day", cell: ({ day_budget: budget }) => budgetOf(budget), className: "num roomy" },
      { title: "Budget a month", cell: ({ month_budget: budget }) => budgetOf(budget), className: "num roomy" },
      { title: "State", cell: state },
      { title: "Made", cell: ({ created_at: at }) => when(at), className: "roomy" },
    ];
    const nothing = blank("No accounts yet", "An account pays for pictures with compute units that you grant it.");
    return listing(byId("accounts-list"), { api: this.#api, path: "admin/v1/accounts", label: "Accounts", columns, blank: nothing });
  }

  /** One account, by its id. */
  async show(id) {
    const place = byId("account");
    place.replaceChildren(make("div", { className: "card" }, skeleton()));
    try {
      const account = await this.#api.get(path(id));
      this.#draw(account);
    } catch (error) {
      failed(place, error, () => this.show(id));
    }
  }

  #draw(account) {
    const facts = make("section", { className: "card stack", "aria-label": "Balance" });
    const acts = make("div", { className: "card flush" });
    const toggle = make("button", { type: "button" });
    const badge = make("span", {});
    const update = (fresh) => {
      account = fresh;
      facts.replaceChildren(balance(fresh));
      badge.replaceChildren(state(fresh));
      toggle.textContent = fresh.disabled_at ? "Enable" : "Disable";
      toggle.className = fresh.disabled_at ? "" : "danger";
      const nothing = blank("No acts yet", "");
      listing(acts, { api: this.#api, path: "admin/v1/acts", label: "Acts", columns: actColumns(), blank: nothing, query: { subject: fresh.id, limit: 10 } });
    };
    toggle.addEventListener("click", () => this.#toggle(account, update));
    byId("account").replaceChildren(
      make("p", { className: "small" }, make("a", { href: "#accounts" }, "All accounts")),
      make("div", { className: "head" }, make("h1", { className: "title" }, account.name), make("div", { className: "row" }, badge, toggle)),
      make("p", { className: "muted small" }, make("code", {}, account.id)),
      facts,
      make("div", { className: "pair" }, this.#grant(account, update), this.#budgets(account, update)),
      ...this.#keys.card(account),
      make("h2", {}, "Acts on this account"),
      acts,
    );
    update(account);
  }

  #create() {
    ask({
      title: "New account",
      send: "Make the account",
      body: [field({ name: "name", label: "Name", hint: "unique", maxLength: 200 }), reason()],
      act: async (form) => {
        const body = { name: form.elements.name.value.trim(), reason: text(form, "reason") };
        const made = await this.#api.post("admin/v1/accounts", body);
        this.#say(`The account ${made.name} was made.`);
        location.hash = `account/${made.id}`;
      },
    });
  }

  #grant(account, update) {
    const form = card("Grant", "Grant units", [
      field({ name: "units", label: "Compute units", hint: "1,048,576: one 1024 × 1024 image", inputMode: "numeric" }),
      reason(true),
    ]);
    let sent = null; // what was sent and not answered: sent again, it must not be granted twice
    onSend(form, form.querySelector("[role=alert]"), async () => {
      const body = { account: account.id, units: whole(form, "units"), reason: text(form, "reason") };
      const said = JSON.stringify(body);
      if (sent?.said !== said) sent = { said, key: newKey() };
      const granted = await this.#api.post("admin/v1/grants", body, { headers: { "idempotency-key": sent.key } });
      sent = null;
      form.reset();
      this.#say(`${units(body.units)} units were granted.`);
      update(granted);
    });
    return form;
  }

  #budgets(account, update) {
    const form = card("Budgets", "Set budgets", [
      make(
        "div",
        { className: "pair tight" },
        field({ name: "day_budget", label: "A day", inputMode: "numeric", placeholder: "no limit", value: account.day_budget ?? "" }),
        field({ name: "month_budget", label: "A month", inputMode: "numeric", placeholder: "no limit", value: account.month_budget ?? "" }),
      ),
      reason(),
    ]);
    onSend(form, form.querySelector("[role=alert]"), async () => {
      const body = { day_budget: whole(form, "day_budget"), month_budget: whole(form, "month_budget"), reason: text(form, "reason") };
      update(await this.#api.put(`${path(account.id)}/budgets`, body));
      form.elements.reason.value = "";
      this.#say("The budgets were set.");
    });
    return form;
  }

  #toggle(account, update) {
    const off = account.disabled_at === null;
    ask({
      title: off ? `Disable ${account.name}?` : `Enable ${account.name}?`,
      send: off ? "Disable the account" : "Enable the account",
      destructive: off,
      body: [make("p", {}, off ? "All its keys are refused from now on. Jobs under way may finish." : "Its keys work again."), reason()],
      act: async (form) => {
        const body = { reason: text(form, "reason") };
        update(await this.#api.post(`${path(account.id)}/${off ? "disable" : "enable"}`, body));
        this.#say(off ? "The account was disabled." : "The account was enabled.");
      },
    });
  }
}

function path(id) {
  return `admin/v1/accounts/${encodeURIComponent(id)}`;
}

function card(title, send, fields) {
  return make(
    "form",
    { className: "card stack", noValidate: true, "aria-label": title },
    make("h2", {}, title),
    ...fields,
    make("p", { className: "problem", role: "alert" }),
    make("button", { className: "primary" }, send),
  );
}

function balance({ granted, captured, held, available, day_budget: day, month_budget: month }) {
  return figures(
    [
      ["Available CU", units(available)],
      ["Held", units(held)],
      ["Captured", units(captured)],
      ["Granted", units(granted)],
      ["Budget a day", budgetOf(day)],
      ["Budget a month", budgetOf(month)],
    ],
    "balance",
  );
}

function budgetOf(budget) {
  return budget === null ? "no limit" : units(budget);
}

function state({ disabled_at: off }) {
  return off ? make("span", { className: "badge off", title: when(off) }, "disabled") : make("span", { className: "badge" }, "active");
}
