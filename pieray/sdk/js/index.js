// The SDK of JavaScript inferlets.
//
//     import { Context, main, session } from "inferlet";
//
//     export const run = main(({ prompt, max_tokens = 64 }) => {
//       const context = new Context(prompt);
//       for (const piece of context.generate({ max_tokens })) session.send(piece);
//       return { text: context.generated.text };
//     });
//
// `kv`, `forward`, `session`, ... are the handlers (handlers.d.ts); `Context` is written on them.
export * from "./handlers.js";
export { Context } from "./context.js";
export { InferletError } from "./errors.js";
export { main } from "./main.js";
