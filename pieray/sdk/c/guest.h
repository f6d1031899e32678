// What a freestanding guest needs beside the API: memory, text, JSON, errors.  Include in one file of the guest.
#pragma once
#include <stdbool.h>
#include "pieray.h"

void *memcpy(void *to, const void *from, size_t n) { char *a = to; const char *b = from; while (n--) *a++ = *b++; return to; }
void *memset(void *to, int c, size_t n) { char *a = to; while (n--) *a++ = (char)c; return to; }
int memcmp(const void *a, const void *b, size_t n) {
  const unsigned char *x = a, *y = b;
  for (; n; n--, x++, y++) if (*x != *y) return *x - *y;
  return 0;
}

// ---- memory: an arena over all linear memory after the program's data.  `arena_top` may be saved and put back.
extern unsigned char __heap_base;
static uintptr_t arena_top;

PIERAY_EXPORT("cabi_realloc") void *cabi_realloc(void *old, size_t old_size, size_t align, size_t size) {
  if (!arena_top) arena_top = (uintptr_t)&__heap_base;
  uintptr_t start = (arena_top + align - 1) & ~(uintptr_t)(align - 1), end = start + size;
  uintptr_t have = (uintptr_t)__builtin_wasm_memory_size(0) << 16;
  if (end < start || (end > have && __builtin_wasm_memory_grow(0, (end - have + 0xffff) >> 16) == (size_t)-1)) __builtin_trap();
  arena_top = end;
  if (old) memcpy((void *)start, old, old_size < size ? old_size : size);
  return (void *)start;
}

static void *alloc(size_t size) { return cabi_realloc(0, 0, 16, size); }

// ---- text
#define TEXT(literal) ((text){(char *)(literal), sizeof(literal) - 1})

// A buffer that grows at the top of the arena.
static void put(text *out, const char *data, uint32_t size) {
  if (out->data && (uintptr_t)out->data + out->size == arena_top) cabi_realloc(0, 0, 1, size);  // it is the last: grow in place
  else { char *grown = alloc(out->size + size); memcpy(grown, out->data, out->size); out->data = grown; }
  memcpy(out->data + out->size, data, size);
  out->size += size;
}
static void put_text(text *out, text s) { put(out, s.data, s.size); }
static void put_number(text *out, uint32_t n) {
  char digits[10]; int at = 10;
  do digits[--at] = (char)('0' + n % 10); while (n /= 10);
  put(out, digits + at, (uint32_t)(10 - at));
}
static void put_json(text *out, text s) {
  put(out, "\"", 1);
  for (uint32_t i = 0; i < s.size; i++) {
    unsigned char c = (unsigned char)s.data[i];
    if (c == '"' || c == '\\') { put(out, "\\", 1); put(out, s.data + i, 1); }
    else if (c >= 0x20) put(out, s.data + i, 1);
    else { char u[6] = {'\\', 'u', '0', '0', "0123456789abcdef"[c >> 4], "0123456789abcdef"[c & 15]}; put(out, u, 6); }
  }
  put(out, "\"", 1);
}
static bool same(text a, text b) { return a.size == b.size && !memcmp(a.data, b.data, a.size); }

// ---- errors, and what `run` returns
static const char *const ERROR_NAMES[] = ERR_NAMES;
static text code_name(uint8_t code) { uint32_t n = 0; while (ERROR_NAMES[code][n]) n++; return (text){(char *)ERROR_NAMES[code], n}; }

static outcome ret;
static outcome *succeed(text value) { ret.is_err = 0; ret.value = value; return &ret; }
static outcome *fail(text kind, text message) {
  ret.is_err = 1;
  ret.failure.kind = kind; ret.failure.message = message; ret.failure.trace = TEXT("");
  return &ret;
}
static outcome *fail_with(const result *r) { return fail(code_name(r->error.code), r->error.message); }
// In a function that returns an outcome: leave it if the last handler reported an error.
#define CHECK(r) do { if ((r).is_err) return fail_with(&(r)); } while (0)
