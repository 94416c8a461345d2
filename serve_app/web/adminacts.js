// The log of acts: who did what to whom, and why.

import { byId, make } from "./dom.js";
import { when } from "./format.js";
import { blank, listing } from "./tables.js";

export function actColumns() {
  return [
    { title: "When", cell: ({ at }) => when(at) },
    { title: "Act", cell: ({ verb }) => make("code", {}, verb) },
    { title: "Detail", cell: ({ detail }) => brief(detail), className: "text" },
    { title: "Reason", cell: ({ reason }) => reason || null, className: "text" },
    { title: "Who", cell: ({ actor }) => short(actor), className: "roomy" },
  ];
}

/** All acts; those on accounts lead to them. */
export function showActs(api, names) {
  const subject = {
    title: "On",
    cell: ({ subject: id, detail }) => {
      const account = id.startsWith("acct_") ? id : detail.account;
      return account ? make("a", { href: `#account/${account}` }, names.get(account) ?? id) : id;
    },
  };
  const columns = actColumns();
  columns.splice(2, 0, subject);
  return listing(byId("acts-list"), { api, path: "admin/v1/acts", label: "Acts", columns, blank: blank("No acts yet", "") });
}

function brief(detail) {
  const parts = Object.entries(detail).filter(([name, value]) => value !== null && name !== "account");
  return parts.map(([name, value]) => `${name.replaceAll("_", " ")}: ${typeof value === "number" ? value.toLocaleString("en") : value}`).join(", ") || null;
}

/** An id by its first letters, whole when one points at it. */
function short(actor) {
  return make("span", { title: actor }, actor.replaceAll(/([a-z]+_[0-9a-f]{6})[0-9a-f]{26}/g, "$1…"));
}
