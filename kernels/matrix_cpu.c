// Products with packed matrices on the CPU: weights of float32, bfloat16, E4M3 or int8, sums in float32 (of int8: exact).
//
// In every kind each output of a product is one chain of additions over k, in an order that neither the number of rows
// nor their tiling changes: a row's results do not depend on the rows around it, to the last bit.
#pragma once
#include "paged_attention_cpu.c"
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#ifndef LANES
#ifdef __AVX512F__
#define LANES 16
#else
#define LANES 8
#endif
#endif
#define PANEL (2 * LANES)  // outputs that one column block of a packed matrix holds
typedef float vec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint32_t uvec __attribute__((vector_size(4 * LANES)));
typedef uint16_t hvec __attribute__((vector_size(2 * LANES), aligned(2)));

// LANES numbers of E4M3, which are finite.
INLINE vec load_e4m3(const uint8_t *p) {
#ifdef __AVX512F__
    __m256i wide = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)p));  // by way of float16, for its small numbers
    __m256i sign = _mm256_slli_epi16(_mm256_and_si256(wide, _mm256_set1_epi16(0x80)), 8);
    __m256i rest = _mm256_slli_epi16(_mm256_and_si256(wide, _mm256_set1_epi16(0x7F)), 7);
    return (vec)_mm512_cvtph_ps(_mm256_or_si256(sign, rest)) * 256.0f;
#else
    return load8_e4m3(p);  // LANES is 8
#endif
}

// Have a vector rounded here: whether a compiler fuses a product into a sum that follows depends on what is around.
#ifdef __x86_64__
#define ROUNDED(v) __asm__("" : "+v"(v))
#else
#define ROUNDED(v) __asm__("" : "+m"(v))
#endif

// What a packed matrix holds, and what multiplies it.
enum { FLOATS, HALVES, PAIRS_AVX512, PAIRS_AMX, FP8, INT8, INT8_VNNI, INT8_AMX };

// A matrix [out, in], zero-padded; bias is [padded out] float32 or NULL.  FLOATS, HALVES (bfloat16) and FP8 (E4M3, and a
// scale for each output) are packed as [ceil(out / PANEL), in, PANEL] and multiply rows in float32; for PAIRS see
// pairs_cpu.c, for INT8 int8_cpu.c.
typedef struct {
    const void *data;
    const float *bias;
    int64_t num_out, num_in, kind;
    const float *scales;  // [padded out], of FP8 and INT8: zeros behind the outputs
    const int32_t *sums;  // [padded out], of INT8: of the numbers of each output
} Matrix;

// What a product needs beside its operands.
typedef struct {
    float *scratch;    // this thread's: an unpacked panel
    uint16_t *halves;  // the team's: rows in bfloat16, padded_in(in) each, or in int8, int8_stride(in) bytes each
} Work;

INLINE int64_t padded(int64_t n) { return (n + PANEL - 1) / PANEL * PANEL; }

#include "pairs_cpu.c"
#include "int8_cpu.c"

INLINE int64_t weight_bytes(int kind) { return kind == FLOATS ? 4 : kind == HALVES ? 2 : 1; }

INLINE vec load_weights(const void *p, int64_t i, int kind) {
    if (kind == FLOATS) return *(const vec *)((const float *)p + i);
    if (kind == FP8) return load_e4m3((const uint8_t *)p + i);
    return (vec)(__builtin_convertvector(*(const hvec *)((const uint16_t *)p + i), uvec) << 16);
}

// The part of a product that one call of `tile` computes: columns from `column` on, weights from `data` on.
typedef struct {
    const float *x;
    float *y;
    const void *data;
    const float *bias, *scales;
    int64_t x_stride, y_stride, k_len, column;
    int is_added;
} Tile;

// y[rows, PANEL * panels) (+)= x w + bias: `rows` and `panels` are constants at each call, the sums stay in registers.
INLINE void tile(int rows, int panels, Tile t, int64_t row, int kind) {
    const float *x = t.x + row * t.x_stride;
    vec acc[6][4][2];
    for (int i = 0; i < rows; i++)
        for (int p = 0; p < panels; p++) acc[i][p][0] = acc[i][p][1] = (vec){};
    for (int64_t k = 0; k < t.k_len; k++) {
        for (int p = 0; p < panels; p++) {
            int64_t at = (p * t.k_len + k) * PANEL;
            vec first = load_weights(t.data, at, kind), second = load_weights(t.data, at + LANES, kind);
            for (int i = 0; i < rows; i++) {
                acc[i][p][0] += x[i * t.x_stride + k] * first;
                acc[i][p][1] += x[i * t.x_stride + k] * second;
            }
        }
    }
    for (int i = 0; i < rows; i++) {
        for (int p = 0; p < 2 * panels; p++) {
            int64_t column = t.column + p * LANES;
            vec *target = (vec *)(t.y + (row + i) * t.y_stride + column), sum = acc[i][p / 2][p % 2];
            if (t.scales) {
                sum *= *(const vec *)(t.scales + column);
                ROUNDED(sum);
            }
            if (t.bias) sum += *(const vec *)(t.bias + column);
            *target = t.is_added ? *target + sum : sum;
        }
    }
}

// One panel for `num_rows` rows, in tiles of 6 and a rest of 3 to 5: shorter ones would wait for their own sums.
INLINE void tile_rows(Tile t, int64_t num_rows, int kind) {
    int64_t row = 0;
    for (; num_rows - row >= 9 || num_rows - row == 6; row += 6) tile(6, 1, t, row, kind);
    if (num_rows - row >= 7) { tile(4, 1, t, row, kind); row += 4; }
    switch (num_rows - row) {
        case 5: tile(5, 1, t, row, kind); break;
        case 4: tile(4, 1, t, row, kind); break;
        case 3: tile(3, 1, t, row, kind); break;
        case 2: tile(2, 1, t, row, kind); break;
        case 1: tile(1, 1, t, row, kind); break;
    }
}

// A panel in float32, so that many rows do not unpack the same weights again; the same bits either way.
INLINE void unpack_panel(const void *data, int64_t k_len, float *out, int kind) {
    for (int64_t i = 0; i < k_len * PANEL; i += LANES) *(vec *)(out + i) = load_weights(data, i, kind);
}

// Panels [first, last) for all rows; `scratch` holds an unpacked panel.
INLINE void multiply_panels(Tile t, const Matrix *w, int64_t num_rows, int64_t first, int64_t last, float *scratch, int kind) {
    for (int64_t p = first; p < last; p++) {
        t.data = (const char *)w->data + p * t.k_len * PANEL * weight_bytes(kind);
        t.column = p * PANEL;
        if (num_rows == 1 && p + 4 <= last) { tile(1, 4, t, 0, kind); p += 3; }
        else if (num_rows == 2 && p + 2 <= last) { tile(2, 2, t, 0, kind); p += 1; }
        else if (num_rows < 8 || kind == FLOATS) tile_rows(t, num_rows, kind);
        else {
            unpack_panel(t.data, t.k_len, scratch, kind);
            t.data = scratch;
            tile_rows(t, num_rows, FLOATS);
        }
    }
}

// y [num_rows, padded(out)] (+)= x [num_rows, in] w^T + bias; called by all threads of the team.
static void multiply(const float *x, int64_t x_stride, int64_t num_rows, const Matrix *w, float *y, int is_added, Work work) {
    int64_t num_panels = padded(w->num_out) / PANEL;
    if (w->kind >= INT8) {
        multiply_int8(x, x_stride, num_rows, w, y, is_added, (int8_t *)work.halves);
        return;
    }
    if (w->kind == PAIRS_AVX512 || w->kind == PAIRS_AMX) {
        multiply_pairs(x, x_stride, num_rows, w, y, padded(w->num_out), is_added, work.halves);
        return;
    }
    Tile t = {x, y, NULL, w->bias, w->scales, x_stride, padded(w->num_out), w->num_in, 0, is_added};
#pragma omp for schedule(static)
    for (int64_t first = 0; first < num_panels; first += 4) {
        int64_t last = first + 4 < num_panels ? first + 4 : num_panels;
        if (w->kind == HALVES) multiply_panels(t, w, num_rows, first, last, work.scratch, HALVES);
        else if (w->kind == FP8) multiply_panels(t, w, num_rows, first, last, work.scratch, FP8);
        else multiply_panels(t, w, num_rows, first, last, work.scratch, FLOATS);
    }
}

// y [num_rows, padded(out)] = x [num_rows, in] w^T + bias, alone.  Returns 0, or 1 if memory ran out.
int multiply_rows(const float *x, int64_t num_rows, const Matrix *w, float *y, int threads) {
    int64_t stride = padded_in(w->num_in) * 2;
    if (stride < int8_stride(w->num_in)) stride = int8_stride(w->num_in);
    uint16_t *halves = aligned_alloc(64, num_rows * stride);
    int failed = !halves;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        Work work = {malloc(w->num_in * PANEL * sizeof(float)), halves};
        if (!work.scratch) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp barrier
        if (!failed) multiply(x, w->num_in, num_rows, w, y, 0, work);
        end_pairs();
        free(work.scratch);
    }
    free(halves);
    return failed;
}
