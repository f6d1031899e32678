// A guest that makes the calls its input lists: a line each, the number of a function in the WIT, then its arguments.
//   n123  a number (a float by its bits)         c7    the number that call 7 gave, 0 if it failed
//   s6162 a string, in hex                       t61,62,  a list of strings
//   ln1,c7,  a list of numbers                   (a pointer and a size that lie: two numbers in place of s, t or l)
// It returns a JSON list: what each call said.  calls.h is generated from the WIT: see build.py.
#include "guest.h"
#include "calls.h"

#define MAX_CALLS 4096
static uint64_t given[MAX_CALLS];
static uint8_t codes[MAX_CALLS];
static text messages[MAX_CALLS];
static const char *at, *end;

static uint64_t number(void) {
  uint64_t n = 0;
  while (at < end && *at >= '0' && *at <= '9') n = n * 10 + (uint64_t)(*at++ - '0');
  return n;
}
static uint64_t scalar(void) {
  char kind = *at++;
  uint64_t n = number();
  return kind == 'c' ? given[n % MAX_CALLS] : n;
}
static uint8_t digit(char c) { return (uint8_t)(c <= '9' ? c - '0' : c - 'a' + 10); }
static text hex(void) {
  const char *start = at;
  while (at < end && *at > ' ' && *at != ',') at++;
  text s = {alloc((size_t)(at - start) / 2), (uint32_t)(at - start) / 2};
  for (uint32_t i = 0; i < s.size; i++) s.data[i] = (char)(digit(start[2 * i]) << 4 | digit(start[2 * i + 1]));
  return s;
}
static uint32_t items(void) {
  uint32_t n = 0;
  for (const char *p = at; p < end && *p > ' '; p++) n += *p == ',';
  return n;
}
// The arguments of one line, flat as the canonical ABI has them.
static void arguments(uint64_t *out) {
  for (uint32_t n = 0; at < end && *at == ' ' && n < 30;) {
    at++;
    if (*at == 's') { at++; text s = hex(); out[n++] = (uintptr_t)s.data; out[n++] = s.size; }
    else if (*at == 't') {
      at++;
      uint32_t count = items();
      text *list = alloc(count * sizeof(text));
      for (uint32_t i = 0; i < count; i++) { list[i] = hex(); at++; }
      out[n++] = (uintptr_t)list; out[n++] = count;
    } else if (*at == 'l') {
      at++;
      uint32_t count = items(), *list = alloc(count * 4);
      for (uint32_t i = 0; i < count; i++) { list[i] = (uint32_t)scalar(); at++; }
      out[n++] = (uintptr_t)list; out[n++] = count;
    } else out[n++] = scalar();
  }
}

PIERAY_EXPORT("run") outcome *run(char *data, uint32_t size) {
  at = data, end = data + size;
  uint32_t count = 0;
  for (; at < end && count < MAX_CALLS; count++) {
    uint32_t function = (uint32_t)number();
    uint64_t args[32] = {0};
    arguments(args);
    at++;
    if (function >= NUM_CALLS) return fail(TEXT("ValueError"), TEXT("no such function"));
    answer a = CALLS[function](args);
    given[count] = a.value; codes[count] = a.code; messages[count] = a.message;
  }
  text out = {0, 0};
  put_text(&out, TEXT("["));
  for (uint32_t i = 0; i < count; i++) {
    if (i) put_text(&out, TEXT(", "));
    text code = codes[i] == OK ? TEXT("ok") : code_name(codes[i]);
    put_text(&out, TEXT("[")); put_json(&out, code); put_text(&out, TEXT(", "));
    put_json(&out, codes[i] == OK ? TEXT("") : messages[i]); put_text(&out, TEXT("]"));
  }
  put_text(&out, TEXT("]"));
  return succeed(out);
}
