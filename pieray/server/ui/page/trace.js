// A Chrome trace as a picture in time: a lane for each inferlet, its calls below it, and the steps of the device.

import { el, setText, svg } from "./dom.js";

const ROW = 18, LEFT = 150, TOP = 22;
const MOST_DRAWN = 6000;
const KINDS = [["run", "run"], ["launch", "launch"], ["call", "call"], ["wait", "wait"], ["step", "step"]];

/** The picture, what is under the pointer in words, and a way to keep the trace as a file. */
export function traceView(trace, id) {
  const events = trace.traceEvents;
  const names = new Map(events.filter((one) => one.ph === "M").map((one) => [`${one.name}/${one.pid}/${one.tid}`, one.args.name]));
  const spans = events.filter((one) => one.ph === "X");
  const told = el("p", { class: "hint", role: "status" }, "Point at something: here is what it was.");
  const keep = el("button", { type: "button", onclick: () => save(trace, id) }, "Save for Perfetto");
  const zoom = el("input", { type: "range", min: 1, max: 60, value: 1, "aria-label": "Zoom" });
  const box = el("div", { class: "trace", tabindex: 0 });
  const draw = () => box.replaceChildren(drawn(spans, names, told, Number(zoom.value), box.clientWidth || 600));
  zoom.addEventListener("input", draw);
  requestAnimationFrame(draw);
  const cut = spans.length > MOST_DRAWN ? `  Drawn: the longest ${MOST_DRAWN} of ${spans.length}.` : "";
  return el("div", {}, el("div", { class: "bar" }, el("label", {}, "zoom ", zoom), el("span", { class: "grow" }), keep), box,
    told, el("p", { class: "hint" }, `${spans.length} spans in ${totals(spans)}.${cut}`));
}

function totals(spans) {
  const [begin, end] = range(spans);
  return `${((end - begin) / 1000).toFixed(1)} ms`;
}

function range(spans) {
  let begin = Infinity, end = -Infinity;
  for (const one of spans) {
    begin = Math.min(begin, one.ts);
    end = Math.max(end, one.ts + one.dur);
  }
  return [begin, Math.max(end, begin + 1)];
}

function drawn(spans, names, told, zoom, outer) {
  const [begin, end] = range(spans);
  const width = Math.max(300, (outer - LEFT - 20) * zoom);
  const x = (time) => LEFT + width * (time - begin) / (end - begin);
  const lanes = new Map();
  const shown = spans.length > MOST_DRAWN ? [...spans].sort((a, b) => b.dur - a.dur).slice(0, MOST_DRAWN) : spans;
  for (const one of shown) {
    const kind = ["call", "wait"].includes(one.cat) ? "calls" : "run";
    const key = `${one.pid}/${one.tid}/${kind}`;
    if (!lanes.has(key)) lanes.set(key, { one, kind, spans: [] });
    lanes.get(key).spans.push(one);
  }
  const height = TOP + lanes.size * ROW + 6;
  const image = svg("svg", { width: LEFT + width + 10, height, role: "img", "aria-label": `${spans.length} spans` });
  const parts = Math.max(2, Math.floor(width / 90));
  for (let part = 0; part <= parts; part++) {
    const at = LEFT + width * part / parts;
    image.append(svg("text", { class: "axis", x: at, y: 13, "text-anchor": "middle" }, `${((end - begin) * part / parts / 1000).toFixed(1)} ms`));
  }
  [...lanes.values()].forEach((lane, number) => {
    const y = TOP + number * ROW;
    const name = lane.one.pid === 2 ? "steps" : lane.kind === "calls" ? "  calls" : names.get(`thread_name/1/${lane.one.tid}`) ?? "";
    image.append(svg("text", { class: "lane", x: 4, y: y + 12 }, name.split(" ")[0].slice(0, 22) || "  calls"));
    for (const one of lane.spans.sort((a, b) => a.ts - b.ts || b.dur - a.dur)) {
      const rect = svg("rect", {
        class: one.args.error ? "failed" : (KINDS.find(([cat]) => cat === one.cat) ?? ["", "call"])[1],
        x: x(one.ts).toFixed(2), y, width: Math.max(0.7, x(one.ts + one.dur) - x(one.ts)).toFixed(2), height: ROW - 5,
      });
      rect.addEventListener("pointerenter", () => setText(told, words(one, begin)));
      image.append(rect);
    }
  });
  return image;
}

function words(one, begin) {
  const facts = Object.entries(one.args).filter(([, value]) => value !== "" && value !== null);
  const more = facts.map(([name, value]) => `${name} ${Array.isArray(value) ? value.length : value}`).join(", ");
  return `${one.name}: ${(one.dur / 1000).toFixed(3)} ms, from ${((one.ts - begin) / 1000).toFixed(3)} ms${more ? `; ${more}` : ""}`;
}

function save(trace, id) {
  const url = URL.createObjectURL(new Blob([JSON.stringify(trace)], { type: "application/json" }));
  const link = el("a", { href: url, download: `${id}.trace.json` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
