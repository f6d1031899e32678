// Paged attention on the CPU, one (row, kv head) at a time: plain C, GCC or Clang, no headers of torch.
//
// A row's result is a function of the row, its keys and its mask alone: the sums run over slots in order whatever
// else is in the batch, however the prompt was cut into chunks and wherever the pages lie.  Same bits every time.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef float v8 __attribute__((vector_size(32)));
typedef float v8u __attribute__((vector_size(32), aligned(4)));
typedef int32_t i8 __attribute__((vector_size(32)));
typedef uint32_t u8 __attribute__((vector_size(32)));
typedef uint16_t h8u __attribute__((vector_size(16), aligned(2)));
typedef uint8_t b8u __attribute__((vector_size(8), aligned(1)));
#define MAX_HEAD_DIM 256
#define INLINE static inline __attribute__((always_inline))

// What an array holds: float, bfloat16, or E4M3 (Micikevicius et al., 2022), whose largest number is 448.
enum { F32, BF16, E4M3 };

INLINE v8 load8_e4m3(const uint8_t *p) {
    h8u wide = __builtin_convertvector(*(const b8u *)p, h8u);  // in one step GCC converts lane by lane
    u8 bits = __builtin_convertvector(wide, u8), size = bits & 0x7F;
    u8 is_small = (u8)(size < 8), is_nan = (u8)(size == 0x7F);  // small: without the leading 1, which is taken away again
    v8 x = (v8)(((size + (is_small & 8)) << 20) + (120 << 23)) - (v8)(is_small & 0x3C800000);
    return (v8)((u8)x | (bits & 0x80) << 24 | (is_nan & 0x7FC00000));
}

// Elements [i, i + 8).
INLINE v8 load8(const void *p, int64_t i, int kind) {
    if (kind == F32) return *(const v8u *)((const float *)p + i);
    if (kind == E4M3) return load8_e4m3((const uint8_t *)p + i);
    return (v8)(__builtin_convertvector(*(const h8u *)((const uint16_t *)p + i), u8) << 16);
}

// To the nearest; in E4M3 what is larger than 448 becomes 448, and what is infinite NaN.
INLINE void store1(void *p, int64_t i, float x, int kind) {
    if (kind == F32) { ((float *)p)[i] = x; return; }
    uint32_t u;
    memcpy(&u, &x, 4);
    if (kind == E4M3) {
        uint32_t size = u & 0x7FFFFFFF, found;
        if (size >= 0x7F800000) found = 0x7F;
        else if (size >= 0x43E00000) found = 0x7E;
        else if (size < 0x3C800000) found = (uint32_t)(fabsf(x) * 512 + 8388608.0f - 8388608.0f);
        else found = ((size + 0x7FFFF + (size >> 20 & 1)) >> 20) - (120 << 3);
        ((uint8_t *)p)[i] = (u >> 24 & 0x80) | found;
        return;
    }
    ((uint16_t *)p)[i] = x != x ? 0x7FC0 : (uint16_t)((u + 0x7FFF + ((u >> 16) & 1)) >> 16);
}

// exp of each lane to 2 ulp (Cephes expf) up to 88; below -87 it is 0, and NaN stays NaN.
INLINE v8 exp8(v8 x) {
    i8 is_small = x < -87.0f;
    v8 n = x * 1.44269504f + 12582912.0f;  // round to nearest: the integer lands in the low bits
    i8 e = (i8)n << 23;
    n -= 12582912.0f;
    v8 r = x - n * 0.693359375f + n * 2.12194440e-4f;
    v8 y = r * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    return (v8)(((i8)y + e) & ~is_small);
}

INLINE float sum_lanes(v8 a) { return ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7])); }

#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (i8){__VA_ARGS__})
#endif

INLINE v8 pair_sums(v8 a, v8 b) { return SHUFFLE(a, b, 0, 8, 2, 10, 4, 12, 6, 14) + SHUFFLE(a, b, 1, 9, 3, 11, 5, 13, 7, 15); }

INLINE v8 quad_sums(v8 a, v8 b) { return SHUFFLE(a, b, 0, 1, 8, 9, 4, 5, 12, 13) + SHUFFLE(a, b, 2, 3, 10, 11, 6, 7, 14, 15); }

// Lane j of the result is the sum of the lanes of a[j].
INLINE v8 transpose_sums(const v8 *a) {
    v8 x = quad_sums(pair_sums(a[0], a[1]), pair_sums(a[2], a[3]));
    v8 y = quad_sums(pair_sums(a[4], a[5]), pair_sums(a[6], a[7]));
    return SHUFFLE(x, y, 0, 1, 2, 3, 8, 9, 10, 11) + SHUFFLE(x, y, 4, 5, 6, 7, 12, 13, 14, 15);
}

// One layer of the pool, and what holds for all rows of a call.  Strides in elements.
typedef struct {
    const void *kv;  // [num_pages, 2, num_kv_heads, page_size, head_dim]
    int64_t num_heads, num_kv_heads, head_dim, page_size, window;
    float scale, softcap;  // softcap 0: none
    const float *sinks;    // [num_heads], or NULL
    int64_t kind;          // of kv
} Layer;

// One request's view: slots [low, high) of `pages`, less those whose bit is 0.
typedef struct {
    const int32_t *pages;
    int64_t low, high;
    const uint8_t *mask;  // NULL: none
    int64_t first_bit;    // of this row
} Span;

// Scores of `group` heads against slots [low, high) of the span: scores[g * stride + slot].
INLINE void score_slots(const float *q, const Layer *l, int64_t kv_head, const Span *s, int64_t group, float *scores,
                        int64_t stride, int kind) {
    int64_t d = l->head_dim, page_size = l->page_size;
    for (int64_t base = s->low / page_size * page_size; base < s->high; base += page_size) {
        int64_t page = s->pages[base / page_size], count = s->high - base < page_size ? s->high - base : page_size;
        int64_t keys = (page * 2 * l->num_kv_heads + kv_head) * page_size * d;
        for (int64_t first = 0; first < count; first += 8) {
            float unpacked[8 * MAX_HEAD_DIM];
            const float *row[8];
            for (int j = 0; j < 8; j++) {
                int64_t at = keys + (first + j < count ? first + j : count - 1) * d;
                row[j] = kind != F32 ? unpacked + j * d : (const float *)l->kv + at;
                for (int64_t i = 0; kind != F32 && i < d; i += 8) *(v8u *)(unpacked + j * d + i) = load8(l->kv, at + i, kind);
            }
            for (int64_t g = 0; g < group; g++) {
                v8 acc[8] = {};
                for (int64_t i = 0; i < d; i += 8) {
                    v8 x = *(const v8u *)(q + g * d + i);
                    for (int j = 0; j < 8; j++) acc[j] += x * *(const v8u *)(row[j] + i);
                }
                *(v8u *)(scores + g * stride + base + first) = transpose_sums(acc) * l->scale;
            }
        }
    }
}

// tanh of each lane, by exp8 of what cannot overflow.
INLINE v8 tanh8(v8 x) {
    i8 is_low = x < 0.0f;
    v8 size = (v8)(((i8)-x & is_low) | ((i8)x & ~is_low)), e = exp8(-2 * size), y = (1 - e) / (1 + e);
    return (v8)(((i8)-y & is_low) | ((i8)y & ~is_low));
}

// Scores of slots [low, high) become softcap * tanh(score / softcap); those of whole vectors around them too.
static void bend_scores(const Layer *l, const Span *s, int64_t group, float *scores, int64_t stride) {
    for (int64_t g = 0; g < group; g++)
        for (int64_t i = s->low / 8 * 8; i < s->high; i += 8) {
            v8u *at = (v8u *)(scores + g * stride + i);
            *at = l->softcap * tanh8(*at / l->softcap);
        }
}

INLINE void hide_masked(const Span *s, int64_t group, float *scores, int64_t stride) {
    for (int64_t slot = s->low; slot < s->high; slot++) {
        int64_t bit = s->first_bit + slot;
        if (s->mask[bit >> 3] >> (bit & 7) & 1) continue;
        for (int64_t g = 0; g < group; g++) scores[g * stride + slot] = -INFINITY;
    }
}

INLINE v8 max8(v8 a, v8 b) {
    i8 is_a = a > b;
    return (v8)(((i8)a & is_a) | ((i8)b & ~is_a));
}

// Turns scores[low, high) into weights that add up to 1; to all 0 if every slot is hidden.  A sink, if there is one, is
// a score more, whose weight nobody gets.
INLINE void softmax(float *scores, int64_t low, int64_t high, const float *sink) {
    int64_t first = low / 8 * 8, last = (high + 7) / 8 * 8;
    for (int64_t i = first; i < low; i++) scores[i] = -INFINITY;
    for (int64_t i = high; i < last; i++) scores[i] = -INFINITY;
    v8 tops = (v8){} - INFINITY, totals = {};
    for (int64_t i = first; i < last; i += 8) tops = max8(*(v8u *)(scores + i), tops);
    float top = sink ? *sink : -INFINITY;
    for (int j = 0; j < 8; j++) top = tops[j] > top ? tops[j] : top;
    if (top == -INFINITY) top = 0;
    for (int64_t i = first; i < last; i += 8) {
        v8 x = exp8(*(v8u *)(scores + i) - top);
        *(v8u *)(scores + i) = x;
        totals += x;
    }
    float total = sum_lanes(totals);
    if (sink) total += expf(*sink - top);
    if (total == 0) return;
    for (int64_t i = first; i < last; i += 8) *(v8u *)(scores + i) *= 1 / total;
}

// out[g * d + column, + 8 * blocks) = sum of weight * value over the slots, for `heads` heads; heads and blocks are
// constants at each call.  Weights that are 0 for all heads hide even a NaN.
INLINE void add_values(const float *weights, int64_t stride, const Layer *l, int64_t kv_head, const Span *s, float *out,
                       int64_t column, int heads, int blocks, int kind) {
    int64_t d = l->head_dim, page_size = l->page_size;
    v8 acc[3][4] = {};
    for (int64_t base = s->low / page_size * page_size; base < s->high; base += page_size) {
        int64_t page = s->pages[base / page_size], count = s->high - base < page_size ? s->high - base : page_size;
        int64_t values = ((page * 2 + 1) * l->num_kv_heads + kv_head) * page_size * d + column;
        for (int64_t j = base < s->low ? s->low - base : 0; j < count; j++) {
            float any = 0;
            for (int g = 0; g < heads; g++) any += weights[g * stride + base + j];
            if (any == 0) continue;
            for (int b = 0; b < blocks; b++) {
                v8 value = load8(l->kv, values + j * d + 8 * b, kind);
                for (int g = 0; g < heads; g++) acc[g][b] += weights[g * stride + base + j] * value;
            }
        }
    }
    for (int g = 0; g < heads; g++)
        for (int b = 0; b < blocks; b++) *(v8u *)(out + g * d + column + 8 * b) = acc[g][b];
}

INLINE void add_all_values(const float *weights, int64_t stride, const Layer *l, int64_t kv_head, const Span *s, float *out,
                           int heads, int kind) {
    int64_t i = 0, d = l->head_dim;
    for (; i + 32 <= d; i += 32) add_values(weights, stride, l, kv_head, s, out, i, heads, 4, kind);
    for (; i < d; i += 8) add_values(weights, stride, l, kv_head, s, out, i, heads, 1, kind);
}

INLINE void attend_typed(const float *q, const Layer *l, int64_t kv_head, const Span *s, float *out, float *scores,
                         int kind) {
    int64_t d = l->head_dim, group = l->num_heads / l->num_kv_heads, stride = (s->high + 2 * l->page_size + 15) / 8 * 8;
    score_slots(q, l, kv_head, s, group, scores, stride, kind);
    if (l->softcap > 0) bend_scores(l, s, group, scores, stride);
    if (s->mask) hide_masked(s, group, scores, stride);
    const float *sinks = l->sinks ? l->sinks + kv_head * group : NULL;
    for (int64_t g = 0; g < group; g++) softmax(scores + g * stride, s->low, s->high, sinks ? sinks + g : NULL);
    int64_t g = 0;
    if (group == 3) { add_all_values(scores, stride, l, kv_head, s, out, 3, kind); return; }
    for (; g + 2 <= group; g += 2) add_all_values(scores + g * stride, stride, l, kv_head, s, out + g * d, 2, kind);
    if (g < group) add_all_values(scores + g * stride, stride, l, kv_head, s, out + g * d, 1, kind);
}

// All query heads of one kv head for one row: q and out are [group, head_dim]; head_dim is a multiple of 8, up to MAX_HEAD_DIM.
static void attend(const float *q, const Layer *l, int64_t kv_head, const Span *s, float *out, float *scores) {
    if (l->kind == F32) attend_typed(q, l, kv_head, s, out, scores, F32);
    else if (l->kind == E4M3) attend_typed(q, l, kv_head, s, out, scores, E4M3);
    else attend_typed(q, l, kv_head, s, out, scores, BF16);
}

// The ragged call: as AttentionMeta in meta.py says.
typedef struct {
    const int32_t *qo_indptr, *page_indptr, *pages, *kv_lens, *causal, *mask_indptr;
    const uint8_t *mask;
    int64_t num_requests, max_kv_len;
} Ragged;

// Floats of scratch that one thread needs.
INLINE int64_t scratch_floats(const Layer *l, const Ragged *r) {
    return l->num_heads / l->num_kv_heads * (r->max_kv_len + 2 * l->page_size + 16);
}

static int64_t request_of(const Ragged *r, int64_t row) {
    int64_t low = 0, high = r->num_requests;
    while (high - low > 1) {
        int64_t middle = (low + high) / 2;
        if (r->qo_indptr[middle] <= row) low = middle;
        else high = middle;
    }
    return low;
}

static Span span_of(const Ragged *r, int64_t row, int64_t window) {
    int64_t b = request_of(r, row), q_len = r->qo_indptr[b + 1] - r->qo_indptr[b], index = row - r->qo_indptr[b];
    int64_t kv_len = r->kv_lens[b], own = kv_len - q_len + index;
    Span s = {r->pages + r->page_indptr[b], 0, r->causal[b] ? own + 1 : kv_len, NULL, index * kv_len};
    if (window > 0 && own - window + 1 > 0) s.low = own - window + 1;
    if (r->mask_indptr && r->mask_indptr[b] >= 0) s.mask = r->mask + r->mask_indptr[b];
    return s;
}

// q rows are `q_stride` floats apart, those of out num_heads * head_dim.  Returns 0, or 1 if memory ran out.
int paged_attention(const float *q, int64_t q_stride, const Layer *l, const Ragged *r, float *out, int threads) {
    int64_t group = l->num_heads / l->num_kv_heads, d = l->head_dim, num_rows = r->qo_indptr[r->num_requests];
    int failed = 0;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        float *scores = malloc(scratch_floats(l, r) * sizeof(float));
        if (!scores) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < num_rows * l->num_kv_heads; i++) {
            int64_t row = i / l->num_kv_heads, head = i % l->num_kv_heads;
            Span s = span_of(r, row, l->window);
            float *target = out + (row * l->num_heads + head * group) * d;
            if (scores) attend(q + row * q_stride + head * group * d, l, head, &s, target, scores);
        }
        free(scores);
    }
    return failed;
}
