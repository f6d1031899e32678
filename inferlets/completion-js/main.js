// Complete a prompt, streaming the text as it comes; with "n", several continuations of one computed prompt.
import { Context, main } from "inferlet";

export const run = main(({ prompt, max_tokens = 64, n = 1, seed = 0, ...sampling }) => {
  if (typeof prompt !== "string") throw new TypeError('the input has no "prompt"');
  const root = new Context(prompt);
  if (n === 1) {
    const done = root.stream({ max_tokens, seed: seed ?? 0, ...sampling });
    root.close();
    return done;
  }
  root.flush(); // the prompt is computed once; each fork draws with a seed of its own
  const all = [];
  for (let i = 0; i < n; i++) {
    const fork = root.fork();
    all.push(fork.complete({ max_tokens, seed: seed + i, ...sampling }));
    fork.close();
  }
  root.close();
  return all;
});
