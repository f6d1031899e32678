// Runs any inferlet, and shows what it says as it says it.

import { ask, events } from "./api.js";
import { byId, el, notice, setText } from "./dom.js";
import { EventView } from "./events.js";

const PROMPT = "12+7=? Think step by step.";
const SAMPLES = { prompt: PROMPT, question: PROMPT, text: PROMPT, chat: true, messages: [{ role: "user", content: PROMPT }] };

export class Playground {
  /** `onOpen` is told the id of a run whose log is wanted. */
  constructor({ onOpen }) {
    this.view = new EventView(byId("output"));
    this.run = "";
    this.running = null;
    this.written = "";
    this.programs = new Map();
    byId("start").onclick = () => this.start();
    byId("stop").onclick = () => this.stop();
    byId("send").onclick = () => this.send();
    byId("open-run").onclick = () => onOpen(this.run);
    byId("program").onchange = () => this.chosen();
    byId("message").onkeydown = (event) => { if (event.key === "Enter") this.send(); };
    byId("view-playground").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
        event.preventDefault();
        this.start();
      }
    });
  }

  /** The programs that there are. */
  show(programs) {
    const select = byId("program");
    const before = select.value;
    this.programs = new Map(programs.map((one) => [one.is_embedded ? one.name : `${one.name}@${one.version}`, one]));
    select.replaceChildren(...[...this.programs.keys()].map((name) => el("option", { value: name }, name)));
    select.value = this.programs.has(before) ? before : this.programs.has("text-completion") ? "text-completion" : select.value;
    if (select.value !== before) this.chosen();
  }

  /** Propose arguments for the program that was chosen, unless others have been written. */
  async chosen() {
    const name = byId("program").value;
    setText(byId("about"), this.programs.get(name)?.description ?? "");
    setText(byId("takes"), "");
    let parameters = null;
    try {
      ({ parameters } = await ask("GET", `/v1/inferlets/${encodeURIComponent(name)}`));
    } catch (error) {
      notice(error.message);
    }
    if (byId("program").value !== name) return;
    setText(byId("takes"), parameters === null ? "What it takes is not known." :
      `It takes ${parameters.map((one) => `${one.name}: ${one.type}${one.is_required ? "" : " (optional)"}`).join(", ") || "nothing"}.`);
    const text = byId("arguments");
    if (text.value !== this.written) return;
    const given = {};
    for (const one of parameters ?? []) {
      if (one.is_required || one.name in SAMPLES) given[one.name] = SAMPLES[one.name] ?? sample(one.type);
    }
    text.value = this.written = JSON.stringify(given, null, 2);
  }

  async start() {
    if (this.running) return;
    const input = this.read();
    if (input === undefined) return;
    const running = this.running = new AbortController();
    this.view.clear();
    this.run = "";
    this.told("starting");
    const path = `/v1/inferlets/${encodeURIComponent(byId("program").value)}/runs`;
    const body = { input, stream: true, priority: Number(byId("priority").value) || 0 };
    if (byId("traced").checked) body.trace = true;
    let state = "ended";
    try {
      const onOpen = (id) => { this.run = id; this.told("running"); };
      for await (const event of events("POST", path, { body, signal: running.signal, onOpen })) {
        this.view.add(event);
        if (event.event === "error") state = "failed";
        if (event.event === "result") state = "done";
      }
    } catch (error) {
      state = running.signal.aborted ? "stopped" : "failed";
      if (!running.signal.aborted) this.view.add({ event: "error", data: { code: error.status ?? "lost", message: error.message } });
    }
    this.running = null;
    this.told(state);
  }

  /** The arguments; undefined, with what is wrong said, if they are no JSON object. */
  read() {
    try {
      const input = JSON.parse(byId("arguments").value || "{}");
      if (input === null || typeof input !== "object" || Array.isArray(input)) throw new Error("arguments are a JSON object");
      return input;
    } catch (error) {
      notice(error.message);
      byId("arguments").focus();
      return undefined;
    }
  }

  stop() {
    this.running?.abort();
  }

  async send() {
    const message = byId("message");
    if (!this.run || !this.running) return;
    try {
      await ask("POST", `/v1/runs/${encodeURIComponent(this.run)}/messages`, { text: message.value });
      message.value = "";
    } catch (error) {
      notice(error.message);
    }
  }

  told(state) {
    const runs = this.running !== null;
    setText(byId("run-state"), state);
    byId("run-state").className = `state ${state}`;
    byId("start").disabled = runs;
    byId("stop").disabled = byId("send").disabled = byId("message").disabled = !runs;
    byId("open-run").hidden = !this.run;
  }
}

/** A value of a Python type, as its annotation says. */
function sample(type) {
  if (/^(int|float)\b/.test(type)) return 1;
  if (/^bool\b/.test(type)) return false;
  if (/^(list|tuple|Sequence)\b/.test(type)) return [];
  if (/^(dict|Mapping)\b/.test(type)) return {};
  return "";
}
