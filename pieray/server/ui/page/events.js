// What an inferlet says, one paragraph for each thing; texts that follow each other are one.

import { el } from "./dom.js";

const MOST_PARAGRAPHS = 2000;
const MOST_CHARACTERS = 200000;

/** Shows events in an element.  `add` takes them as `api.events` gives them. */
export class EventView {
  constructor(element) {
    this.element = element;
    this.clear();
  }

  clear() {
    this.element.replaceChildren();
    this.last = null;
  }

  add({ event, data }) {
    const isAtEnd = this.element.scrollTop + this.element.clientHeight >= this.element.scrollHeight - 4;
    const text = described(event, data).slice(0, MOST_CHARACTERS);
    if (event === "text" && this.last?.className === "text" && this.last.textContent.length < MOST_CHARACTERS) {
      this.last.append(text);
    } else {
      this.last = el("p", { class: event, "data-kind": event }, text);
      this.element.append(this.last);
    }
    while (this.element.childElementCount > MOST_PARAGRAPHS) this.element.firstElementChild.remove();
    if (isAtEnd) this.element.scrollTop = this.element.scrollHeight;
  }
}

function described(event, data) {
  if (event === "text" || event === "log") return data;
  if (event === "data") return `${data.name}: ${JSON.stringify(data.value)}`;
  if (event === "file") return `${data.name}, ${data.size} bytes`;
  if (event === "error") return `${data.code}: ${data.message}`;
  return JSON.stringify(data, null, 2);
}
