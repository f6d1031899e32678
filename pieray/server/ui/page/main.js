// The page: which view is shown, and what the engine is asked for, every two seconds while somebody looks.

import { ask, askKey } from "./api.js";
import { PagesChart } from "./charts.js";
import { byId, setText } from "./dom.js";
import { EngineView } from "./engine.js";
import { Playground } from "./playground.js";
import { ProgramsView } from "./programs.js";
import { kill, RunView } from "./run.js";
import { Tree } from "./tree.js";

const LOOK_MS = 2000;
const VIEWS = ["engine", "playground", "programs"];

const engine = new EngineView();
const chart = new PagesChart();
const tree = new Tree({ onOpen: open, onKill: kill });
const run = new RunView({ onClose: () => { tree.mark(""); tree.focus(); } });
const playground = new Playground({ onOpen: (id) => { wanted = id; location.hash = "#/engine"; lookNow(); } });
const programs = new ProgramsView({ onChange: (found) => playground.show(found) });
let wanted = "";
let looking = 0;

function open(one) {
  tree.mark(one.instance_id);
  run.open(one);
}

/** Ask how the engine is, show it, and ask again later. */
async function look() {
  let wait = LOOK_MS;
  try {
    const facts = await ask("GET", `/v1/engine?since=${chart.newest}`);
    engine.show(facts);
    chart.add(facts.pages_over_time);
    tree.show(facts.inferlets);
    programs.may(facts.caller, facts.asks_for_keys);
    byId("key").hidden = !facts.asks_for_keys;
    const opened = facts.inferlets.find((one) => one.instance_id === run.id);
    if (opened) run.show(opened);
    const asked = facts.inferlets.find((one) => one.instance_id === wanted);
    if (asked) {
      wanted = "";
      open(asked);
    }
    healthy(!facts.failure, facts.failure ?? "up");
    document.documentElement.dataset.ready = "true";
  } catch (error) {
    healthy(false, error.status ? error.message : "the server does not answer");
    wait = Math.max(wait, (error.retryAfter ?? 0) * 1000);
  }
  clearTimeout(looking);
  looking = setTimeout(() => { if (!document.hidden) look(); }, wait);
}

function lookNow() {
  clearTimeout(looking);
  look();
}

function healthy(isGood, text) {
  byId("health").className = isGood ? "good" : "bad";
  setText(byId("health"), text);
}

function route() {
  const name = VIEWS.find((view) => location.hash === `#/${view}`) ?? "engine";
  for (const view of VIEWS) byId(`view-${view}`).hidden = view !== name;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.view === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (name !== "engine") programs.refresh().catch((error) => healthy(false, error.message));
}

function pressed(event) {
  const isWriting = event.target.matches("input, textarea, select");
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.key === "Escape") run.close();
  if (isWriting) return;
  if (["1", "2", "3"].includes(event.key)) location.hash = `#/${VIEWS[Number(event.key) - 1]}`;
  else if (event.key === "?") byId("shortcuts").showModal();
  else if (event.key === "/") {
    location.hash = "#/engine";
    byId("filter").focus();
    event.preventDefault();
  }
}

addEventListener("hashchange", route);
addEventListener("keydown", pressed);
document.addEventListener("visibilitychange", () => { if (!document.hidden) lookNow(); });
byId("key").onclick = () => askKey().then(lookNow);
byId("help").onclick = () => byId("shortcuts").showModal();
byId("shortcuts-close").onclick = () => byId("shortcuts").close();
route();
look();
