// A guest that does what its input says: a word, then perhaps a number.  Most of it no honest guest would do.
#include "guest.h"

static volatile uint32_t sink;
#define WORD(s) (word.size == sizeof(s) - 1 && !memcmp(word.data, s, sizeof(s) - 1))
#define EACH for (uint32_t i = 0; i < count; i++)

__attribute__((noinline)) static uint32_t recurse(uint32_t n) {
  volatile uint32_t here[8] = {n};
  if (n == UINT32_MAX) return here[0];
  return recurse(n + 1) + here[n & 7];
}

// One "name": "code" of a JSON object: what a handler said to what it was given.
static void report(text *out, const char *name, const result *r) {
  uint32_t n = 0; while (name[n]) n++;
  put_text(out, out->size > 1 ? TEXT(", ") : TEXT(""));
  put_json(out, (text){(char *)name, n}); put_text(out, TEXT(": "));
  put_json(out, r->is_err ? code_name(r->error.code) : TEXT("ok"));
}
#define TRY(name, ...) do { result r; name(__VA_ARGS__ __VA_OPT__(,) &r); report(&out, #name, &r); } while (0)

static outcome *forged_handles(void) {
  text out = TEXT("{");
  uint32_t h = 0xdeadbeef, many[3] = {1, h, 0xffffffff};
  TRY(tickets_wait, many, 3, 0); TRY(tickets_take_none, h); TRY(tickets_take_tokens, h); TRY(tickets_take_floats, h);
  TRY(tickets_take_text, h); TRY(tickets_take_distribution, h); TRY(tickets_cancel, many, 3);
  TRY(queues_set_priority, h, 1); TRY(queues_flush, h); TRY(queues_synchronize, h); TRY(queues_close, h);
  TRY(kv_free, many, 3); TRY(kv_fork, many, 3); TRY(kv_copy, h, h, 0, h, 0, 1);
  TRY(forward_forward, h, many, 3, 0, many, 1, 0, 0, 0, 0); TRY(forward_sample, h, 0, 0, 0, 1, 0, 0);
  TRY(forward_distribution, h, 0, 1); TRY(forward_logprobs, h, 0, many, 3); TRY(forward_logits, h, 0);
  TRY(model_stream_push, h, many, 3); TRY(model_stream_close, h);
  put_text(&out, TEXT("}"));
  return succeed(out);
}

static outcome *wild_numbers(void) {
  text out = TEXT("{");
  uint32_t max = 0xffffffff, tokens[2] = {max, max};
  float nan = __builtin_nanf("");
  result r;
  TRY(kv_alloc, max);
  queues_create("", 0, &r); CHECK(r); uint32_t queue = r.value;
  kv_alloc(1, &r); CHECK(r); uint32_t page = r.numbers.data[0];
  TRY(queues_set_priority, queue, INT32_MIN);
  TRY(kv_copy, queue, page, max, page, max, max);
  TRY(forward_forward, queue, &page, 1, max, tokens, 2, 0, 0, 0, 0);
  TRY(forward_forward, queue, &page, 1, 0, tokens, 2, tokens, 1, 0, 0);
  TRY(forward_forward, queue, &page, 1, 0, tokens, 0, 0, 0, 0, 0);
  tokens[0] = 1;
  forward_forward(queue, &page, 1, 0, tokens, 1, 0, 0, 0, 0, &r); CHECK(r); uint32_t pass = r.value;
  TRY(forward_sample, pass, max, nan, max, -1, nan, ~0ull);
  TRY(forward_distribution, pass, 0, max);
  TRY(model_detokenize, "", 0, &max, 1, 0);
  TRY(model_tokenize, "no such model", 13, "x", 1);
  put_text(&out, TEXT("}"));
  return succeed(out);
}

// All functions that nothing else here calls, so that this component imports the whole API.
static outcome *everything(void) {
  text out = TEXT("{"), s;
  TRY(model_info, "", 0); TRY(model_stop_tokens, "", 0); TRY(chat_render, "", 0, "[]", 2, "", 0, 1, "", 0, 0);
  TRY(model_stream_open, "", 0, 1, 0, 0); TRY(session_receive);
  runtime_version(&s); runtime_instance_id(&s); runtime_limits(&s);
  sink = (uint32_t)(runtime_monotonic_now() + runtime_random_u64());
  put_text(&out, TEXT("}"));
  return succeed(out);
}

static void bench_forward(uint32_t count) {
  uint32_t pages[32], token = 1; result r;
  for (uint32_t i = 0; i < 32; i++) pages[i] = i;
  EACH forward_forward(0, pages, 32, 500, &token, 1, 0, 0, 0, 0, &r);
}

static outcome *pointers(text word) {
  result r;
  char *far = (char *)0x7fffff00;
  if WORD("store-out-of-bounds") *(volatile char *)far = 1;
  else if WORD("string-out-of-bounds") session_send(far, 16, &r);
  else if WORD("string-too-long") session_send("x", 0xfffffff0, &r);
  else if WORD("list-out-of-bounds") kv_free((uint32_t *)far, 4, &r);
  else if WORD("list-too-long") kv_free(alloc(16), 0x3fffffff, &r);
  else if WORD("list-unaligned") kv_free((uint32_t *)((char *)alloc(64) + 1), 4, &r);
  else if WORD("result-out-of-bounds") kv_alloc(1, (result *)far);
  else if WORD("bad-utf8") session_send("\xff\xfe", 2, &r);
  else if WORD("bad-level") runtime_log(99, "x", 1, &r);
  else if WORD("return-out-of-bounds") return (outcome *)far;
  else return 0;
  return succeed(TEXT("\"survived\""));
}

static outcome *loops(text word, uint32_t count) {
  result r;
  uint32_t save = arena_top;
  if WORD("spin") for (;;) sink++;
  else if WORD("recurse") sink = recurse(0);
  else if WORD("flood") for (;;) sink = kv_page_size();
  else if WORD("flood-wait") for (;;) { tickets_wait(0, 0, 0, &r); arena_top = save; }
  else if WORD("flood-log") for (;;) { runtime_log(LOG_INFO, "again", 5, &r); arena_top = save; }
  else if WORD("grow") for (;;) alloc(1 << 20);
  else if WORD("count") EACH sink++;
  else if WORD("nop") EACH kv_page_size();
  else if WORD("alloc") EACH { kv_alloc(1, &r); arena_top = save; }
  else if WORD("forward") bench_forward(count);
  else if WORD("wait") EACH { uint32_t t = i; tickets_wait(&t, 1, -1, &r); arena_top = save; }
  else return 0;
  return succeed(TEXT("\"done\""));
}

PIERAY_EXPORT("run") outcome *run(char *data, uint32_t size) {
  text word = {data, 0};
  while (word.size < size && data[word.size] != ' ') word.size++;
  uint32_t number = 0;
  for (uint32_t i = word.size + 1; i < size; i++) number = number * 10 + (uint32_t)(data[i] - '0');
  result r;
  outcome *o;
  if ((o = pointers(word)) || (o = loops(word, number))) return o;
  if WORD("forged-handles") return forged_handles();
  if WORD("wild-numbers") return wild_numbers();
  if WORD("unreachable") __builtin_trap();
  if WORD("divide") return succeed((text){data, number / sink});
  if WORD("everything") return everything();
  if WORD("fail") return fail(TEXT("Sorry"), TEXT("not today"));
  if WORD("sleep") { tickets_wait(0, 0, (int32_t)number, &r); CHECK(r); return succeed(TEXT("\"slept\"")); }
  if WORD("await") { tickets_wait(&number, 1, -1, &r); CHECK(r); return succeed(TEXT("\"ready\"")); }
  if WORD("log") { runtime_log(LOG_WARNING, "hear me", 7, &r); CHECK(r); return succeed(TEXT("\"logged\"")); }
  if WORD("log-and-trap") { runtime_log(LOG_ERROR, "about to trap", 13, &r); __builtin_trap(); }
  if WORD("send") { char *s = alloc(number); memset(s, 'x', number); session_send(s, number, &r); CHECK(r); return succeed(TEXT("\"sent\"")); }
  if WORD("free") { kv_free(memset(alloc(number * 4), 0, number * 4), number, &r); CHECK(r); return succeed(TEXT("\"freed\"")); }
  if WORD("return") { char *s = alloc(number); memset(s, 'x', number); return succeed((text){s, number}); }
  if WORD("echo") return succeed((text){data + 5, size - 5});
  if WORD("now") { text out = {0, 0}; put_number(&out, (uint32_t)runtime_wall_now()); return succeed(out); }
  if WORD("distribution") {
    tickets_take_distribution(number, &r); CHECK(r);
    text out = {0, 0};
    put_number(&out, r.distribution.tokens.data[r.distribution.tokens.count - 1]); put_text(&out, TEXT(" "));
    put_number(&out, (uint32_t)(r.distribution.probabilities.data[0] * 1000)); put_text(&out, TEXT(" "));
    put_number(&out, r.distribution.tokens.count);
    return succeed(out);
  }
  if WORD("names") {
    texts names; text out = {0, 0};
    model_names(&names);
    for (uint32_t i = 0; i < names.count; i++) { put_text(&out, names.data[i]); put_text(&out, TEXT(",")); }
    return succeed(out);
  }
  return fail(TEXT("ValueError"), word);
}
