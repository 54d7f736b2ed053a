/* Requests a second and latency of the last minutes, as /v1/traffic tells them.

   Several replicas may take turns behind one address, and each tells its own seconds. So the latest
   word of each is kept, and seconds are added up over all that have been heard of. */

import { count, draw, make, seconds, short } from "./elements.js";

const SHOWN = 180;

export class Traffic {
  #heard = new Map();

  /* Takes in what one replica tells: {replica, now, seconds: [{at, requests, failed, p50, p99}]}. */
  read(told) {
    this.#heard.set(told.replica, told);
    for (const [replica, { now }] of this.#heard) {
      if (now < told.now - SHOWN) this.#heard.delete(replica);
    }
  }

  drawn() {
    const told = [...this.#heard.values()];
    const end = Math.max(...told.map((one) => one.now));  // the second under way is not over
    const points = [...Array(SHOWN).keys()].map((index) =>
      joined(told.flatMap((one) => one.seconds.filter(({ at }) => at === end - SHOWN + index))));
    const lately = joined(told.flatMap((one) =>
      one.seconds.filter(({ at }) => at >= end - 10 && at < end)));
    if (!points.some((one) => one.requests)) {
      return [make("p", { class: "note" }, `No questions in the last ${SHOWN / 60} minutes.`)];
    }
    const failed = points.reduce((sum, one) => sum + one.failed, 0);
    return [
      make("div", { class: "sparks" },
        spark("requests a second", short(lately.requests / 10), [points.map((one) => one.requests)]),
        spark("latency", `p50 ${seconds(lately.p50)}, p99 ${seconds(lately.p99)}`,
          [points.map((one) => one.p50), points.map((one) => one.p99)])),
      make("p", { class: "note" }, `Questions of the last ${SHOWN / 60} minutes, figures of the last `
        + `10 seconds${told.length > 1 ? `, of ${told.length} replicas` : ""}; `
        + `${failed ? count(failed, "server error") : "no server errors"}. Dashed: p99.`),
    ];
  }
}

/* Seconds as one: requests add up, p50 is their mean by requests, p99 the worst of them. */
function joined(several) {
  const requests = several.reduce((sum, one) => sum + one.requests, 0);
  const mean = several.reduce((sum, one) => sum + one.p50 * one.requests, 0) / requests;
  return {
    requests, failed: several.reduce((sum, one) => sum + one.failed, 0),
    p50: requests ? mean : null,
    p99: requests ? Math.max(...several.map((one) => one.p99)) : null,
  };
}

function spark(name, value, series) {
  const most = Math.max(...series.flat().filter((one) => one !== null), 0) || 1;
  const step = 300 / (SHOWN - 1);
  const at = (one, index) => `${Number((index * step).toFixed(1))} ${Number((58 - (54 * one) / most).toFixed(1))}`;
  const path = (values) => values.map((one, index) => (one === null ? ""
    : `${index && values[index - 1] !== null ? "L" : "M"}${at(one, index)}h.1`)).join("");
  const area = series[0].every((one) => one !== null) ? `${path(series[0])}L300 60L0 60Z` : "";
  return make("figure", {},
    make("figcaption", {}, name, make("b", {}, value)),
    draw("svg", { class: "spark", viewBox: "0 0 300 60", preserveAspectRatio: "none", "aria-hidden": "true" },
      draw("path", { class: "area", d: area }),
      series.map((values, index) => draw("path", { class: index ? "second" : "first", d: path(values) }))));
}
