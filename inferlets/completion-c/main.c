// Complete a prompt, streaming the text as it comes; with "n", several continuations of one computed prompt.
#include "inferlet.h"

static void put_end(text *out, const completion *done) {
  put_text(out, TEXT("{\"text\": ")); put_json(out, done->words);
  put_text(out, TEXT(", \"num_tokens\": ")); put_number(out, done->num_tokens);
  put_text(out, TEXT(", \"finish_reason\": ")); put_json(out, done->is_stopped ? TEXT("stop") : TEXT("length"));
  put_text(out, TEXT("}"));
}

PIERAY_EXPORT("run") outcome *run(char *data, uint32_t size) {
  result r;
  text input = {data, size}, prompt = json_member(input, TEXT("prompt")), out = {0, 0};
  if (!prompt.data || *prompt.data != '"') return fail(TEXT("ValueError"), TEXT("the input has no \"prompt\""));
  uint32_t max_tokens = (uint32_t)json_number(json_member(input, TEXT("max_tokens")), 64);
  uint32_t n = (uint32_t)json_number(json_member(input, TEXT("n")), 1);
  sampling how = {
    .temperature = (float)json_number(json_member(input, TEXT("temperature")), 0),
    .top_k = (uint32_t)json_number(json_member(input, TEXT("top_k")), 0),
    .top_p = (float)json_number(json_member(input, TEXT("top_p")), 1),
    .min_p = (float)json_number(json_member(input, TEXT("min_p")), 0),
    .seed = json_u64(json_member(input, TEXT("seed")), 0),
  };
  context root, fork;
  completion done;
  TRY(context_open(&root, &r));
  TRY(context_append(&root, json_text(prompt), &r));
  if (n == 1) {
    TRY(context_stream(&root, how, max_tokens, &done, &r));
    TRY(context_close(&root, &r));
    put_end(&out, &done);
    return succeed(out);
  }
  TRY(context_flush(&root, &r));  // the prompt is computed once; each fork draws with a seed of its own
  put_text(&out, TEXT("["));
  for (uint32_t i = 0; i < n; i++, how.seed++) {
    TRY(context_fork(&root, &fork, &r));
    TRY(context_complete(&fork, how, max_tokens, &done, &r));
    TRY(context_close(&fork, &r));
    put_text(&out, i ? TEXT(", ") : TEXT("")); put_end(&out, &done);
  }
  put_text(&out, TEXT("]"));
  TRY(context_close(&root, &r));
  return succeed(out);
}
