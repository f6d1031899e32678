// Reading the input of `run`: the members of one flat JSON object.  Include after guest.h.
#pragma once
#include "guest.h"

static const char *json_space(const char *at, const char *end) {
  while (at < end && (*at == ' ' || *at == '\n' || *at == '\t' || *at == '\r')) at++;
  return at;
}

static const char *json_skip(const char *at, const char *end) {  // behind the value at `at`
  int depth = 0;
  do {
    at = json_space(at, end);
    if (at >= end) return end;
    if (*at == '"') { for (at++; at < end && *at != '"'; at++) at += *at == '\\'; at++; }
    else if (*at == '[' || *at == '{') { depth++; at++; continue; }
    else if (*at == ']' || *at == '}') { depth--; at++; }
    else if (*at == ',' || *at == ':') at++;
    else while (at < end && *at != ',' && *at != ']' && *at != '}' && *at != ' ' && *at != '\n') at++;
  } while (depth > 0);
  return at < end ? at : end;
}

// The value of a member, as it is written; data 0 if there is none, or null.
static text json_member(text object, text key) {
  const char *end = object.data + object.size, *at = json_space(object.data, end);
  if (at >= end || *at != '{') return (text){0, 0};
  for (at = json_space(at + 1, end); at < end && *at == '"'; at = json_space(at + 1, end)) {
    const char *name = at + 1;
    at = json_skip(at, end);
    bool is_it = same((text){(char *)name, (uint32_t)(at - 1 - name)}, key);
    at = json_space(json_space(at, end) + 1, end);  // the colon
    const char *value = at;
    if (at >= end) break;
    at = json_skip(at, end);
    if (is_it) return *value == 'n' ? (text){0, 0} : (text){(char *)value, (uint32_t)(at - value)};
    at = json_space(at, end);
    if (at >= end || *at != ',') break;
  }
  return (text){0, 0};
}

static uint32_t json_hex4(const char *at) {
  uint32_t n = 0;
  for (int i = 0; i < 4; i++) n = n << 4 | ((uint32_t)(at[i] <= '9' ? at[i] - '0' : (at[i] | 32) - 'a' + 10) & 15);
  return n;
}

static uint32_t json_utf8(char *to, uint32_t c) {
  if (c < 0x80) { to[0] = (char)c; return 1; }
  if (c < 0x800) { to[0] = (char)(0xc0 | c >> 6); to[1] = (char)(0x80 | (c & 63)); return 2; }
  if (c < 0x10000) { to[0] = (char)(0xe0 | c >> 12); to[1] = (char)(0x80 | (c >> 6 & 63)); to[2] = (char)(0x80 | (c & 63)); return 3; }
  to[0] = (char)(0xf0 | (c >> 18 & 7)); to[1] = (char)(0x80 | (c >> 12 & 63)); to[2] = (char)(0x80 | (c >> 6 & 63)); to[3] = (char)(0x80 | (c & 63));
  return 4;
}

static text json_text(text value) {  // of a string as it is written
  text out = {alloc(value.size), 0};
  const char *end = value.data + value.size - 1;
  for (const char *at = value.data + 1; at < end; at++) {
    if (*at != '\\' || at + 1 >= end) { out.data[out.size++] = *at; continue; }
    char c = *++at;
    if (c == 'u' && at + 4 < end) {
      uint32_t code = json_hex4(at + 1); at += 4;
      if (code >> 10 == 0x36 && at + 6 < end && at[1] == '\\') { code = 0x10000 + ((code & 0x3ff) << 10 | (json_hex4(at + 3) & 0x3ff)); at += 6; }
      out.size += json_utf8(out.data + out.size, code);
    } else out.data[out.size++] = c == 'n' ? '\n' : c == 't' ? '\t' : c == 'r' ? '\r' : c == 'b' ? '\b' : c == 'f' ? '\f' : c;
  }
  return out;
}

static double json_number(text value, double otherwise) {  // [-]digits[.digits][e[-]digits]
  if (!value.data) return otherwise;
  const char *at = value.data, *end = at + value.size;
  bool is_negative = at < end && *at == '-', is_small = false;
  int exponent = 0, shift = 0;
  double n = 0;
  for (at += is_negative; at < end && *at >= '0' && *at <= '9'; at++) n = n * 10 + (*at - '0');
  if (at < end && *at == '.') for (at++; at < end && *at >= '0' && *at <= '9'; at++, shift--) n = n * 10 + (*at - '0');
  if (at < end && (*at | 32) == 'e') {
    at++;
    if (at < end && (*at == '-' || *at == '+')) is_small = *at++ == '-';
    for (; at < end && *at >= '0' && *at <= '9'; at++) if (exponent < 1000) exponent = exponent * 10 + (*at - '0');
  }
  shift += is_small ? -exponent : exponent;
  double scale = 1;
  for (int i = shift < 0 ? -shift : shift; i > 0; i--) scale *= 10;
  n = shift < 0 ? n / scale : n * scale;
  return is_negative ? -n : n;
}

static uint64_t json_u64(text value, uint64_t otherwise) {  // exact, where a double is not
  if (!value.data) return otherwise;
  uint64_t n = 0;
  for (uint32_t i = 0; i < value.size && value.data[i] >= '0' && value.data[i] <= '9'; i++) n = n * 10 + (uint64_t)(value.data[i] - '0');
  return n;
}
