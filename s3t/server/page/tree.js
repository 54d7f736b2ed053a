/* The tree of one shard, drawn from its nodes.

        ┌ 0 ── 1 ── 2        left to right: the stages, each block under those it was trained on
   base ┤    └ 2 ── 1        a circle holds the slice that its stage adds
        └ 1 ── 0
*/

import { arrows, draw, make } from "./elements.js";

const STEP = [38, 120];
const ROW = 34;
const RADIUS = 12;
const STATES = {
  serving: "serves", alive: "alive", dead: "dead: has seen a deleted sample",
  missing: "missing: not trained, or damaged",
};

/* Args: the picture, the shard, the key of the node chosen last (or null), what to do when one is
   chosen, the keys of the nodes that a dry run would switch off, and the width that there is. */
export function treeOf(picture, shard, chosen, choose, doomed, room) {
  const nodes = picture.nodes.filter((node) => node.shard === shard);
  const places = layout(nodes);
  const serving = nodes.filter((node) => node.state === "serving");
  const shown = nodes.find((node) => node.key === chosen) ?? serving.at(-1) ?? nodes[0];
  const stages = Math.max(...nodes.map((node) => node.stage), 1);
  const step = Math.min(Math.max((room - 40) / stages, STEP[0]), STEP[1]);
  const width = 18 + step * stages + RADIUS + 8;
  const height = ROW * Math.max(places.rows, 1) + 8;
  const at = (node) => [18 + step * node.stage, ROW * places.of.get(node.key) + ROW / 2 + 4];
  const root = [18, height / 2];
  const tree = draw("svg", { role: "tree", "aria-label": `Tree of shard ${shard}`, width, height,
    viewBox: `0 0 ${width} ${height}` });
  for (const node of nodes) {
    const parent = nodes.find((one) => one.key === node.parent);
    tree.append(edge(parent ? at(parent) : root, at(node), node.state));
  }
  tree.append(draw("rect", { class: "base", x: 2, y: root[1] - 10, width: 32, height: 20, rx: 4 }),
    draw("text", { x: 18, y: root[1], "aria-hidden": "true" }, "base"));
  const details = make("div");
  const glyphs = nodes.map((node) => glyph(node, at(node), doomed.has(node.key)));
  const select = (index, moved) => {
    glyphs.forEach((one, other) => {
      one.setAttribute("aria-selected", String(other === index));
      one.setAttribute("tabindex", other === index ? "0" : "-1");
    });
    details.replaceChildren(detailsOf(nodes[index], doomed.has(nodes[index].key)));
    if (moved) glyphs[index].focus();
  };
  glyphs.forEach((one, index) => {
    const take = () => { choose(nodes[index].key); select(index, false); };
    one.addEventListener("click", take);
    one.addEventListener("focus", take);
    one.addEventListener("mouseenter", () => select(index, false));
    one.addEventListener("keydown", (event) => {
      const next = neighbour(nodes, index, event.key);
      if (next === null) return;
      event.preventDefault();
      select(next, true);
    });
  });
  tree.append(...glyphs);
  if (shown) select(nodes.indexOf(shown), false);
  return [make("div", { class: "scroll" }, tree), legend(doomed.size > 0), details];
}

/* Leaves get rows of their own, a node with children the middle of theirs. */
function layout(nodes) {
  const children = new Map();
  for (const node of nodes) {
    const list = children.get(node.parent) ?? [];
    children.set(node.parent, [...list, node]);
  }
  const of = new Map();
  let rows = 0;
  const visit = (node) => {
    const below = children.get(node.key) ?? [];
    const at = below.map(visit);
    const row = at.length ? (at[0] + at.at(-1)) / 2 : rows++;
    of.set(node.key, row);
    return row;
  };
  nodes.filter((node) => node.parent === null).forEach(visit);
  return { of, rows };
}

function edge([x, y], [toX, toY], state) {
  const middle = (x + toX) / 2;
  return draw("path", { class: `edge ${state}`,
    d: `M${x} ${y}C${middle} ${y} ${middle} ${toY} ${toX} ${toY}` });
}

function glyph(node, [x, y], doomed) {
  const last = node.prefix.at(-1);
  const said = `slice ${last}, stage ${node.stage}, prefix ${arrows(node.prefix)}, `
    + `${STATES[node.state]}${doomed ? ", would die" : ""}`;
  return draw("g", {
    class: `node ${node.state}`, role: "treeitem", "aria-level": node.stage, "aria-label": said,
    "data-mark": node.key, "data-key": node.key, "data-state": node.state, tabindex: "-1",
    transform: `translate(${x} ${y})`,
  }, shape(node.state, String(last), doomed));
}

function shape(state, text, doomed) {
  return [
    draw("circle", { class: "ring", r: RADIUS + 3 }),
    doomed ? draw("circle", { class: "doom", r: RADIUS + 3 }) : null,
    draw("circle", { class: "body", r: RADIUS }),
    draw("text", { "aria-hidden": "true" }, text),
    state === "dead" ? draw("path", { class: "strike", d: "M-8 8L8 -8" }) : null,
  ];
}

/* The node that an arrow key leads to: right to the first child, left to the parent, up and down
   along the stage. */
function neighbour(nodes, index, key) {
  const here = nodes[index];
  const along = nodes.filter((node) => node.stage === here.stage);
  const step = { ArrowUp: -1, ArrowDown: 1 }[key];
  let next;
  if (step) next = along[along.indexOf(here) + step];
  else if (key === "ArrowRight") next = nodes.find((node) => node.parent === here.key);
  else if (key === "ArrowLeft") next = nodes.find((node) => node.key === here.parent);
  else if (key === "Home") next = nodes[0];
  else if (key === "End") next = nodes.at(-1);
  return next ? nodes.indexOf(next) : null;
}

function detailsOf(node, doomed) {
  const rows = [
    ["prefix", arrows(node.prefix)],
    ["state", STATES[node.state] + (doomed ? "; the dry run would switch it off" : "")],
    ["score", node.score === null ? "–" : String(Number(node.score.toPrecision(4)))],
    ["key", make("span", { class: "key" }, node.key)],
  ];
  return make("dl", { class: "details" },
    rows.map(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
}

function legend(rehearsed) {
  const entry = (state, text, number, doomed = false) => make("li", {},
    draw("svg", { width: 30, height: 30, viewBox: "-15 -15 30 30", "aria-hidden": "true" },
      draw("g", { class: `node ${state}` }, shape(state, number, doomed))), text);
  return make("ul", { class: "legend" },
    entry("serving", "serves", "2"), entry("alive", "alive", "2"), entry("dead", "dead", "2"),
    entry("missing", "missing", "2"), rehearsed ? entry("alive", "would die", "2", true) : null,
    make("li", {}, "the number is the slice that the block has learnt last"));
}
