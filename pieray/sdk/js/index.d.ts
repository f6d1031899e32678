export * from "./handlers.js";

/** A handler's error: `code` is one of the WIT's, such as "out-of-pages". */
export class InferletError extends Error {
  constructor(code: string, message: string);
  readonly code: string;
}

/** How the next token is drawn; temperature 0 (as without it): greedy.  `seed` is below 2^53. */
export interface Sampling {
  temperature?: number;
  top_k?: number;
  top_p?: number;
  min_p?: number;
  seed?: number;
}

export interface Completion {
  text: string;
  /** Without the stop token. */
  num_tokens: number;
  finish_reason: "" | "stop" | "length";
}

/** Text that a model continues.  Close it. */
export class Context {
  constructor(text?: string);
  /** All tokens, the sampled ones included. */
  readonly tokens: number[];
  /** What the last `generate`, `complete` or `stream` gave. */
  readonly generated: Completion;
  /** Add text, or token ids, at the end. */
  append(text: string | readonly number[]): this;
  /** Run what waits, but for the last token: forks made afterwards share its KV. */
  flush(): void;
  /** A second context with the same content; pages are shared, copy-on-write. */
  fork(): Context;
  /** Begin to sample the next token: contexts that begin before the first of them ends share a batch. */
  begin(how?: Sampling): void;
  /** The token that `begin` asked for, which is appended. */
  end(): number;
  /** Run what waits and sample the next token, which is appended. */
  next(how?: Sampling): number;
  /** Continue until a stop token of the model, or for max_tokens; gives the text as it comes. */
  generate(how?: Sampling & { max_tokens?: number }): Generator<string, void>;
  /** The whole of `generate`. */
  complete(how?: Sampling & { max_tokens?: number }): Completion;
  /** The whole of `generate`, and the text goes to the client as it comes: the engine passes it on, and does not wake us. */
  stream(how?: Sampling & { max_tokens?: number }): Completion;
  /** Give pages and queue back. */
  close(): void;
}

/** The export `run` of an inferlet: `export const run = main((input) => ...)`. */
export function main<Input extends object>(call: (input: Input) => unknown): (input: string) => string;
