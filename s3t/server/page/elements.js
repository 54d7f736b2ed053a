/* What everything on the page is made of, and how it writes numbers and times.

   Invariant: whatever came from the service enters the page through `make` and `draw`, as text or
   as an attribute of a fixed name. Nothing is ever read as markup. */

const SVG = "http://www.w3.org/2000/svg";

export function make(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

export function draw(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

/* Replaces what a place holds. Who was in there with the keyboard stays where they were. */
export function fill(place, ...children) {
  const active = place.contains(document.activeElement) ? document.activeElement : null;
  const mark = active && active.dataset.mark;
  place.replaceChildren(...children.flat(Infinity).filter(Boolean));
  if (mark) [...place.querySelectorAll("[data-mark]")].find((one) => one.dataset.mark === mark)?.focus();
}

export function byId(id) {
  return document.getElementById(id);
}

/* A table in a frame of its own, so that a phone scrolls the table and never the page. */
export function framed(label, table) {
  return make("div", { class: "scroll", role: "region", "aria-label": label, tabindex: "0" }, table);
}

export function unseen(text) {
  return make("span", { class: "unseen" }, text);
}

export function arrows(prefix) {
  return prefix.length ? prefix.join(" → ") : "nothing";
}

export function count(number, one, many = `${one}s`) {
  return `${whole(number)} ${number === 1 ? one : many}`;
}

export function whole(number) {
  return Number(number).toLocaleString("en");
}

/* Three figures, or all before the point; null stands for what need not happen at all. */
export function short(number) {
  if (number === null || number === undefined) return "never";
  if (number >= 100 || Number.isInteger(number)) return whole(Math.round(number));
  return String(Number(number.toPrecision(3)));
}

export function seconds(value) {
  if (value === null || !Number.isFinite(value)) return "–";
  if (value < 1) return `${Number((value * 1000).toPrecision(3))} ms`;
  return value < 100 ? `${Number(value.toPrecision(3))} s` : `${whole(Math.round(value))} s`;
}

/* A time given in days, in the unit that suits it. */
export function lasting(days) {
  if (days === null || days === undefined) return "never";
  const units = [["s", 86400], ["min", 1440], ["h", 24], ["days", 1], ["years", 1 / 365.25]];
  const [name, each] = units.findLast(([, per]) => days * per >= 1.5) ?? units[0];
  return `${short(days * each)} ${name}`;
}

/* A moment as the reader's clock shows it; the exact one is its title. */
export function moment(iso) {
  if (!iso) return "–";
  const at = new Date(iso);
  const today = at.toDateString() === new Date().toDateString();
  const text = at.toLocaleString("en-GB", {
    ...(today ? {} : { day: "numeric", month: "short", year: "numeric" }),
    hour: "2-digit", minute: "2-digit", second: "2-digit",
  });
  return make("time", { datetime: iso, title: iso }, text);
}
