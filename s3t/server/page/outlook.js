/* The budget: what is left of samples and blocks, and the forecast with its intervals. */

import { count, draw, framed, lasting, make, short, whole } from "./elements.js";

const ENOUGH = 1;  // days of deletions, before which a rate says nothing
const EVENTS = [["first_death", "First shard dies"], ["exhaustion", "Exhausted"]];

/* The figures at the top of the page. */
export function figuresOf({ status, picture, forecast }) {
  const nodes = (...states) => picture.nodes.filter((node) => states.includes(node.state)).length;
  const serving = picture.serving.filter((prefix) => prefix.length).length;
  return [
    figure("Until the first shard dies", ...until(forecast, "first_death", status.exhausted)),
    figure("Until exhaustion", ...until(forecast, "exhaustion", status.exhausted)),
    figure("Samples left", whole(status.samples - status.deleted), "",
      `${whole(status.deleted)} of ${whole(status.samples)} deleted`),
    figure("Blocks alive", whole(nodes("serving", "alive")), `of ${whole(picture.nodes.length)}`,
      `${serving} of ${count(picture.serving.length, "shard")} serving, ${whole(nodes("missing"))} missing`),
  ];
}

function until(forecast, event, exhausted) {
  const outlook = forecast?.[event];
  if (!outlook) return exhausted ? ["now", "", "no shard serves"] : ["–", "", "no forecast"];
  const { requests, days } = outlook;
  const range = requests.p95 === null ? `${short(requests.p5)} or more at 95 %`
    : `${short(requests.p5)} to ${short(requests.p95)} at 90 %`;
  const time = days && rated(forecast) ? `, ≈ ${lasting(days.p50)}` : "";
  return [short(requests.p50), requests.p50 === 1 ? "request" : "requests", `${range}${time}`];
}

/* Whether requests have come for long enough to speak of time. */
function rated(forecast) {
  return (forecast.observed?.days ?? 0) >= ENOUGH;
}

function figure(title, value, unit, note) {
  return make("div", { class: "figure" }, make("h2", {}, title),
    make("p", { class: "value" }, value, unit ? make("small", {}, ` ${unit}`) : null),
    make("p", { class: "note" }, note));
}

/* The forecast: a drawing of both intervals, the same as a table, and what it rests on. */
export function forecastOf({ forecast }) {
  if (!forecast) return make("p", { class: "note" }, "No forecast yet.");
  if (forecast.exhausted) {
    return make("p", {}, "Exhausted: no shard serves any more. s3t repair trains it again.");
  }
  const seen = forecast.observed;
  const notes = [
    `${count(forecast.persons_left, "person")} left, ${count(forecast.first_slices_left, "first slice")} `
      + "left that can carry a prefix.",
    rated(forecast)
      ? `${short(seen.per_day)} persons a day, as observed over ${lasting(seen.days)}.`
      : "How long that is can be said after a day of deletions.",
    forecast.trials === null
      ? "All persons are taken for alike: exact."
      : `By the config's risk rates: ${whole(forecast.trials)} simulated streams.`,
  ];
  if (forecast.first_slices_missing) {
    notes.splice(1, 0, `${count(forecast.first_slices_missing, "first slice")} not trained or damaged: `
      + "counted as dead.");
  }
  if (forecast.in_each_shard) {
    notes.splice(1, 0, "A person with rows in several shards counts in each: fewer requests may be enough.");
  }
  return [drawing(forecast), table(forecast), make("p", { class: "note" }, notes.join(" "))];
}

function drawing(forecast) {
  const [left, right] = [6, 346];
  const ends = EVENTS.map(([event]) => forecast[event].requests.p95 ?? forecast[event].requests.p50);
  const most = nice(Math.max(...ends, 1));
  const x = (value) => left + ((right - left) * Math.min(value ?? most, most)) / most;
  const lines = EVENTS.map(([event, title], index) => {
    const { p5, p50, p95 } = forecast[event].requests;
    const y = 28 + index * 38;
    return [
      draw("text", { class: "name", x: 0, y: y - 18 }, title),
      draw("line", { class: "span", x1: x(p5), x2: x(p95), y1: y, y2: y }),
      draw("circle", { class: "mid", cx: x(p50), cy: y, r: 5 }),
    ];
  });
  const ticks = [0, most / 2, most].map((value) => draw("text", { class: "tick", x: x(value), y: 98 },
    short(value)));
  return draw("svg", { class: "outlook", viewBox: "0 0 360 108", "aria-hidden": "true" },
    draw("line", { class: "axis", x1: left, x2: right, y1: 84, y2: 84 }), ticks, lines);
}

/* The next number of 1, 2, 4, 6, 8 or 10 times a power of ten. */
function nice(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 2, 4, 6, 8, 10].find((step) => step * power >= value);
}

function table(forecast) {
  const shares = ["p5", "p50", "p95"];
  const units = [["requests", "requests", short]];
  if (rated(forecast)) units.push(["days", "time", lasting]);
  const rows = EVENTS.flatMap(([event, title]) => units.map(([unit, name, write]) => {
    const values = forecast[event][unit];
    return values && make("tr", {}, make("th", { scope: "row" }, `${title}, ${name}`),
      shares.map((share) => make("td", { class: "number" }, write(values[share]))));
  }));
  return framed("Forecast", make("table", {},
    make("caption", { class: "unseen" }, "Requests, and time, that are left"),
    make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "probability"),
      ["5 %", "50 %", "95 %"].map((name) => make("th", { scope: "col", class: "number" }, name)))),
    make("tbody", {}, rows)));
}
