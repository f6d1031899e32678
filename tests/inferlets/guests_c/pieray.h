// The handler API for C guests: the imports of pieray/wit/pieray.wit by hand-written canonical ABI.
//
// A list or string is (pointer, count).  A function whose result needs more than one word writes it to its
// last parameter.  Memory that the host hands over comes from `cabi_realloc`, here an arena (see below).
#pragma once
#include <stddef.h>
#include <stdint.h>

#define PIERAY_IMPORT(interface, function) \
  __attribute__((import_module("pieray:inferlet/" interface "@0.2.0"), import_name(function))) extern
#define PIERAY_EXPORT(name) __attribute__((export_name(name)))

typedef struct { char *data; uint32_t size; } text;
typedef struct { uint32_t *data; uint32_t count; } u32s;
typedef struct { float *data; uint32_t count; } f32s;
typedef struct { text *data; uint32_t count; } texts;

// result<T, error>: what T is follows from the function.
typedef struct {
  uint8_t is_err;
  union {
    uint32_t value;
    text string;
    u32s numbers;
    f32s floats;
    struct { u32s tokens; f32s probabilities; } distribution;
    struct { uint8_t code; text message; } error;
  };
} result;

// result<string, failure>: what `run` returns.
typedef struct {
  uint8_t is_err;
  union {
    text value;
    struct { text kind, message, trace; } failure;
  };
} outcome;

enum { DEBUG, INFO, WARNING, ERROR };

PIERAY_IMPORT("tickets", "wait") void tickets_wait(const uint32_t *, uint32_t, int32_t timeout_ms, result *);
PIERAY_IMPORT("tickets", "take-none") void tickets_take_none(uint32_t, result *);
PIERAY_IMPORT("tickets", "take-tokens") void tickets_take_tokens(uint32_t, result *);
PIERAY_IMPORT("tickets", "take-floats") void tickets_take_floats(uint32_t, result *);
PIERAY_IMPORT("tickets", "take-text") void tickets_take_text(uint32_t, result *);
PIERAY_IMPORT("tickets", "take-distribution") void tickets_take_distribution(uint32_t, result *);
PIERAY_IMPORT("tickets", "cancel") void tickets_cancel(const uint32_t *, uint32_t, result *);

PIERAY_IMPORT("queues", "create") void queues_create(const char *, uint32_t, result *);
PIERAY_IMPORT("queues", "set-priority") void queues_set_priority(uint32_t, int32_t, result *);
PIERAY_IMPORT("queues", "flush") void queues_flush(uint32_t, result *);
PIERAY_IMPORT("queues", "synchronize") void queues_synchronize(uint32_t, result *);
PIERAY_IMPORT("queues", "close") void queues_close(uint32_t, result *);

PIERAY_IMPORT("kv", "page-size") uint32_t kv_page_size(void);
PIERAY_IMPORT("kv", "alloc") void kv_alloc(uint32_t, result *);
PIERAY_IMPORT("kv", "free") void kv_free(const uint32_t *, uint32_t, result *);
PIERAY_IMPORT("kv", "fork") void kv_fork(const uint32_t *, uint32_t, result *);
PIERAY_IMPORT("kv", "copy")
void kv_copy(uint32_t queue, uint32_t src, uint32_t src_at, uint32_t dst, uint32_t dst_at, uint32_t count, result *);

PIERAY_IMPORT("forward", "forward")
void forward_forward(uint32_t queue, const uint32_t *pages, uint32_t, uint32_t kv_len, const uint32_t *tokens, uint32_t,
                     const uint32_t *positions, uint32_t, const uint32_t *mask, uint32_t, result *);
PIERAY_IMPORT("forward", "sample")
void forward_sample(uint32_t pass, uint32_t row, float temperature, uint32_t top_k, float top_p, float min_p,
                    uint64_t seed, result *);
PIERAY_IMPORT("forward", "distribution") void forward_distribution(uint32_t, uint32_t, uint32_t, result *);
PIERAY_IMPORT("forward", "logprobs") void forward_logprobs(uint32_t, uint32_t, const uint32_t *, uint32_t, result *);
PIERAY_IMPORT("forward", "logits") void forward_logits(uint32_t, uint32_t, result *);

PIERAY_IMPORT("model", "names") void model_names(texts *);
PIERAY_IMPORT("model", "info") void model_info(const char *, uint32_t, result *);
PIERAY_IMPORT("model", "tokenize") void model_tokenize(const char *, uint32_t, const char *, uint32_t, result *);
PIERAY_IMPORT("model", "detokenize")
void model_detokenize(const char *, uint32_t, const uint32_t *, uint32_t, uint32_t skip_special, result *);
PIERAY_IMPORT("model", "stop-tokens") void model_stop_tokens(const char *, uint32_t, result *);
PIERAY_IMPORT("chat", "render")
void chat_render(const char *model, uint32_t, const char *messages, uint32_t, const char *tools, uint32_t,
                 uint32_t add_prompt, result *);
PIERAY_IMPORT("model", "stream-open") void model_stream_open(const char *, uint32_t, uint32_t skip_special, result *);
PIERAY_IMPORT("model", "stream-push") void model_stream_push(uint32_t, const uint32_t *, uint32_t, result *);
PIERAY_IMPORT("model", "stream-close") void model_stream_close(uint32_t, result *);

PIERAY_IMPORT("session", "send") void session_send(const char *, uint32_t, result *);
PIERAY_IMPORT("session", "receive") void session_receive(result *);

PIERAY_IMPORT("runtime", "version") void runtime_version(text *);
PIERAY_IMPORT("runtime", "instance-id") void runtime_instance_id(text *);
PIERAY_IMPORT("runtime", "limits") void runtime_limits(text *);
PIERAY_IMPORT("runtime", "monotonic-now") uint64_t runtime_monotonic_now(void);
PIERAY_IMPORT("runtime", "wall-now") uint64_t runtime_wall_now(void);
PIERAY_IMPORT("runtime", "random-u64") uint64_t runtime_random_u64(void);
PIERAY_IMPORT("runtime", "log") void runtime_log(uint32_t level, const char *, uint32_t, result *);
