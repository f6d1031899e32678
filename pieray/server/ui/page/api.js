// Requests to the server that this page came from, with the key that was given in this tab, if one is asked for.

import { byId } from "./dom.js";

const KEY = "pieray-key";

/** An answer that is no success. */
export class Refused extends Error {
  constructor(status, message, retryAfter) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

let asking = null;

/** Ask for a key in a dialog, once for all who want one. */
export function askKey() {
  asking ??= new Promise((resolve) => {
    const dialog = byId("ask-key");
    const text = byId("key-text");
    const use = () => {
      const given = text.value.trim();
      if (!given && sessionStorage.getItem(KEY) === null) return;
      if (given) sessionStorage.setItem(KEY, given);
      text.value = "";
      asking = null;
      dialog.close();
      resolve();
    };
    dialog.oncancel = (event) => {
      if (sessionStorage.getItem(KEY) === null) event.preventDefault();
      else use();
    };
    byId("key-ok").onclick = use;
    text.onkeydown = (event) => { if (event.key === "Enter") use(); };
    dialog.showModal();
    text.focus();
  });
  return asking;
}

async function send(method, path, { body, headers = {}, signal } = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const answer = await fetch(path, {
      method,
      signal,
      cache: "no-store",
      credentials: "omit",
      headers: {
        ...(body === undefined ? {} : { "content-type": "application/json" }),
        ...(key === null ? {} : { authorization: `Bearer ${key}` }),
        ...headers,
      },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
    if (answer.status !== 401) return answer;
    if (sessionStorage.getItem(KEY) === key) sessionStorage.removeItem(KEY);
    await askKey();
  }
}

async function checked(answer) {
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => null);
  const message = told?.error?.message ?? `${answer.status} ${answer.statusText}`;
  throw new Refused(answer.status, message, Number(answer.headers.get("retry-after")) || 0);
}

/** The JSON of an answer.  Throws Refused, and TypeError where the server cannot be reached. */
export async function ask(method, path, body) {
  return (await checked(await send(method, path, { body }))).json();
}

/**
 * Server-sent events, each as {id, event, data}, data from JSON.  `onOpen` is told the id of the run.
 * Throws as `ask`, and AbortError when `signal` says so.
 */
export async function* events(method, path, { body, signal, onOpen = () => {} } = {}) {
  const answer = await checked(await send(method, path, { body, signal, headers: { accept: "text/event-stream" } }));
  onOpen(answer.headers.get("x-pieray-run"));
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const found = {};
      for (const line of block.split("\n")) {
        const at = line.indexOf(": ");
        if (at > 0) found[line.slice(0, at)] = line.slice(at + 2);
      }
      if (found.data !== undefined) yield { id: Number(found.id), event: found.event, data: JSON.parse(found.data) };
    }
  }
}
