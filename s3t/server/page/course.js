/* How answers did on the public test rows along the deletions, beside the base alone.

   Figures are of evaluations since the last purge, one for each view that was evaluated. The band
   of an accuracy holds the error of counting so many rows (95 %); a perplexity has none. */

import { count, draw, make, short, whole } from "./elements.js";

const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [480, 170, 44, 470, 12, 140];

/* Args: evaluations, [{view, at, deleted, metric, value, base, samples}], the oldest first; and the
   weights of the status, null where none are fitted. */
export function courseOf(evaluations, weights) {
  const fitted = weighted(weights);
  if (!evaluations?.length) {
    return [make("p", { class: "note" }, "Not evaluated yet. A service does so within a minute of a "
      + "change (serve.evaluate), and s3t evaluate at once."), fitted];
  }
  const [first, last] = [evaluations[0], evaluations.at(-1)];
  const told = last.metric === "accuracy" ? (value) => `${short(100 * value)} %` : short;
  const rows = [["now", told(last.value)]];
  if (evaluations.length > 1) rows.push([`at ${count(first.deleted, "deletion")}`, told(first.value)]);
  rows.push(["the base alone", last.base === null ? "cannot answer" : told(last.base)]);
  return [
    make("dl", { class: "course" },
      rows.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)))),
    evaluations.length > 1 ? drawing(evaluations, told) : null,
    make("p", { class: "note" }, `${last.metric === "accuracy" ? "Accuracy" : "Perplexity"} on `
      + `${whole(last.samples)} rows`
      + (evaluations.length > 1 ? ", by samples deleted" : "")
      + (evaluations.length > 1 && last.base !== null ? ". Dashed: the base alone." : ".")),
    fitted,
  ];
}

/* How answers do on the rows that their weights are fitted on; null unless fitted. */
function weighted(weights) {
  if (!weights?.fitted) return null;
  const [what, told, name] = weights.accuracy === null
    ? ["perplexity", (value) => short(Math.exp(-value)), "log_likelihood"]
    : ["accuracy", (value) => `${short(100 * value)} %`, "accuracy"];
  const base = weights[`base_${name}`];
  return make("p", { class: "note" }, `On the validation rows, by which shards are weighted: ${what} `
    + `${told(weights[name])}` + (base === null ? "." : `, the base alone ${told(base)}.`));
}

function drawing(evaluations, told) {
  const error = (one) => one.metric === "accuracy"
    ? 1.96 * Math.sqrt((one.value * (1 - one.value)) / one.samples) : 0;
  const base = evaluations.at(-1).base;
  const all = evaluations.flatMap((one) => [one.value - error(one), one.value + error(one)])
    .concat(base === null ? [] : [base]);
  const [low, high] = [Math.min(...all), Math.max(...all)];
  const room = (high - low || Math.abs(high) || 1) * 0.08;
  const from = evaluations[0].deleted;
  const most = Math.max(evaluations.at(-1).deleted - from, 1);
  const x = (one) => LEFT + ((RIGHT - LEFT) * (one.deleted - from)) / most;
  const y = (value) => BOTTOM - ((BOTTOM - TOP) * (value - low + room)) / (high - low + 2 * room);
  const line = (of) => evaluations.map((one, index) =>
    `${index ? "L" : "M"}${x(one).toFixed(1)} ${y(of(one)).toFixed(1)}`).join("");
  const back = [...evaluations].reverse().map((one) =>
    `L${x(one).toFixed(1)} ${y(one.value - error(one)).toFixed(1)}`).join("");
  return draw("svg", { class: "plot", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img",
    "aria-label": `From ${told(evaluations[0].value)} to ${told(evaluations.at(-1).value)}` },
  draw("line", { class: "axis", x1: LEFT, x2: RIGHT, y1: BOTTOM, y2: BOTTOM }),
  [low, high].map((value) => draw("text", { class: "tick side", x: LEFT - 6, y: y(value) }, told(value))),
  [from, from + most].map((value) => draw("text", { class: "tick", y: BOTTOM + 16,
    x: LEFT + ((RIGHT - LEFT) * (value - from)) / most }, whole(value))),
  draw("path", { class: "band", d: `${line((one) => one.value + error(one))}${back}Z` }),
  base === null ? null : draw("line", { class: "base-line", x1: LEFT, x2: RIGHT, y1: y(base), y2: y(base) }),
  draw("path", { class: "course-line", d: line((one) => one.value) }),
  evaluations.map((one) => draw("circle", { class: "mid", cx: x(one), cy: y(one.value), r: 3 })));
}
