/* Receipts of deletions: when each was durable, and when it was effective. Samples are named by
   keyed hashes alone; the page never has their ids. */

import { count, framed, make, moment, seconds } from "./elements.js";

/* Args: receipts, newest first (see `s3t/report.py`). */
export function receiptsOf(receipts) {
  if (!receipts.length) return make("p", { class: "note" }, "Nothing has been deleted yet.");
  const names = ["accepted", "effective after", "samples", "blocks off", "view", "purged", "request"];
  return framed("Recent receipts", make("table", {},
    make("caption", { class: "unseen" }, "Deletions, newest first"),
    make("thead", {}, make("tr", {}, names.map((name) => make("th", { scope: "col" }, name)))),
    make("tbody", {}, receipts.map(row))));
}

function row(receipt) {
  const wait = receipt.effective_at && receipt.accepted_at
    ? (new Date(receipt.effective_at) - new Date(receipt.accepted_at)) / 1000 : null;
  const hashes = receipt.deleted;
  const named = hashes.slice(0, 1).map((hash) => make("code", { title: hash }, ` ${hash.slice(0, 10)}…`));
  const more = hashes.length > 1 ? ` and ${count(hashes.length - 1, "more", "more")}` : "";
  return make("tr", { "data-request": receipt.request_id },
    make("td", {}, moment(receipt.accepted_at)),
    make("td", {}, receipt.effective_at ? seconds(wait) : "not yet"),
    make("td", {}, String(hashes.length), named, more),
    make("td", {}, String((receipt.schedule.nodes_dead).length)),
    make("td", {}, String(receipt.view)),
    make("td", {}, receipt.purged_at ? moment(receipt.purged_at) : "not yet"),
    make("td", {}, make("code", {}, receipt.request_id)));
}
