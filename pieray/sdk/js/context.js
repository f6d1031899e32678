import { InferletError } from "./errors.js";
import { forward, kv, model, plans, queues, samplers, tickets } from "./handlers.js";

const PLAN_TOKENS = 256; // of one plan

/** Text that a model continues: its tokens, of which the first #kvLen have their KV in #pages.  Close it. */
export class Context {
  #queue;
  #pages = [];
  #kvLen = 0;
  #ticket = 0;
  tokens = [];
  generated = { text: "", num_tokens: 0, finish_reason: "" };

  constructor(text = "") {
    this.#queue = queues.create("");
    if (text) this.append(text);
  }

  /** Add text, or token ids, at the end. */
  append(text) {
    this.tokens.push(...(typeof text === "string" ? model.tokenize("", text) : text));
    return this;
  }

  /** Run what waits, but for the last token: forks made afterwards share its KV. */
  flush() {
    const end = this.tokens.length - 1;
    if (end <= this.#kvLen) return;
    const pass = this.#pass(end);
    tickets.wait([pass], -1);
    tickets.takeNone(pass);
    this.#kvLen = end;
  }

  /** A second context with the same content; pages are shared, copy-on-write. */
  fork() {
    const other = new Context();
    const used = numPages(this.#kvLen);
    if (used) other.#pages = kv.fork(this.#pages.slice(0, used));
    other.#kvLen = this.#kvLen;
    other.tokens = [...this.tokens];
    return other;
  }

  /** Begin to sample the next token: contexts that begin before the first of them ends share a batch. */
  begin({ temperature = 0, top_k = 0, top_p = 1, min_p = 0, seed = 0 } = {}) {
    this.#rewind();
    const row = this.tokens.length - this.#kvLen - 1;
    const pass = this.#pass(this.tokens.length);
    this.#ticket = forward.sample(pass, row, temperature, top_k, top_p, min_p, seed);
  }

  /** The token that `begin` asked for, which is appended. */
  end() {
    tickets.wait([this.#ticket], -1);
    const [token] = tickets.takeTokens(this.#ticket);
    this.#kvLen = this.tokens.length;
    this.tokens.push(token);
    return token;
  }

  /** Run what waits and sample the next token, which is appended. */
  next(how) {
    this.begin(how);
    return this.end();
  }

  /** Continue until a stop token of the model, or for max_tokens; gives the text as it comes, `generated` all of it. */
  *generate({ max_tokens = 256, ...how } = {}) {
    const stops = new Set(model.stopTokens(""));
    const stream = model.streamOpen("", true, this.tokens.slice(-16));
    const done = (this.generated = { text: "", num_tokens: 0, finish_reason: "length" });
    try {
      while (done.num_tokens < max_tokens) {
        const token = this.next(how);
        if (stops.has(token)) {
          done.finish_reason = "stop";
          return;
        }
        done.num_tokens++;
        const piece = model.streamPush(stream, [token]);
        done.text += piece;
        if (piece) yield piece;
      }
    } finally {
      model.streamClose(stream);
    }
  }

  /** The whole of `generate`, and the text goes to the client as it comes: the engine passes it on, and does not wake us. */
  stream({ max_tokens = 256, temperature = 0, top_k = 0, top_p = 1, min_p = 0, seed = 0 } = {}) {
    const stops = model.stopTokens("");
    const stream = model.streamOpen("", true, this.tokens.slice(-16));
    const chain = samplers.create(temperature, top_k, top_p, min_p, 1, seed);
    const done = (this.generated = { text: "", num_tokens: 0, finish_reason: "length" });
    while (done.num_tokens < max_tokens && done.finish_reason === "length") {
      const most = Math.min(max_tokens - done.num_tokens, PLAN_TOKENS);
      const [text, drawn] = this.#plan(chain, stream, stops, most);
      const isLast = !drawn.length || stops.includes(drawn[drawn.length - 1]);
      if (isLast || drawn.length < most) done.finish_reason = "stop";
      done.num_tokens += drawn.length - (isLast && drawn.length ? 1 : 0);
      done.text += text;
    }
    samplers.free(chain);
    model.streamClose(stream);
    return done;
  }

  #plan(chain, stream, stops, most) {
    this.#rewind();
    this.#reserve(this.tokens.length + most - 1);
    const plan = plans.create(this.#queue, this.#pages, this.#kvLen, this.tokens.slice(this.#kvLen), most, chain);
    plans.setStop(plan, stops, []);
    plans.start(plan);
    const ticket = plans.streamText(plan, stream);
    tickets.wait([ticket], -1);
    const text = tickets.takeText(ticket);
    const drawn = Array.from(plans.read(plan, 0, 0, 0)[0]);
    this.tokens.push(...drawn);
    this.#kvLen = this.tokens.length - 1;
    plans.close(plan);
    return [text, drawn];
  }

  /** The whole of `generate`: { text, num_tokens, finish_reason }. */
  complete(how) {
    for (const _ of this.generate(how));
    return this.generated;
  }

  /** Give pages and queue back. */
  close() {
    kv.free(this.#pages);
    this.#pages = [];
    queues.close(this.#queue);
  }

  /** The last token at least waits: the next one is drawn from its row. */
  #rewind() {
    if (!this.tokens.length) throw new InferletError("invalid", "the context is empty: append something first");
    this.#kvLen = Math.min(this.#kvLen, this.tokens.length - 1);
  }

  #reserve(end) {
    const needed = numPages(end) - this.#pages.length;
    if (needed > 0) this.#pages.push(...kv.alloc(needed));
  }

  #pass(end) {
    this.#reserve(end);
    return forward.forward(this.#queue, this.#pages, this.#kvLen, this.tokens.slice(this.#kvLen, end), [], []);
  }
}

function numPages(length) {
  return Math.ceil(length / kv.pageSize());
}
