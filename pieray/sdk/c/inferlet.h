// Contexts for C guests: append, fork, sample, complete.  Written on the handlers alone: so could you.
//
// A function that can fail returns false and leaves the error in its last parameter; TRY leaves `run` with it.
#pragma once
#include "guest.h"
#include "json.h"

#define TRY(call) do { if (!(call)) return fail_with(&r); } while (0)

// temperature 0: greedy.  The draws depend on the seed and the position alone.
typedef struct { float temperature; uint32_t top_k; float top_p, min_p; uint64_t seed; } sampling;
#define GREEDY ((sampling){0, 0, 1, 0, 0})

// Text that the model continues: its tokens, of which the first kv_len have their KV in `pages`.
typedef struct {
  uint32_t queue, kv_len, ticket;
  u32s pages, tokens;
  uint32_t token_room, page_room;
} context;

typedef struct { text words; uint32_t num_tokens; bool is_stopped; } completion;

// Room for `more` numbers behind those of a list.
static void u32s_reserve(u32s *list, uint32_t *room, uint32_t more) {
  if (list->count + more <= *room) return;
  *room = (list->count + more) * 2 + 16;
  uint32_t *grown = alloc(*room * sizeof *grown);
  memcpy(grown, list->data, list->count * sizeof *grown);
  list->data = grown;
}
static void u32s_add(u32s *list, uint32_t *room, const uint32_t *more, uint32_t count) {
  u32s_reserve(list, room, count);
  memcpy(list->data + list->count, more, count * sizeof *more);
  list->count += count;
}

static bool context_open(context *c, result *r) {
  *c = (context){0};
  queues_create("", 0, r);
  c->queue = r->value;
  return !r->is_err;
}

static bool context_append(context *c, text words, result *r) {
  model_tokenize("", 0, words.data, words.size, r);
  if (!r->is_err) u32s_add(&c->tokens, &c->token_room, r->numbers.data, r->numbers.count);
  return !r->is_err;
}

// Pages for the tokens [0, end).
static bool context_reserve(context *c, uint32_t end, result *r) {
  uint32_t page_size = kv_page_size(), needed = (end + page_size - 1) / page_size;
  if (needed <= c->pages.count) return true;
  kv_alloc(needed - c->pages.count, r);
  if (!r->is_err) u32s_add(&c->pages, &c->page_room, r->numbers.data, r->numbers.count);
  return !r->is_err;
}

// Enqueue a pass over the tokens [kv_len, end); `r->value` is its ticket.
static bool context_pass(context *c, uint32_t end, result *r) {
  if (!context_reserve(c, end, r)) return false;
  forward_forward(c->queue, c->pages.data, c->pages.count, c->kv_len, c->tokens.data + c->kv_len, end - c->kv_len,
                  0, 0, 0, 0, r);
  return !r->is_err;
}

static bool context_wait(uint32_t ticket, result *r) {
  tickets_wait(&ticket, 1, -1, r);
  return !r->is_err;
}

// Run what waits, but for the last token: forks made afterwards share its KV.
static bool context_flush(context *c, result *r) {
  uint32_t end = c->tokens.count ? c->tokens.count - 1 : 0;
  if (end <= c->kv_len) return true;
  if (!context_pass(c, end, r)) return false;
  uint32_t ticket = r->value;
  if (!context_wait(ticket, r)) return false;
  tickets_take_none(ticket, r);
  if (!r->is_err) c->kv_len = end;
  return !r->is_err;
}

// A second context with the same content; pages are shared, copy-on-write.
static bool context_fork(const context *from, context *c, result *r) {
  if (!context_open(c, r)) return false;
  u32s_add(&c->tokens, &c->token_room, from->tokens.data, from->tokens.count);
  uint32_t page_size = kv_page_size(), used = (from->kv_len + page_size - 1) / page_size;
  if (!used) return true;
  kv_fork(from->pages.data, used, r);
  if (r->is_err) return false;
  u32s_add(&c->pages, &c->page_room, r->numbers.data, r->numbers.count);
  c->kv_len = from->kv_len;
  return true;
}

// The last token at least waits: the next one is drawn from its row.
static bool context_rewind(context *c, result *r) {
  if (c->tokens.count == 0) { r->is_err = 1; r->error.code = ERR_INVALID; r->error.message = TEXT("the context is empty"); return false; }
  if (c->kv_len == c->tokens.count) c->kv_len--;
  return true;
}

// The two halves of context_next: several contexts that begin before the first ends share a batch.
static bool context_begin(context *c, sampling how, result *r) {
  if (!context_rewind(c, r)) return false;
  if (!context_pass(c, c->tokens.count, r)) return false;
  uint32_t row = c->tokens.count - c->kv_len - 1;
  forward_sample(r->value, row, how.temperature, how.top_k, how.top_p, how.min_p, how.seed, r);
  c->ticket = r->value;
  return !r->is_err;
}
static bool context_end(context *c, uint32_t *token, result *r) {
  if (!context_wait(c->ticket, r)) return false;
  tickets_take_tokens(c->ticket, r);
  if (r->is_err) return false;
  *token = r->numbers.data[0];
  c->kv_len = c->tokens.count;
  u32s_add(&c->tokens, &c->token_room, token, 1);
  return true;
}

// Run what waits and sample the next token, which is appended.
static bool context_next(context *c, sampling how, uint32_t *token, result *r) {
  return context_begin(c, how, r) && context_end(c, token, r);
}

static bool is_stop(u32s stops, uint32_t token) {
  for (uint32_t i = 0; i < stops.count; i++) if (stops.data[i] == token) return true;
  return false;
}

// A text stream whose text goes on behind the context's.
static void context_stream_open(const context *c, result *r) {
  uint32_t last = c->tokens.count < 16 ? c->tokens.count : 16;
  model_stream_open("", 0, 1, c->tokens.data + c->tokens.count - last, last, r);
}

// Continue until a stop token of the model, or for max_tokens.
static bool context_complete(context *c, sampling how, uint32_t max_tokens, completion *out, result *r) {
  *out = (completion){0};
  model_stop_tokens("", 0, r); if (r->is_err) return false;
  u32s stops = r->numbers;
  context_stream_open(c, r); if (r->is_err) return false;
  uint32_t stream = r->value, token;
  while (out->num_tokens < max_tokens) {
    if (!context_next(c, how, &token, r)) return false;
    if (is_stop(stops, token)) { out->is_stopped = true; break; }
    out->num_tokens++;
    model_stream_push(stream, &token, 1, r); if (r->is_err) return false;
    put_text(&out->words, r->string);
  }
  model_stream_close(stream, r);
  return !r->is_err;
}

// Tokens of one plan.
#define PLAN_TOKENS 256

// One plan of context_stream: its tokens join the context, its text goes to the client and to `out`.
static bool context_plan(context *c, uint32_t chain, uint32_t stream, u32s stops, uint32_t most, completion *out, result *r) {
  if (!context_rewind(c, r) || !context_reserve(c, c->tokens.count + most - 1, r)) return false;
  plans_create(c->queue, c->pages.data, c->pages.count, c->kv_len, c->tokens.data + c->kv_len,
               c->tokens.count - c->kv_len, most, chain, r);
  if (r->is_err) return false;
  uint32_t plan = r->value, ticket;
  plans_set_stop(plan, stops.data, stops.count, 0, 0, r); if (r->is_err) return false;
  plans_start(plan, r); if (r->is_err) return false;
  plans_stream_text(plan, stream, r); if (r->is_err) return false;
  ticket = r->value;
  if (!context_wait(ticket, r)) return false;
  tickets_take_text(ticket, r); if (r->is_err) return false;
  put_text(&out->words, r->string);
  plans_read(plan, 0, 0, 0, r); if (r->is_err) return false;
  u32s drawn = r->drawn.tokens;
  c->kv_len = c->tokens.count + drawn.count - 1;
  u32s_add(&c->tokens, &c->token_room, drawn.data, drawn.count);
  bool is_last = drawn.count && is_stop(stops, drawn.data[drawn.count - 1]);
  out->is_stopped = is_last || drawn.count < most;
  out->num_tokens += drawn.count - (is_last ? 1 : 0);
  plans_close(plan, r);
  return !r->is_err;
}

// As context_complete, and the text goes to the client as it comes: the engine passes it on, and does not wake us.
static bool context_stream(context *c, sampling how, uint32_t max_tokens, completion *out, result *r) {
  *out = (completion){0};
  model_stop_tokens("", 0, r); if (r->is_err) return false;
  u32s stops = r->numbers;
  context_stream_open(c, r); if (r->is_err) return false;
  uint32_t stream = r->value;
  samplers_create(how.temperature, how.top_k, how.top_p, how.min_p, 1, how.seed, r); if (r->is_err) return false;
  uint32_t chain = r->value;
  while (out->num_tokens < max_tokens && !out->is_stopped) {
    uint32_t left = max_tokens - out->num_tokens;
    if (!context_plan(c, chain, stream, stops, left < PLAN_TOKENS ? left : PLAN_TOKENS, out, r)) return false;
  }
  samplers_free(chain, r); if (r->is_err) return false;
  model_stream_close(stream, r);
  return !r->is_err;
}

// Give pages and queue back.
static bool context_close(context *c, result *r) {
  if (c->pages.count) { kv_free(c->pages.data, c->pages.count, r); if (r->is_err) return false; }
  queues_close(c->queue, r);
  return !r->is_err;
}
