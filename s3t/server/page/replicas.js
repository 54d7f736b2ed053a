/* Replicas: who answers for the run by a lease, and which views each has left. */

import { framed, make, moment } from "./elements.js";

/* Args: [{name, view, since}]; the view in force. */
export function replicasOf(replicas, view) {
  return framed("Replicas", make("table", {},
    make("caption", { class: "unseen" }, "Processes that serve this run"),
    make("thead", {}, make("tr", {}, ["name", "answers from", "since"].map((name) =>
      make("th", { scope: "col" }, name)))),
    make("tbody", {}, replicas.map((one) => make("tr", {},
      make("td", {}, make("code", {}, one.name)),
      make("td", {}, `view ${one.view}${one.view < view ? ", about to leave it" : ""}`),
      make("td", {}, moment(one.since)))))));
}
