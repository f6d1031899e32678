import { InferletError } from "./errors.js";
import { runtime } from "./handlers.js";

/** The export `run` of an inferlet whose main function takes the input as an object and returns what JSON can hold. */
export function main(call) {
  return (input) => {
    serve();
    try {
      const result = call(JSON.parse(input || "{}") ?? {});
      if (typeof result?.then === "function") throw new TypeError("main is not asynchronous here: handlers block");
      return JSON.stringify(result ?? null);
    } catch (error) {
      throw failure(error);
    }
  };
}

function failure(error) {
  if (!(error instanceof Error)) return { kind: "Error", message: String(error), trace: "" };
  const kind = error instanceof InferletError ? error.code : error.name;
  return { kind, message: error.message, trace: error.stack ?? "" };
}

/** What the language itself has of clocks, chance and consoles, from the handlers: there is no WASI in the component. */
function serve() {
  Date.now = () => Math.floor(Number(runtime.wallNow()) / 1e6);
  Math.random = () => (Number(runtime.randomU64()) % 2 ** 53) / 2 ** 53;
  const say = (level) => (...words) => runtime.log(level, words.map(shown).join(" "));
  globalThis.console = { debug: say("debug"), log: say("info"), info: say("info"), warn: say("warning"), error: say("error") };
}

function shown(word) {
  return typeof word === "string" ? word : JSON.stringify(word) ?? String(word);
}
