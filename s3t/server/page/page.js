/* The page: what is known of a run, and where each part of it is drawn.

     a report:   the JSON in #kept ─────────────────────────► known ─► draw, once
     a service:  /v1/status, every two seconds ─ new view? ─► /v1/picture, /v1/forecast ─► known ─► draw
                 /v1/traffic, /v1/deletions, /v1/replicas, now and then

   Invariant: a part is drawn again only when what it shows has changed, so what a reader
   types is not disturbed. What is shown of an old moment says so. */

import { byId, fill, make, moment } from "./elements.js";
import { gridOf, newsOf } from "./grid.js";
import { courseOf } from "./course.js";
import { figuresOf, forecastOf } from "./outlook.js";
import { receiptsOf } from "./receipts.js";
import { rehearse } from "./rehearsal.js";
import { dueOf, lowOf } from "./repair.js";
import { replicasOf } from "./replicas.js";
import { ask, keepToken, Refused, token } from "./service.js";
import { Traffic } from "./traffic.js";
import { treeOf } from "./tree.js";

const EVERY = 2000;
const RARELY = 15;

let known = {};
let shard = 0;
let chosen = null;
let doomed = new Set();
let ticks = 0;
let failures = 0;
let live = true;
const drawn = new Map();
const traffic = new Traffic();

/* Draws a part if what it depends on is new. */
function part(id, depends, content) {
  const text = JSON.stringify(depends, (_, value) => (value instanceof Set ? [...value] : value));
  if (drawn.get(id) === text) return;
  drawn.set(id, text);
  fill(byId(id), content());
}

function paint() {
  const { status, picture, forecast, receipts, replicas } = known;
  shard = Math.min(shard, picture.shards - 1);
  byId("main").hidden = false;
  byId("run").textContent = known.name ?? picture.name;
  document.title = `${known.name ?? picture.name} – s3t`;
  byId("view").textContent = `view ${picture.view}, plan ${picture.generation}`;
  part("figures", [status, picture, forecast], () => figuresOf(known));
  part("grid", [picture, forecast, shard, doomed], () => gridOf(known, shard, choose, slots()));
  const width = byId("tree").clientWidth;
  part("tree", [picture, shard, doomed, width], () => treeOf(picture, shard, chosen, keep, doomed, width));
  part("forecast", [status, forecast], () => forecastOf(known));
  const due = dueOf(known);
  part("low", [due, live], () => [due && lowOf(due, live)]);
  part("course", [picture.evaluations, status.weights], () =>
    courseOf(picture.evaluations, status.weights));
  part("receipts", [receipts], () => receiptsOf(receipts ?? []));
  byId("replicas-card").hidden = !replicas?.length;
  if (replicas?.length) part("replicas", [replicas], () => [replicasOf(replicas, picture.view)]);
  byId("tree-shard").textContent = String(shard);
}

/* The slices that a dry run would hit: the last ones of the highest blocks that it would kill. */
function slots() {
  const nodes = known.picture.nodes.filter((node) => doomed.has(node.key));
  const roots = nodes.filter((node) => !doomed.has(node.parent));
  return new Set(roots.map((node) => `${node.shard}:${node.prefix.at(-1)}`));
}

function choose(number) {
  shard = number;
  chosen = null;
  paint();
}

function keep(key) {
  chosen = key;
}

function pill(text, kind) {
  byId("pill").textContent = text;
  byId("pill").className = `pill ${kind}`;
}

function banner(text) {
  byId("banner").hidden = !text;
  if (byId("banner").textContent !== text) byId("banner").textContent = text;
}

/* ── live ── */

async function look() {
  const status = await ask("v1/status");
  const fresh = status.view !== known.picture?.view;
  if (fresh || ticks % RARELY === 0) {
    const [picture, forecast] = await Promise.all([ask("v1/picture"), ask("v1/forecast")]);
    if (known.picture && fresh) byId("news").textContent = newsOf(known.picture, picture);
    known = { ...known, picture, forecast };
  }
  known = { ...known, status };
  if (fresh || ticks % 3 === 0) {
    const [deletions, replicas] = await Promise.all([ask("v1/deletions?limit=12"), ask("v1/replicas")]);
    known.receipts = deletions.deletions.map((one) => one.receipt);
    known.replicas = replicas.replicas;
  }
  traffic.read(await ask("v1/traffic"));
  byId("traffic-card").hidden = false;
  fill(byId("traffic"), traffic.drawn());
  ticks += 1;
}

async function tick() {
  let wait = EVERY;
  try {
    if (!document.hidden) await refresh();
  } catch (error) {
    failures += 1;
    wait = Math.min(EVERY * 2 ** (failures - 1), 8 * EVERY);
    refused(error);
  }
  setTimeout(tick, wait);
}

async function refresh() {
  await look();
  failures = 0;
  banner("");
  byId("sign-in").hidden = true;
  byId("sign-out").hidden = !token();
  byId("rehearsal-card").hidden = false;
  fill(byId("moment"), "as of ", moment(new Date().toISOString()));
  if (known.status.exhausted) pill("exhausted", "bad");
  else pill("serving", "good");
  paint();
}

function refused(error) {
  const code = error instanceof Refused ? error.code : "page";
  if (code === "unauthenticated" || code === "forbidden") {
    pill("locked", "");
    byId("sign-in").hidden = false;
    byId("main").hidden = true;
    banner(token() ? `This token does not open the page: ${error.message}` : "");
    return;
  }
  pill("away", "bad");
  const shown = known.picture ? ` What you see is ${byId("moment").textContent}.` : "";
  banner(`${error.message}${shown} Trying again.`);
}

function serve() {
  byId("sign-in").addEventListener("submit", (event) => {
    event.preventDefault();
    keepToken(byId("token").value.trim());
    byId("token").value = "";
    refresh().catch(refused);
  });
  byId("sign-out").addEventListener("click", () => {
    keepToken(null);
    location.reload();
  });
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) refresh().catch(refused);
  });
  rehearse((keys) => {
    doomed = new Set(keys);
    const hit = known.picture.nodes.filter((node) => doomed.has(node.key)).map((node) => node.shard);
    if (hit.length && !hit.includes(shard)) shard = hit[0];
    paint();
  });
  tick();
}

/* ── a report ── */

function show(kept) {
  document.body.classList.add("report");
  live = false;
  known = kept;
  pill(kept.status.exhausted ? "exhausted" : "report", kept.status.exhausted ? "bad" : "");
  fill(byId("moment"), "made at ", make("time", { datetime: kept.made_at }, kept.made_at),
    ` by s3t ${kept.version}`);
  paint();
}

addEventListener("resize", () => known.picture && paint());
const kept = byId("kept").textContent.trim();
if (kept) show(JSON.parse(kept));
else serve();
