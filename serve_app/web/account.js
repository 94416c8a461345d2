// The balance: in the header, in the account card, and again once a job has been settled.

import { byId } from "./dom.js";
import { units } from "./format.js";

const SETTLE_TRIES = 8; // a cancelled job is settled within a second or two
const SETTLE_WAIT_MS = 700;

export class Account {
  #api;
  #spent = 0;
  #round = 0;
  current = null;

  constructor(api) {
    this.#api = api;
  }

  /** Ask for the balance and show it; raises what the API answers. */
  async refresh() {
    this.current = await this.#api.get("v1/account");
    this.#show();
  }

  /** After a job: ask until nothing is held any more. Failures are left to the next request. */
  async settle(charged) {
    this.#spent += charged;
    const round = ++this.#round;
    for (let tries = 0; tries < SETTLE_TRIES && round === this.#round; tries += 1) {
      try {
        await this.refresh();
      } catch {
        return;
      }
      if (this.current.held === 0) return;
      await new Promise((done) => setTimeout(done, SETTLE_WAIT_MS));
    }
  }

  #show() {
    const { name, available, held, captured } = this.current;
    byId("balance-units").textContent = units(available);
    byId("account-name").textContent = name;
    byId("account-available").textContent = units(available);
    byId("account-held").textContent = units(held);
    byId("account-captured").textContent = units(captured);
    byId("account-session").textContent = units(this.#spent);
  }
}
