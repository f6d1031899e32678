// Inferlets as a tree, below those that have launched them.  Rows are kept as long as there is their inferlet, so that
// whoever has the focus on one keeps it.

import { amount, byId, cell, duration, el, setText, state } from "./dom.js";

const COLUMNS = [["Inferlet"], ["State"], ["Age"], ["Pages", 1], ["Swapped", 1], ["Tokens", 1], ["Found", 1], ["CPU s", 1], ["Owner"]];
const RUNS = new Set(["running", "starting", "unreachable"]);

export class Tree {
  /** `onOpen` and `onKill` are told the facts of an inferlet. */
  constructor({ onOpen, onKill }) {
    this.onOpen = onOpen;
    this.onKill = onKill;
    this.rows = new Map();
    this.closed = new Set();
    this.facts = [];
    this.order = [];
    this.current = "";
    this.opened = "";
    const head = el("tr", { role: "row" }, ...COLUMNS.map(([title, isNumber]) =>
      el("th", { role: "columnheader", scope: "col", class: isNumber && "number" }, title)));
    this.body = el("tbody", { role: "rowgroup", onkeydown: (event) => this.pressed(event) });
    byId("tree").replaceChildren(el("thead", { role: "rowgroup" }, head), this.body);
    for (const id of ["only-running", "filter"]) byId(id).addEventListener("input", () => this.show(this.facts));
  }

  /** Show these inferlets, facts as `/v1/engine` gives them. */
  show(facts) {
    this.facts = facts;
    const shown = this.chosen(facts);
    const ids = new Set(shown.map((one) => one.instance_id));
    const children = new Map();
    for (const one of shown) {
      const parent = ids.has(one.parent) ? one.parent : "";
      if (!children.has(parent)) children.set(parent, []);
      children.get(parent).push(one);
    }
    const ordered = [];
    const visit = (parent, level) => {
      for (const one of (children.get(parent) ?? []).sort(goesFirst)) {
        const has = children.has(one.instance_id);
        ordered.push([one, level, has]);
        if (has && !this.closed.has(one.instance_id)) visit(one.instance_id, level + 1);
      }
    };
    visit("", 1);
    this.order = ordered.map(([one]) => one.instance_id);
    for (const [id, row] of this.rows) {
      if (!this.order.includes(id)) {
        row.element.remove();
        this.rows.delete(id);
      }
    }
    if (!this.order.includes(this.current)) this.current = this.order[0] ?? "";
    const focused = this.body.contains(document.activeElement) ? document.activeElement : null;
    ordered.forEach(([one, level, has], at) => this.put(one, level, has, at));
    if (focused?.isConnected && document.activeElement !== focused) focused.focus();  // a row that is moved loses it
    byId("no-inferlets").hidden = ordered.length > 0;
  }

  chosen(facts) {
    const words = byId("filter").value.toLowerCase();
    const onlyRunning = byId("only-running").checked;
    return facts.filter((one) => (!onlyRunning || RUNS.has(one.state)) &&
      (!words || `${one.name} ${one.instance_id} ${one.tenant}/${one.user} ${one.state}`.toLowerCase().includes(words)));
  }

  put(one, level, has, at) {
    const id = one.instance_id;
    const row = this.rows.get(id) ?? this.made(id);
    row.one = one;
    const isClosed = this.closed.has(id);
    const element = row.element;
    element.ariaLevel = String(level);
    if (has) element.ariaExpanded = String(!isClosed);
    else element.removeAttribute("aria-expanded");
    element.ariaSelected = String(id === this.opened);
    element.tabIndex = id === this.current ? 0 : -1;
    row.twist.style.marginLeft = `${(level - 1) * 18}px`;
    setText(row.twist, has ? (isClosed ? "▸" : "▾") : "");
    setText(row.name, one.name);
    element.title = one.error ? `${id}: ${one.error}` : id;
    if (row.state.dataset.state !== one.state) {
      row.state.dataset.state = one.state;
      row.state.replaceChildren(state(one.state));
    }
    const known = one.started_at !== undefined;
    const age = known ? (one.ended_at ?? Date.now() / 1000) - one.started_at : 0;
    const texts = known ? [duration(age), String(one.pages), String(one.swapped), amount(one.tokens_computed),
      amount(one.tokens_found), one.cpu_time_s.toFixed(2), `${one.tenant}/${one.user}`] : Array(7).fill("-");
    row.cells.forEach((found, number) => setText(found, texts[number]));
    if (this.body.children[at] !== element) this.body.insertBefore(element, this.body.children[at] ?? null);
  }

  made(id) {
    const row = {
      twist: el("button", { class: "twist", tabindex: -1, "aria-hidden": "true", type: "button" }),
      name: el("span"),
      state: cell(""),
      cells: ["", "number", "number", "number", "number", "number", ""].map((kind) => cell("", kind)),
    };
    const cells = [cell(row.twist), row.state, ...row.cells];
    cells[0].append(row.name);
    for (const one of cells) one.setAttribute("role", "gridcell");
    row.twist.addEventListener("click", (event) => { event.stopPropagation(); this.turn(id, this.closed.has(id)); });
    row.element = el("tr", {
      role: "row",
      "data-id": id,
      onfocus: () => this.go(id, false),
      onclick: () => { this.go(id, true); this.open(id); },
    }, ...cells);
    this.rows.set(id, row);
    return row;
  }

  /** Mark the inferlet whose log is open. */
  mark(id) {
    this.opened = id;
    for (const [other, row] of this.rows) row.element.ariaSelected = String(other === id);
  }

  focus() {
    this.rows.get(this.current)?.element.focus();
  }

  go(id, takesFocus) {
    this.rows.get(this.current)?.element.setAttribute("tabindex", "-1");
    this.current = id;
    const element = this.rows.get(id)?.element;
    element?.setAttribute("tabindex", "0");
    if (takesFocus) element?.focus();
  }

  open(id) {
    this.onOpen(this.rows.get(id).one);
  }

  turn(id, isOpen) {
    if (isOpen) this.closed.delete(id);
    else this.closed.add(id);
    this.show(this.facts);
  }

  pressed(event) {
    const at = this.order.indexOf(this.current);
    const row = this.rows.get(this.current);
    if (at < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const isOpen = row.element.ariaExpanded;
    const keys = {
      ArrowDown: () => this.go(this.order[Math.min(at + 1, this.order.length - 1)], true),
      ArrowUp: () => this.go(this.order[Math.max(at - 1, 0)], true),
      Home: () => this.go(this.order[0], true),
      End: () => this.go(this.order.at(-1), true),
      ArrowRight: () => { if (isOpen === "false") this.turn(this.current, true); else if (isOpen) keys.ArrowDown(); },
      ArrowLeft: () => {
        if (isOpen === "true") this.turn(this.current, false);
        else if (this.rows.has(row.one.parent)) this.go(row.one.parent, true);
      },
      Enter: () => this.open(this.current),
      " ": () => this.open(this.current),
      Delete: () => { if (RUNS.has(row.one.state)) this.onKill(row.one); },
    };
    if (!(event.key in keys)) return;
    event.preventDefault();
    keys[event.key]();
  }
}

/** Those that run before those that have ended, the latest first. */
function goesFirst(a, b) {
  return RUNS.has(b.state) - RUNS.has(a.state) || (b.started_at ?? 0) - (a.started_at ?? 0);
}
