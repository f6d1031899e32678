// Text completion in C.  Input {"prompt": text, "max_tokens": n}, result {"text": text, "num_tokens": n};
// each piece of text is sent to the client as soon as it is whole.
#include "guest.h"

static const char *find(text json, text key) {  // just after `"key":` and blanks; 0 if it is not there
  for (uint32_t i = 0; i + key.size + 2 < json.size; i++)
    if (json.data[i] == '"' && !memcmp(json.data + i + 1, key.data, key.size) && json.data[i + 1 + key.size] == '"') {
      const char *at = json.data + i + 2 + key.size, *end = json.data + json.size;
      while (at < end && (*at == ' ' || *at == ':')) at++;
      return at < end ? at : 0;
    }
  return 0;
}

static uint32_t hex4(const char *at) {
  uint32_t n = 0;
  for (int i = 0; i < 4; i++) n = n << 4 | (uint32_t)(at[i] <= '9' ? at[i] - '0' : (at[i] | 32) - 'a' + 10);
  return n;
}

static uint32_t put_utf8(char *to, uint32_t c) {
  if (c < 0x80) { to[0] = (char)c; return 1; }
  if (c < 0x800) { to[0] = (char)(0xc0 | c >> 6); to[1] = (char)(0x80 | (c & 63)); return 2; }
  if (c < 0x10000) { to[0] = (char)(0xe0 | c >> 12); to[1] = (char)(0x80 | (c >> 6 & 63)); to[2] = (char)(0x80 | (c & 63)); return 3; }
  to[0] = (char)(0xf0 | c >> 18); to[1] = (char)(0x80 | (c >> 12 & 63)); to[2] = (char)(0x80 | (c >> 6 & 63)); to[3] = (char)(0x80 | (c & 63));
  return 4;
}

static text json_string(const char *at, const char *end) {
  text out = {alloc((size_t)(end - at)), 0};
  for (at++; at < end && *at != '"'; at++) {
    if (*at != '\\' || at + 1 >= end) { out.data[out.size++] = *at; continue; }
    char c = *++at;
    if (c == 'u' && at + 4 < end) {
      uint32_t code = hex4(at + 1); at += 4;
      if (code >> 10 == 0x36 && at + 6 < end && at[1] == '\\') { code = 0x10000 + ((code & 0x3ff) << 10 | (hex4(at + 3) & 0x3ff)); at += 6; }
      out.size += put_utf8(out.data + out.size, code);
    } else out.data[out.size++] = c == 'n' ? '\n' : c == 't' ? '\t' : c == 'r' ? '\r' : c;
  }
  return out;
}

static uint32_t json_number(const char *at, const char *end, uint32_t otherwise) {
  if (!at || *at < '0' || *at > '9') return otherwise;
  uint32_t n = 0;
  while (at < end && *at >= '0' && *at <= '9') n = n * 10 + (uint32_t)(*at++ - '0');
  return n;
}

static int contains(u32s list, uint32_t n) {
  for (uint32_t i = 0; i < list.count; i++) if (list.data[i] == n) return 1;
  return 0;
}

// Run `tokens` on top of what is in the pages; r->value is the greedy next token, or r is an error.
static void next_token(uint32_t queue, u32s pages, uint32_t kv_len, u32s tokens, result *r) {
  forward_forward(queue, pages.data, pages.count, kv_len, tokens.data, tokens.count, 0, 0, 0, 0, r);
  if (r->is_err) return;
  uint32_t both[2] = {r->value, 0};
  forward_sample(both[0], tokens.count - 1, 0, 0, 1, 0, 0, r);
  if (r->is_err) return;
  both[1] = r->value;
  for (int i = 0; i < 2; i++) {
    tickets_wait(&both[i], 1, -1, r);
    if (r->is_err) return;
    if (i) tickets_take_tokens(both[i], r); else tickets_take_none(both[i], r);
    if (r->is_err) return;
  }
  r->value = r->numbers.data[0];
}

PIERAY_EXPORT("run") outcome *run(char *data, uint32_t size) {
  const char *end = data + size;
  text input = {data, size}, all = {0, 0};
  const char *prompt_at = find(input, TEXT("prompt"));
  if (!prompt_at || *prompt_at != '"') return fail(TEXT("ValueError"), TEXT("the input has no \"prompt\""));
  text prompt = json_string(prompt_at, end);
  uint32_t max_tokens = json_number(find(input, TEXT("max_tokens")), end, 16), num_tokens = 0, next;
  result r;
  model_tokenize("", 0, prompt.data, prompt.size, &r); CHECK(r); u32s tokens = r.numbers;
  if (!tokens.count) return fail(TEXT("ValueError"), TEXT("the prompt is empty"));
  model_stop_tokens("", 0, &r); CHECK(r); u32s stop = r.numbers;
  model_stream_open("", 0, 1, tokens.data, tokens.count, &r); CHECK(r); uint32_t stream = r.value;
  queues_create("", 0, &r); CHECK(r); uint32_t queue = r.value;
  uint32_t page_size = kv_page_size();
  kv_alloc((tokens.count + max_tokens + page_size - 1) / page_size, &r); CHECK(r); u32s pages = r.numbers;
  for (uint32_t kv_len = 0; num_tokens < max_tokens; num_tokens++) {
    next_token(queue, pages, kv_len, tokens, &r); CHECK(r); next = r.value;
    if (contains(stop, next)) break;
    kv_len += tokens.count;
    tokens = (u32s){&next, 1};
    model_stream_push(stream, &next, 1, &r); CHECK(r);
    if (r.string.size) { put_text(&all, r.string); session_send(r.string.data, r.string.size, &r); CHECK(r); }
  }
  model_stream_close(stream, &r); CHECK(r);
  kv_free(pages.data, pages.count, &r); CHECK(r);
  queues_close(queue, &r); CHECK(r);
  text out = TEXT("{\"text\": ");
  put_json(&out, all);
  put_text(&out, TEXT(", \"num_tokens\": ")); put_number(&out, num_tokens); put_text(&out, TEXT("}"));
  return succeed(out);
}
