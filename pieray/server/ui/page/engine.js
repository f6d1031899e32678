// The engine: how much it does, what its models and actors are.

import { amount, byId, cell, el, setText, state, table } from "./dom.js";

const RUNS = new Set(["running", "starting"]);

export class EngineView {
  constructor() {
    this.before = null;
    this.tiles = new Map();
  }

  show(facts) {
    const running = facts.inferlets.filter((one) => RUNS.has(one.state)).length;
    const pages = facts.pages;
    const used = pages ? `${(100 * (1 - (pages.free + pages.cached) / Math.max(pages.total, 1))).toFixed(1)} %` : "-";
    this.tile("running", "inferlets run", String(running));
    this.tile("waiting", "launches wait", String(facts.waiting));
    this.tile("tokens", "tokens a second", this.rate(facts, "tokens"));
    this.tile("steps", "steps a second", this.rate(facts, "steps"));
    this.tile("batch", "passes in a step", facts.steps.mean_batch?.toFixed(2) ?? "-");
    this.tile("used", "of KV pages held", used);
    this.tile("refused", "launches refused", String(facts.refused));
    this.tile("restarts", "actors replaced", String(facts.num_restarts));
    this.before = facts;
    this.models(facts);
    this.actors(facts);
    const { tenant, user, is_admin: isAdmin } = facts.caller;
    setText(byId("who"), `${facts.model} · ${tenant}/${user}${isAdmin ? " (admin)" : ""} · ${facts.version}`);
  }

  tile(id, title, value) {
    if (!this.tiles.has(id)) {
      const number = el("b");
      byId("tiles").append(el("li", { id: `tile-${id}` }, number, el("span", {}, title)));
      this.tiles.set(id, number);
    }
    setText(this.tiles.get(id), value);
  }

  /** How fast a total of the steps grows, from what was told before. */
  rate(facts, name) {
    const before = this.before;
    if (!before || facts.at <= before.at || !(name in facts.steps)) return before ? "0" : "-";
    const grown = facts.steps[name] - (before.steps[name] ?? 0);
    return amount(Math.max(0, Math.round(grown / (facts.at - before.at))));
  }

  models(facts) {
    const rows = facts.models.map((one) => el("tr", {},
      cell(one.name), cell(one.device), cell(one.dtype), cell(one.architecture), cell(amount(one.max_context), "number"),
      cell(amount(one.num_pages), "number"), cell(String(one.page_size), "number"), cell(amount(one.vocab_size), "number")));
    table(byId("devices"), [["Model"], ["Device"], ["Type"], ["Architecture"], ["Context", 1], ["Pages", 1], ["Tokens a page", 1],
      ["Vocabulary", 1]], rows);
  }

  actors(facts) {
    const rows = facts.actors.map((one) => el("tr", {},
      cell(one.role), cell(state(one.state)), cell(String(one.pid ?? "-"), "number"), cell((one.node_id ?? "-").slice(0, 8)),
      cell(one.num_live === undefined ? "-" : String(one.num_live), "number"), cell(String(one.incarnation ?? "-"), "number"),
      cell(one.error ?? "", "long")));
    table(byId("actors"), [["Actor"], ["State"], ["Process", 1], ["Node"], ["Inferlets", 1], ["Incarnation", 1], [""]], rows);
  }
}
