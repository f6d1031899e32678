// Elements, made without HTML: whatever comes from programs is text.

const SVG = "http://www.w3.org/2000/svg";

/** The element with that id. */
export const byId = (id) => document.getElementById(id);

/** An element with attributes and children; a string is a text, `onclick` and the like are listeners. */
export function el(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

/** The same of SVG. */
export function svg(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children);
  return element;
}

/** Give an element another text, if it has not that one already: whoever reads or selects it is not disturbed. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A table's head from [title, is a number] pairs, and its body. */
export function table(element, columns, rows) {
  const head = el("tr", {}, ...columns.map(([title, isNumber]) => el("th", { class: isNumber && "number", scope: "col" }, title)));
  element.replaceChildren(el("thead", {}, head), el("tbody", {}, ...rows));
}

/** A cell; `kind` is "number", "long" or nothing. */
export const cell = (value, kind) => el("td", { class: kind }, value);

/** A state with its colour. */
export const state = (name) => el("span", { class: `state ${name}` }, name);

let hiding = 0;

/** Say something to who looks, for a few seconds. */
export function notice(text) {
  const element = byId("notice");
  element.textContent = text;
  element.hidden = false;
  clearTimeout(hiding);
  hiding = setTimeout(() => { element.hidden = true; }, 6000);
}

/** Ask a question in a dialog; true: yes. */
export function confirmed(title, text) {
  const dialog = byId("confirm");
  setText(byId("confirm-title"), title);
  setText(byId("confirm-text"), text);
  dialog.showModal();
  byId("confirm-no").focus();
  return new Promise((resolve) => {
    const close = (answer) => () => { dialog.close(); resolve(answer); };
    byId("confirm-yes").onclick = close(true);
    byId("confirm-no").onclick = close(false);
    dialog.oncancel = () => resolve(false);
  });
}

/** The two largest units of a time in seconds: 0.3 s, 12 s, 3m 20s, 5h 2m. */
export function duration(seconds) {
  if (seconds < 10) return `${Math.max(seconds, 0).toFixed(1)} s`;
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  const units = [["d", 86400], ["h", 3600], ["m", 60], ["s", 1]];
  const parts = [];
  let left = Math.floor(seconds);
  for (const [unit, size] of units) {
    const count = Math.floor(left / size);
    left -= count * size;
    if (count || parts.length) parts.push(`${count}${unit}`);
  }
  return parts.slice(0, 2).join(" ");
}

/** 1234567 as 1.23 M. */
export function amount(number) {
  for (const [unit, size] of [["G", 1e9], ["M", 1e6], ["k", 1e4]]) {
    if (number >= size) return `${(number / (unit === "k" ? 1e3 : size)).toPrecision(3)} ${unit}`;
  }
  return Number.isInteger(number) ? String(number) : number.toFixed(1);
}
