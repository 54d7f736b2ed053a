/* The word when the budget is low, and the button that begins a repair.

   The button asks a second time: a repair takes the time of a training. It deletes nothing, and
   needs a token with the role repair. */

import { count, make, short } from "./elements.js";
import { ask } from "./service.js";

const LOW = 3;

/* Why a repair is due, in words; null while the budget is not low. */
export function dueOf({ status, forecast }) {
  const dead = status.shards.filter((shard) => shard.node === null).length;
  const soon = forecast?.first_death?.requests.p5;
  const low = status.exhausted || dead > 0 || (soon !== undefined && soon !== null && soon <= LOW);
  if (!low) return null;
  if (status.exhausted) return "No shard serves any more.";
  return dead
    ? `${count(dead, "shard")} of ${status.shards.length} ${dead === 1 ? "serves" : "serve"} nothing.`
    : `The budget is low: ${short(soon)} more ${soon === 1 ? "request" : "requests"} may end a shard.`;
}

/* Args: why; whether a service is behind the page. */
export function lowOf(why, live) {
  const place = make("div", { class: "low", role: "status" },
    make("p", {}, make("b", {}, why), " A repair trains again what deletions took, while this goes on."));
  place.append(live ? button(place) : make("p", { class: "note" }, "s3t repair RUN does it."));
  return place;
}

function button(place) {
  const begin = make("button", { type: "button", "data-mark": "repair" }, "Repair");
  const said = make("p", { class: "note" });
  let sure = false;
  begin.addEventListener("click", async () => {
    if (!sure) {
      sure = true;
      begin.textContent = "Begin a training now";
      return;
    }
    begin.disabled = true;
    try {
      await ask("v1/repair", {});
      said.textContent = "The repair has begun; the view changes when it is done.";
    } catch (error) {
      begin.disabled = false;
      said.textContent = error.message;
    }
  });
  place.append(said);
  return begin;
}
