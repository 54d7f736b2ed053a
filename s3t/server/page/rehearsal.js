/* The dry run: what a deletion would switch off. The page never asks for a real one. */

import { arrows, byId, count, fill, make } from "./elements.js";
import { ask } from "./service.js";

/* Args: told the keys of the nodes that a dry run would kill; none when it is cleared. */
export function rehearse(tell) {
  const form = byId("rehearsal");
  const place = byId("outcome");
  const clear = () => {
    fill(place);
    tell([]);
  };
  form.addEventListener("reset", clear);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = form.querySelector("[type=submit]");
    try {
      const named = { sample_ids: lines(form.elements.samples), subjects: lines(form.elements.subjects) };
      if (!named.sample_ids.length && !named.subjects.length) {
        clear();
        fill(place, make("p", { class: "note" }, "Give at least one sample id or subject."));
        return;
      }
      button.disabled = true;
      const found = await ask("v1/deletions", { ...named, dry_run: true });
      const receipt = found.receipt;
      fill(place, outcome(receipt));
      tell(receipt.nodes_dead);
    } catch (error) {
      clear();
      fill(place, make("p", { class: "outcome" }, error.message));
    } finally {
      button.disabled = false;
    }
  });
}

// Names as they stand; a line that begins with a quote is a JSON string, as in --ids-file.
function lines(field) {
  const named = field.value.split("\n").filter(Boolean);
  return named.map((line) => (line.startsWith('"') ? JSON.parse(line) : line));
}

function outcome(receipt) {
  const changed = receipt.prefixes.filter((one) => String(one.before) !== String(one.after));
  const before = receipt.already_deleted.length;
  return make("div", { class: "outcome" },
    make("p", {}, make("b", {}, `Would delete ${count(receipt.deleted.length, "sample")}`),
      before ? ` (${before} deleted before)` : "",
      ` and switch off ${count(receipt.nodes_dead.length, "block")}.`),
    changed.length
      ? make("ul", {}, changed.map((one) =>
        make("li", {}, `shard ${one.shard}: ${arrows(one.before)}, then ${arrows(one.after)}`)))
      : make("p", { class: "note" }, "No shard would serve less than it does."),
    receipt.copies_elsewhere
      ? make("p", { class: "note" }, `${count(receipt.copies_elsewhere, "exact copy", "exact copies")} `
        + "that other subjects hold would stay.") : null,
    receipt.look_alikes
      ? make("p", { class: "note" }, `${count(receipt.look_alikes, "sample")} whose id or person looks `
        + "like one named would stay.") : null,
    make("p", { class: "note" }, "Nothing was deleted."));
}
