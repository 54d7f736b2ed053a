/* Receipts of deletions: when each was durable, and when it was effective. Samples are named by
   keyed hashes alone; the page never has their ids. */

import { framed, make, moment, seconds, whole } from "./elements.js";

const NAMES = ["request", "accepted", "effective after", "samples", "blocks off", "view", "purged"];

/* Args: receipts, newest first (see `s3t/report.py`). */
export function receiptsOf(receipts) {
  if (!receipts.length) return make("p", { class: "note" }, "Nothing has been deleted yet.");
  return framed("Recent receipts", make("table", { class: "stacked" },
    make("caption", { class: "unseen" }, "Deletions, newest first"),
    make("thead", {}, make("tr", {}, NAMES.map((name) => make("th", { scope: "col" }, name)))),
    make("tbody", {}, receipts.map(row))));
}

function row(receipt) {
  const wait = receipt.effective_at && receipt.accepted_at
    ? (new Date(receipt.effective_at) - new Date(receipt.accepted_at)) / 1000 : null;
  const id = receipt.request_id;
  const cells = [
    make("code", { class: "request", title: id }, id),
    moment(receipt.accepted_at),
    receipt.effective_at ? seconds(wait) : "not yet",
    make("span", { title: receipt.deleted.join("\n") }, whole(receipt.deleted.length)),
    whole(receipt.schedule.nodes_dead.length),
    String(receipt.view),
    receipt.purged_at ? moment(receipt.purged_at) : "not yet",
  ];
  return make("tr", { "data-request": id },
    cells.map((cell, index) => make("td", { "data-name": NAMES[index] }, cell)));
}
