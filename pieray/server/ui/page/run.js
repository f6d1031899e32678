// One inferlet: its facts, what it says, its trace.

import { ask, events, Refused } from "./api.js";
import { amount, byId, confirmed, duration, el, notice } from "./dom.js";
import { EventView } from "./events.js";
import { traceView } from "./trace.js";

const RUNS = new Set(["running", "starting", "unreachable"]);

/** End an inferlet, if who looks means it. */
export async function kill(one) {
  if (!await confirmed(`Kill ${one.name}?`, `${one.instance_id} ends now, and its children with it.`)) return;
  try {
    await ask("DELETE", `/v1/engine/inferlets/${encodeURIComponent(one.instance_id)}`);
    notice(`${one.instance_id} has been ended`);
  } catch (error) {
    notice(error.message);
  }
}

export class RunView {
  /** `onClose` is called when it has been closed. */
  constructor({ onClose }) {
    this.onClose = onClose;
    this.element = byId("run");
    this.id = "";
    this.reading = null;
  }

  /** Show an inferlet, from its facts. */
  open(one) {
    this.reading?.abort();
    this.id = one.instance_id;
    this.log = el("div", { class: "events", tabindex: 0, id: "run-log", role: "tabpanel" });
    this.trace = el("div", { id: "run-trace", role: "tabpanel", hidden: true });
    this.facts = el("dl", { class: "facts" });
    this.killing = el("button", { type: "button", class: "danger", onclick: () => kill(this.one) }, "Kill");
    this.tabs = ["Log", "Trace"].map((title) => el("button", { type: "button", role: "tab", onclick: () => this.choose(title) }, title));
    this.element.replaceChildren(
      el("div", { class: "bar" }, el("h2", { id: "run-title" }, one.name), el("span", { class: "grow" }), this.killing,
        el("button", { type: "button", "aria-label": "Close", onclick: () => this.close() }, "✕")),
      this.facts, el("div", { class: "tabs", role: "tablist" }, ...this.tabs), this.log, this.trace);
    this.element.hidden = false;
    this.element.parentElement.classList.add("with-run");
    this.choose("Log");
    this.show(one);
    this.read();
  }

  /** The same inferlet, later. */
  show(one) {
    this.one = one;
    this.killing.hidden = !RUNS.has(one.state);
    const rows = [["id", one.instance_id], ["state", one.state]];
    if (one.error) rows.push(["error", one.error]);
    if (one.parent) rows.push(["launched by", one.parent]);
    if (one.started_at !== undefined) {
      rows.push(["started", new Date(one.started_at * 1000).toLocaleString()],
        ["took", duration((one.ended_at ?? Date.now() / 1000) - one.started_at)],
        ["owner", `${one.tenant}/${one.user}, priority ${one.priority}`],
        ["tokens", `${amount(one.tokens_computed)} computed, ${amount(one.tokens_found)} found`],
        ["pages", `${one.pages} held, ${one.swapped} given up at present`],
        ["sent", `${amount(one.output_bytes)} bytes`]);
    }
    const texts = rows.flat();
    if (this.facts.childElementCount === texts.length) {
      texts.forEach((text, at) => { if (this.facts.children[at].textContent !== text) this.facts.children[at].textContent = text; });
    } else {
      this.facts.replaceChildren(...rows.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
    }
  }

  choose(title) {
    this.log.hidden = title !== "Log";
    this.trace.hidden = title !== "Trace";
    for (const tab of this.tabs) tab.ariaSelected = String(tab.textContent === title);
    if (title === "Trace") this.showTrace();
  }

  async read() {
    const view = new EventView(this.log);
    const reading = this.reading = new AbortController();
    const path = `/v1/engine/inferlets/${encodeURIComponent(this.id)}/events`;
    try {
      for await (const event of events("GET", path, { signal: reading.signal })) view.add(event);
    } catch (error) {
      if (!reading.signal.aborted) view.add({ event: "error", data: { code: "lost", message: error.message } });
    }
  }

  async showTrace() {
    const id = this.id;
    try {
      const found = await ask("GET", `/v1/engine/inferlets/${encodeURIComponent(id)}/trace`);
      if (id === this.id) this.trace.replaceChildren(traceView(found, id));
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      this.trace.replaceChildren(el("p", { class: "hint" }, error.message));
    }
  }

  close() {
    if (this.element.hidden) return;
    this.reading?.abort();
    this.id = "";
    this.element.hidden = true;
    this.element.parentElement.classList.remove("with-run");
    this.onClose();
  }
}
