/* Shards × slices: what each slice is to its shard, and what is left of the shard's blocks.

   A cell holds ● if the prefix that serves has learnt its slice, ○ if the slice is intact and not in
   it, × if it holds a deleted sample. A number is the number of a slice, here as in the tree. */

import { arrows, count, draw, framed, make, short, unseen } from "./elements.js";

const MARKS = { serving: "●", intact: "○", hit: "×" };
const SAID = { serving: "serves", intact: "intact, not in the prefix", hit: "holds a deleted sample" };

/* Args: what is known; the shard that the tree shows; what to do when another is chosen; and what a
   dry run would hit, as "shard:slice". */
export function gridOf(known, chosen, choose, doomed) {
  const { picture, forecast } = known;
  const slices = [...Array(picture.slices).keys()];
  const hits = new Set(picture.hits.map(([shard, slice]) => `${shard}:${slice}`));
  const medians = new Map((forecast?.shards ?? []).map((one) => [one.shard, one]));
  const head = make("tr", {},
    make("th", { scope: "col" }, "shard"),
    slices.map((slice) => make("th", { scope: "col" }, unseen("slice "), String(slice))),
    ["blocks alive", "dies after ≈", "serves"].map((name) =>
      make("th", { scope: "col", class: "wide" }, name)));
  const rows = picture.serving.map((prefix, shard) => make("tr", {},
    make("th", { scope: "row" }, chooser(shard, shard === chosen, choose)),
    slices.map((slice) => {
      const slot = `${shard}:${slice}`;
      const place = prefix.indexOf(slice);
      const state = hits.has(slot) ? "hit" : place >= 0 ? "serving" : "intact";
      return make("td", { "data-slot": slot, "data-state": state },
        cell(state, place + 1, doomed.has(slot)));
    }),
    make("td", { class: "wide" }, blocks(picture.nodes.filter((node) => node.shard === shard))),
    make("td", { class: "wide" }, dies(medians.get(shard))),
    make("td", { class: "wide" }, arrows(prefix))));
  const table = make("table", { class: "grid" },
    make("caption", { class: "unseen" }, "What each slice is to its shard, and what each shard serves"),
    make("thead", {}, head), make("tbody", {}, rows));
  return [framed("Shards and slices", table), legend(doomed.size > 0)];
}

function chooser(shard, chosen, choose) {
  const button = make("button", {
    type: "button", class: "shard", "aria-pressed": String(chosen), "data-mark": `shard ${shard}`,
    "aria-label": `Show the tree of shard ${shard}`,
  }, String(shard));
  button.addEventListener("click", () => choose(shard));
  return button;
}

function cell(state, place, doomed) {
  const said = `${SAID[state]}${state === "serving" ? `, learnt as number ${place}` : ""}`
    + (doomed ? ", the dry run would hit it" : "");
  return make("span", { class: `cell ${state}${doomed ? " doomed" : ""}`, title: said },
    make("span", { "aria-hidden": "true" }, MARKS[state]), unseen(said));
}

function blocks(nodes) {
  const of = (state) => nodes.filter((node) => state.includes(node.state)).length;
  const parts = { alive: of(["serving", "alive"]), dead: of(["dead"]), missing: of(["missing"]) };
  const total = Math.max(nodes.length, 1);
  const bar = draw("svg", { class: "bar", width: "72", height: "8", "aria-hidden": "true" });
  let from = 0;
  for (const [name, number] of Object.entries(parts)) {
    const width = (72 * number) / total;
    if (number) bar.append(draw("rect", { class: name, x: from, y: 0, width, height: 8 }));
    from += width;
  }
  const said = `${parts.alive} of ${nodes.length}${parts.missing ? `, ${parts.missing} missing` : ""}`;
  return make("span", { "data-blocks": `${parts.alive} ${parts.dead} ${parts.missing}` }, said, bar);
}

function dies(outlook) {
  if (!outlook) return "–";
  if (!outlook.first_slices.length) return "dead";
  const median = outlook.median_requests;
  return median === null ? "never" : `${short(median)} ${median === 1 ? "request" : "requests"}`;
}

function legend(rehearsed) {
  const entry = (state, text, doomed = false) => make("li", {},
    make("span", { class: `cell ${state}${doomed ? " doomed" : ""}`, "aria-hidden": "true" },
      MARKS[state]), text);
  return make("ul", { class: "legend" },
    entry("serving", "serves"), entry("intact", "intact, waits"), entry("hit", "holds a deleted sample"),
    rehearsed ? entry("intact", "hit by the dry run", true) : null);
}

/* What changed from one picture to the next, in words for who cannot see it. */
export function newsOf(before, after) {
  const dead = (picture) => picture.nodes.filter((node) => node.state === "dead").length;
  const gone = after.deleted - before.deleted;
  const off = dead(after) - dead(before);
  const parts = [`View ${after.view}`];
  if (gone > 0) parts.push(`${count(gone, "sample")} deleted`);
  if (off > 0) parts.push(`${count(off, "block")} switched off`);
  if (off < 0) parts.push("repaired");
  return `${parts.join(", ")}.`;
}
