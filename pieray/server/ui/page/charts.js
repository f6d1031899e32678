// KV pages by state over time, one upon the other, and those in host memory as a line.

import { amount, byId, el, setText, svg } from "./dom.js";

const USED = ["leased", "cached", "quarantined"];
const COLUMN = { free: 1, leased: 2, cached: 3, quarantined: 4, swapped: 5 };
const HEIGHT = 190, LEFT = 54, BOTTOM = 20, TOP = 6;
const KEPT = 900;

export class PagesChart {
  constructor() {
    this.samples = [];
    this.counts = new Map([...USED, "free", "swapped"].map((name) => [name, el("b")]));
    byId("legend").replaceChildren(...[...this.counts].map(([name, count]) => el("li", { class: name }, `${name} `, count)));
    byId("whole-pool").addEventListener("input", () => this.draw());
    addEventListener("resize", () => this.draw());
  }

  /** The Unix time of the newest sample: what to ask for is newer. */
  get newest() {
    return this.samples.at(-1)?.[0] ?? 0;
  }

  /** Add samples, [time, free, leased, cached, quarantined, swapped], and draw. */
  add(samples) {
    if (!samples.length) return;
    this.samples = [...this.samples, ...samples].slice(-KEPT);
    for (const [name, count] of this.counts) setText(count, amount(this.samples.at(-1)[COLUMN[name]]));
    this.draw();
  }

  draw() {
    if (this.samples.length) byId("pages").replaceChildren(this.drawn(byId("pages").clientWidth || 1000));
  }

  drawn(width) {
    const found = this.samples;
    const states = byId("whole-pool").checked ? [...USED, "free"] : USED;
    const of = (one, names) => names.reduce((sum, name) => sum + one[COLUMN[name]], 0);
    const most = roundedUp(Math.max(4, ...found.map((one) => Math.max(of(one, states), one[COLUMN.swapped]))));
    const end = found.at(-1)[0];
    const begin = Math.min(found[0][0], end - 60);
    const x = (time) => (LEFT + (width - LEFT) * (time - begin) / (end - begin)).toFixed(1);
    const y = (pages) => (TOP + (HEIGHT - BOTTOM - TOP) * (1 - pages / most)).toFixed(1);
    const told = `KV pages: ${[...described(found.at(-1))].join(", ")}`;
    const image = svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": told });
    states.forEach((name, at) => {
      const up = found.map((one) => `${x(one[0])},${y(of(one, states.slice(0, at + 1)))}`);
      const down = found.map((one) => `${x(one[0])},${y(of(one, states.slice(0, at)))}`).reverse();
      image.append(svg("polygon", { class: name, points: [...up, ...down].join(" ") }));
    });
    if (found.some((one) => one[COLUMN.swapped])) {
      image.append(svg("polyline", { class: "swapped", points: found.map((one) => `${x(one[0])},${y(one[COLUMN.swapped])}`).join(" ") }));
    }
    for (const part of [0, 0.5, 1]) {
      const at = y(most * part);
      image.append(
        svg("line", { class: "grid", x1: LEFT, x2: width, y1: at, y2: at }),
        svg("text", { x: LEFT - 6, y: Number(at) + 4, "text-anchor": "end" }, amount(most * part)));
      const time = begin + (end - begin) * part;
      const anchor = ["start", "middle", "end"][part * 2];
      image.append(svg("text", { x: x(time), y: HEIGHT - 5, "text-anchor": anchor }, new Date(time * 1000).toLocaleTimeString()));
    }
    return image;
  }
}

function* described(sample) {
  for (const [name, at] of Object.entries(COLUMN)) yield `${sample[at]} ${name}`;
}

/** The next of 2, 4, 6, 10 times a power of ten: the middle of an axis has a short number too. */
function roundedUp(number) {
  const power = 10 ** Math.floor(Math.log10(number));
  return [1, 2, 4, 6, 10].map((one) => one * power).find((one) => one >= number);
}
