// Paged attention over a pool of bfloat16 or E4M3 by tiles (AMX): rows of one request together, as many as there are.
//
// Queries and weights are rounded to bfloat16, sums are float32.  A score is a chain over blocks of 32 of head_dim; an
// output a chain over blocks of 32 slots, of weights that are 0 wherever the row does not attend, which adds nothing.
// So a row's result is the same in any company, as in paged_attention_cpu.c.
#pragma once
#include "pairs_cpu.c"

#define MOST_QUERIES 64  // of one call, unless one row has more heads
#define MOST_GROUP 256   // heads that share a kv head's keys

// Rows [first, first + num) of the wanted ones, all of one request, and the heads that share a kv head's keys.
typedef struct {
    const Layer *layer;
    const Ragged *ragged;
    const int64_t *rows;  // NULL: row i is i
    int64_t head, first, num;
} Queries;

// Rows of a request that are computed together at most.
INLINE int64_t rows_together(const Layer *l) {
    int64_t rows = MOST_QUERIES / (l->num_heads / l->num_kv_heads);
    return rows > 1 ? rows : 1;
}

#ifdef HAS_AMX
typedef float v16 __attribute__((vector_size(64), aligned(4)));
typedef int32_t i16v __attribute__((vector_size(64)));

// As exp8.
INLINE v16 exp16(v16 x) {
    i16v is_small = x < -87.0f;
    v16 n = x * 1.44269504f + 12582912.0f;
    i16v e = (i16v)n << 23;
    n -= 12582912.0f;
    v16 r = x - n * 0.693359375f + n * 2.12194440e-4f;
    v16 y = r * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    return (v16)(((i16v)y + e) & ~is_small);
}

// A thread's space, in this order: each part begins on a line.
typedef struct {
    float *scores;         // [queries, stride], later weights of bfloat16 in the same rows
    float *sums;           // [16, 64]
    uint16_t *q, *keys;    // [queries, depth]; [depth / 32, 4] tiles
    uint16_t *values;      // [stride / 32, depth / 16] tiles
    uint8_t *is_odd;       // [stride]: slots whose values are not all finite
    int64_t *slots;        // [stride]: where their keys are
    int64_t stride, depth;
} TileSpace;

INLINE int64_t most_queries(const Layer *l) {
    int64_t group = l->num_heads / l->num_kv_heads;
    return group > MOST_QUERIES ? (group + 15) / 16 * 16 : MOST_QUERIES;
}

static int64_t lay_out_tiles(const Layer *l, int64_t num_slots, char *at, TileSpace *space) {
    int64_t stride = (num_slots + 127) / 64 * 64, depth = padded_in(l->head_dim), queries = most_queries(l);
    char *scores = at, *sums = scores + queries * stride * 4, *q = sums + 16 * 64 * 4, *keys = q + queries * depth * 2;
    char *values = keys + depth * 64 * 2, *is_odd = values + stride * depth * 2, *slots = is_odd + stride;
    if (space)
        *space = (TileSpace){(float *)scores, (float *)sums, (uint16_t *)q, (uint16_t *)keys, (uint16_t *)values, (uint8_t *)is_odd,
                            (int64_t *)slots, stride, depth};
    return slots + stride * 8 - at;
}

// Bytes that a thread needs.
static int64_t tiles_space(const Layer *l, int64_t max_kv_len) { return lay_out_tiles(l, max_kv_len + 32, NULL, NULL); }

// Where the keys of slots [first, first + num) are in the pool, in elements; those of slots outside of the span are others
// of it.  Their values lie `num_kv_heads * page_size` rows behind.
static void find_slots(const Layer *l, const Span *s, int64_t head, int64_t first, int64_t num, int64_t *at) {
    int64_t page_size = l->page_size, d = l->head_dim, slot = s->low, page = slot / page_size;
    while (slot < s->high) {
        int64_t end = (page + 1) * page_size < s->high ? (page + 1) * page_size : s->high;
        int64_t begin = ((s->pages[page] * 2 * l->num_kv_heads + head) * page_size - page * page_size) * d;
        for (; slot < end; slot++) at[slot - first] = begin + slot * d;
        page++;
    }
    for (slot = first; slot < s->low; slot++) at[slot - first] = at[s->low - first];
    for (slot = s->high; slot < first + num; slot++) at[slot - first] = at[s->high - 1 - first];
}

// 16 rows of 16 dwords, the rows becoming columns.
INLINE void transpose16(__m512i *r, uint16_t *out) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 8; i++) {
        _mm512_store_si512(out + i * 32, _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88));
        _mm512_store_si512(out + (i + 8) * 32, _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd));
    }
}

// 32 numbers of E4M3 as bfloat16, which has all of them.
INLINE __m512i widen_e4m3(__m256i bytes) {
    uint16_t small[32] = {0, 0x3B00, 0x3B80, 0x3BC0, 0x3C00, 0x3C20, 0x3C40, 0x3C60};  // 0 to 7 times 2^-9
    __m512i bits = _mm512_cvtepu8_epi16(bytes), size = _mm512_and_si512(bits, _mm512_set1_epi16(0x7F));
    __m512i x = _mm512_add_epi16(_mm512_slli_epi16(size, 4), _mm512_set1_epi16(120 << 7));
    __mmask32 is_small = _mm512_cmplt_epi16_mask(size, _mm512_set1_epi16(8));
    x = _mm512_mask_permutexvar_epi16(x, is_small, size, _mm512_loadu_si512(small));
    x = _mm512_mask_mov_epi16(x, _mm512_cmpeq_epi16_mask(size, _mm512_set1_epi16(0x7F)), _mm512_set1_epi16(0x7FC0));
    return _mm512_or_si512(x, _mm512_slli_epi16(_mm512_and_si512(bits, _mm512_set1_epi16(0x80)), 8));
}

// Elements [i, i + 32) of a row of head_dim that begins at `at` of the pool, zeros behind its end; in bfloat16.
INLINE __m512i load_row(const Layer *l, int64_t at, int64_t i) {
    __mmask32 is_there = l->head_dim - i >= 32 ? ~0u : (1u << (l->head_dim - i)) - 1;
    if (l->kind == E4M3) return widen_e4m3(_mm256_maskz_loadu_epi8(is_there, (const uint8_t *)l->kv + at + i));
    return _mm512_maskz_loadu_epi16(is_there, (const uint16_t *)l->kv + at + i);
}

// Tiles of the keys of 64 slots: [depth / 32, 4].
INLINE void pack_keys(const Layer *l, const int64_t *at, TileSpace *w) {
    for (int64_t t = 0; t < 4; t++) {
        for (int64_t b = 0; b < w->depth / 32; b++) {
            __m512i r[16];
            for (int i = 0; i < 16; i++) r[i] = load_row(l, at[16 * t + i], 32 * b);
            transpose16(r, w->keys + (b * 4 + t) * 512);
        }
    }
}

// Tiles of the values of slots [first, first + 32), from `out` on: [depth / 16].  What is not finite counts as 0 and is
// marked, for 0 times that would not be 0.  Returns whether there is any.
INLINE int pack_values(const Layer *l, const Span *s, int64_t first, const int64_t *at, uint16_t *out, uint8_t *is_odd) {
    const __m512i exponent = _mm512_set1_epi16(0x7F80);
    uint16_t order[2][32];
    for (int i = 0; i < 32; i++) order[0][i] = i / 2 + i % 2 * 32, order[1][i] = 16 + i / 2 + i % 2 * 32;
    __m512i low = _mm512_loadu_si512(order[0]), high = _mm512_loadu_si512(order[1]);
    int any = 0;
    for (int64_t pair = 0; pair < 16; pair++) {
        int64_t rows[2];
        for (int i = 0; i < 2; i++) {
            int64_t slot = first + 2 * pair + i;
            is_odd[2 * pair + i] = 0;
            rows[i] = -1;
            if (slot >= s->low && slot < s->high) rows[i] = at[2 * pair + i] + l->num_kv_heads * l->page_size * l->head_dim;
        }
        for (int64_t b = 0; 32 * b < l->head_dim; b++) {
            __m512i found[2];
            for (int i = 0; i < 2; i++) {
                found[i] = rows[i] >= 0 ? load_row(l, rows[i], 32 * b) : _mm512_setzero_si512();
                __mmask32 odd = _mm512_cmpeq_epi16_mask(_mm512_and_si512(found[i], exponent), exponent);
                if (!odd) continue;
                found[i] = _mm512_maskz_mov_epi16(~odd, found[i]);
                is_odd[2 * pair + i] = any = 1;
            }
            _mm512_store_si512(out + 2 * b * 512 + pair * 32, _mm512_permutex2var_epi16(found[0], low, found[1]));
            _mm512_store_si512(out + (2 * b + 1) * 512 + pair * 32, _mm512_permutex2var_epi16(found[0], high, found[1]));
        }
    }
    return any;
}

// scores[0, num_slots) of all queries, `tiles` times 16 of them.
static void score_tiles(const Layer *l, int64_t num_slots, int64_t tiles, TileSpace *w) {
    int64_t size = l->kind == E4M3 ? 1 : 2, lines = (size * l->head_dim + 63) / 64;
    int64_t values = l->num_kv_heads * l->page_size * l->head_dim;
    for (int64_t at = 0; at < num_slots; at += 64) {
        for (int64_t i = at; tiles == 1 && i < at + 64; i++) {  // one row waits for memory
            const char *keys = (const char *)l->kv;
            if (i + 64 < w->stride) fetch_lines(keys + w->slots[i + 64] * size, lines);
            fetch_lines(keys + (w->slots[i] + values) * size, lines);
        }
        pack_keys(l, w->slots + at, w);
        STORED();
        for (int64_t t = 0; t < tiles; t++) {
            float *out = w->scores + 16 * t * w->stride + at;
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
            for (int64_t b = 0; b < w->depth / 32; b++) {
                const uint16_t *keys = w->keys + b * 4 * 512;
                _tile_loadd(4, w->q + 16 * t * w->depth + 32 * b, w->depth * 2);
                _tile_loadd(6, keys, 64);
                _tile_dpbf16ps(0, 4, 6);
                _tile_loadd(7, keys + 512, 64);
                _tile_dpbf16ps(1, 4, 7);
                _tile_loadd(6, keys + 1024, 64);
                _tile_dpbf16ps(2, 4, 6);
                _tile_loadd(7, keys + 1536, 64);
                _tile_dpbf16ps(3, 4, 7);
            }
            _tile_stored(0, out, w->stride * 4);
            _tile_stored(1, out + 16, w->stride * 4);
            _tile_stored(2, out + 32, w->stride * 4);
            _tile_stored(3, out + 48, w->stride * 4);
        }
    }
}

// Turns scores[low, high) into weights of bfloat16 in the same place, 0 in the rest of [0, num_slots); what they add up
// to.  Lanes are slots, counted from a multiple of 16.
INLINE float weigh_row(float *scores, int64_t low, int64_t high, int64_t num_slots, float scale) {
    int64_t first = low / 16 * 16, last = (high + 15) / 16 * 16;
    uint16_t *weights = (uint16_t *)scores;
    v16 tops = (v16){} - INFINITY, totals = {};
    for (int64_t i = first; i < low; i++) scores[i] = -INFINITY;
    for (int64_t i = high; i < last; i++) scores[i] = -INFINITY;
    for (int64_t i = first; i < last; i += 16) {
        v16 x = *(v16 *)(scores + i);
        tops = (v16)_mm512_max_ps((__m512)x, (__m512)tops);  // a NaN is passed over
    }
    float top = _mm512_reduce_max_ps((__m512)tops), total = 0;
    if (top == -INFINITY) top = 0;
    for (int64_t i = 0; i < first; i += 16) _mm256_storeu_si256((__m256i *)(weights + i), _mm256_setzero_si256());
    for (int64_t i = first; i < last; i += 16) {
        v16 x = exp16((*(v16 *)(scores + i) - top) * scale);
        totals += x;
        _mm256_storeu_si256((__m256i *)(weights + i), (__m256i)_mm512_cvtneps_pbh((__m512)x));
    }
    for (int64_t i = last; i < num_slots; i += 16) _mm256_storeu_si256((__m256i *)(weights + i), _mm256_setzero_si256());
    for (int i = 0; i < 16; i++) total += totals[i];
    return total;
}

// sums[16, 64): weights of 16 queries times columns [column, column + 64) of the values.
static void value_tiles(const uint16_t *weights, int64_t column, int64_t num_slots, TileSpace *w) {
    int64_t left = (w->depth - column) / 16;
    STORED();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t at = 0; at < num_slots; at += 32) {
        const uint16_t *values = w->values + (at / 32 * (w->depth / 16) + column / 16) * 512;
        _tile_loadd(4, weights + at, w->stride * 4);
        _tile_loadd(6, values, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, values + 512, 64);
        _tile_dpbf16ps(1, 4, 7);
        if (left == 2) continue;
        _tile_loadd(6, values + 1024, 64);
        _tile_dpbf16ps(2, 4, 6);
        _tile_loadd(7, values + 1536, 64);
        _tile_dpbf16ps(3, 4, 7);
    }
    _tile_stored(0, w->sums, 256);
    _tile_stored(1, w->sums + 16, 256);
    _tile_stored(2, w->sums + 32, 256);
    _tile_stored(3, w->sums + 48, 256);
}

// out[i * num_heads * head_dim] = attention of the i-th row; q rows are `q_stride` apart, both from the head's first query on.
static void attend_tiles(const float *q, int64_t q_stride, const Queries *u, float *out, char *space) {
    const Layer *l = u->layer;
    int64_t group = l->num_heads / l->num_kv_heads, d = l->head_dim, count = u->num * group, tiles = (count + 15) / 16;
    Span spans[MOST_QUERIES], all = {};
    float totals[MOST_GROUP];
    for (int64_t i = 0; i < u->num; i++) {
        spans[i] = span_of(u->ragged, u->rows ? u->rows[u->first + i] : u->first + i, l->window);
        if (!i) all = spans[0];
        if (spans[i].low < all.low) all.low = spans[i].low;
        if (spans[i].high > all.high) all.high = spans[i].high;
    }
    int64_t first = all.low / 32 * 32, num_slots = (all.high - first + 31) / 32 * 32;
    TileSpace w;
    lay_out_tiles(l, num_slots, space, &w);
    for (int64_t i = 0; i < tiles * 16; i++) {
        uint16_t *to = w.q + i * w.depth;
        if (i >= count) memset(to, 0, w.depth * 2);
        else round_row(q + (u->rows ? u->rows[u->first + i / group] : u->first + i / group) * q_stride + i % group * d, to, d);
    }
    shape_tiles(count < 16 ? count : 16);
    find_slots(l, &all, u->head, first, w.stride, w.slots);
    score_tiles(l, num_slots, tiles, &w);
    for (int64_t i = 0; i < u->num; i++) {
        float *scores = w.scores + i * group * w.stride - first;
        if (spans[i].mask) hide_masked(spans + i, group, scores, w.stride);
        for (int64_t g = 0; g < group; g++)
            totals[i * group + g] = weigh_row(w.scores + (i * group + g) * w.stride, spans[i].low - first, spans[i].high - first,
                                              num_slots, l->scale);
    }
    int is_odd = 0;
    for (int64_t at = 0; at < num_slots; at += 32)
        is_odd |= pack_values(l, &all, first + at, w.slots + at, w.values + at * w.depth, w.is_odd + at);
    for (int64_t t = 0; t < tiles; t++) {
        const uint16_t *weights = (const uint16_t *)(w.scores + 16 * t * w.stride);
        for (int64_t column = 0; column < w.depth; column += 64) {
            value_tiles(weights, column, num_slots, &w);
            for (int64_t i = 16 * t; i < 16 * (t + 1) && i < count; i++) {
                float *target = out + i / group * l->num_heads * d + i % group * d + column, *sums = w.sums + (i - 16 * t) * 64;
                float factor = totals[i] == 0 ? 1 : 1 / totals[i];
                for (int64_t slot = 0; is_odd && slot < num_slots; slot++)
                    if (w.is_odd[slot] && weights[(i - 16 * t) * 2 * w.stride + slot]) factor = NAN;
                for (int64_t j = 0; j < 64 && column + j < d; j++) target[j] = sums[j] * factor;
            }
        }
    }
}
#else
static int64_t tiles_space(const Layer *l, int64_t max_kv_len) { return 0; }
static void attend_tiles(const float *q, int64_t q_stride, const Queries *u, float *out, char *space) {}
#endif
