// Products of rows of bfloat16 with packed matrices of bfloat16, summed in float32, by the instructions that some
// processors have for them: tiles (AMX) and dot products of pairs (AVX512-BF16).
//
// A matrix [out, in] is packed as [ceil(out / 32), ceil(in / 32), 2, 16, 16, 2]: panels of 32 outputs, blocks of 32
// inputs, and in each two tiles of 16 pairs of inputs by 16 outputs.  The sum of an output goes over the blocks in
// order (AMX: to it is added what a block's even and odd inputs come to; AVX512: each pair), whatever the number of rows.
#pragma once
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif
#if defined(__AVX512BF16__) && defined(__AMX_BF16__) && defined(__linux__)
#define HAS_AMX 1
#include <sys/syscall.h>
#include <unistd.h>
#endif
// Before tiles are loaded: the compiler does not know that they read memory.
#define STORED() __asm__ volatile("" ::: "memory")
#define BLOCK 32                      // inputs of a block, and outputs of a panel of pairs
#define BLOCK_SIZE (BLOCK * BLOCK)    // elements of a block
#define MOST_AHEAD (96 << 10)         // bytes of weights that are fetched ahead of use

INLINE int64_t padded_in(int64_t n) { return (n + BLOCK - 1) / BLOCK * BLOCK; }

// The kinds of packed pairs that this process can multiply, as bits 1 << kind.  Asks the system for the tiles' state.
int64_t pair_kinds(void) {
    int64_t kinds = 0;
#ifdef __AVX512BF16__
    kinds |= 1 << PAIRS_AVX512;
#endif
#ifdef HAS_AMX
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, TILE_DATA = 18 };
    if (!syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA)) kinds |= 1 << PAIRS_AMX;
#endif
    return kinds;
}

#ifdef __AVX512BF16__
// y[0, padded_in(n)) = x[0, n) rounded to bfloat16, then zeros.
INLINE void round_row(const float *x, uint16_t *y, int64_t n) {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) _mm256_storeu_si256((__m256i *)(y + i), (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(x + i)));
    for (int64_t left = n - i; i < padded_in(n); i += 16, left = 0)
        _mm256_storeu_si256((__m256i *)(y + i), (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps((1 << left) - 1, x + i)));
}

// y[rows, 32 * panels) (+)= x w + bias: `rows` and `panels` are constants at each call.
INLINE void pair_tile(int rows, int panels, const uint16_t *x, int64_t x_stride, const Matrix *w, int64_t panel, float *y,
                      int64_t y_stride, int is_added) {
    int64_t num_blocks = padded_in(w->num_in) / BLOCK;
    const uint16_t *data = (const uint16_t *)w->data + panel * num_blocks * BLOCK_SIZE;
    __m512 acc[6][4][2];
    for (int i = 0; i < rows; i++)
        for (int p = 0; p < panels; p++) acc[i][p][0] = acc[i][p][1] = _mm512_setzero_ps();
    for (int64_t k = 0; k < num_blocks; k++) {
        for (int j = 0; j < 16; j++) {
            for (int p = 0; p < panels; p++) {
                const uint16_t *at = data + (p * num_blocks + k) * BLOCK_SIZE + j * BLOCK;
                __m512bh first = (__m512bh)_mm512_load_si512(at), second = (__m512bh)_mm512_load_si512(at + BLOCK_SIZE / 2);
                for (int i = 0; i < rows; i++) {
                    int32_t pair;
                    memcpy(&pair, x + i * x_stride + k * BLOCK + 2 * j, 4);
                    acc[i][p][0] = _mm512_dpbf16_ps(acc[i][p][0], (__m512bh)_mm512_set1_epi32(pair), first);
                    acc[i][p][1] = _mm512_dpbf16_ps(acc[i][p][1], (__m512bh)_mm512_set1_epi32(pair), second);
                }
            }
        }
    }
    for (int i = 0; i < rows; i++) {
        for (int p = 0; p < 2 * panels; p++) {
            int64_t column = panel * BLOCK + p * 16;
            __m512 sum = acc[i][p / 2][p % 2];
            if (w->bias) sum += _mm512_loadu_ps(w->bias + column);
            if (is_added) sum += _mm512_loadu_ps(y + i * y_stride + column);
            _mm512_storeu_ps(y + i * y_stride + column, sum);
        }
    }
}

// Panels [first, last), two at most, for all rows.
static void multiply_pairs_avx512(const uint16_t *x, int64_t x_stride, int64_t num_rows, const Matrix *w, int64_t first,
                                  int64_t last, float *y, int64_t y_stride, int is_added) {
    if (num_rows <= 2 && last - first == 2) {
        if (num_rows == 1) pair_tile(1, 2, x, x_stride, w, first, y, y_stride, is_added);
        else pair_tile(2, 2, x, x_stride, w, first, y, y_stride, is_added);
        return;
    }
    for (int64_t p = first; p < last; p++) {
        int64_t row = 0;
        for (; row + 6 <= num_rows; row += 6) pair_tile(6, 1, x + row * x_stride, x_stride, w, p, y + row * y_stride, y_stride, is_added);
        const uint16_t *rest = x + row * x_stride;
        float *target = y + row * y_stride;
        switch (num_rows - row) {
            case 5: pair_tile(5, 1, rest, x_stride, w, p, target, y_stride, is_added); break;
            case 4: pair_tile(4, 1, rest, x_stride, w, p, target, y_stride, is_added); break;
            case 3: pair_tile(3, 1, rest, x_stride, w, p, target, y_stride, is_added); break;
            case 2: pair_tile(2, 1, rest, x_stride, w, p, target, y_stride, is_added); break;
            case 1: pair_tile(1, 1, rest, x_stride, w, p, target, y_stride, is_added); break;
        }
    }
}
#endif

#ifdef HAS_AMX
// Tiles 0 to 3 hold sums, 4 and 5 rows, 6 and 7 (and 5) weights.  Of up to 16 rows the four sums are of as many tiles of
// weights; of 17 to 32 they are of two halves of the rows by two tiles of weights.
static void shape_tiles(int64_t num_rows) {
    struct __attribute__((packed)) {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } shape = {.palette = 1};
    for (int i = 0; i < 8; i++) shape.row_bytes[i] = 64, shape.rows[i] = 16;
    if (num_rows <= 16)
        for (int i = 0; i < 5; i++) shape.rows[i] = num_rows;
    else
        shape.rows[2] = shape.rows[3] = shape.rows[5] = num_rows - 16;
    __asm__ volatile("" ::"r"(&shape) : "memory");  // the compiler knows of its first bytes alone
    _tile_loadconfig(&shape);
}

// Sums begin with what is there, or with the bias: a row of it for each.
#define BEGIN(tile, at, column)                                                                                        \
    do {                                                                                                               \
        if (is_added) _tile_loadd(tile, at, y_stride * 4);                                                             \
        else if (w->bias) _tile_loadd(tile, w->bias + (column), 0);                                                    \
        else _tile_zero(tile);                                                                                         \
    } while (0)

INLINE void fetch_lines(const char *at, int64_t lines) {
    for (int64_t i = 0; i < lines; i++) _mm_prefetch(at + i * 64, _MM_HINT_T1);
}

// One or two panels for up to 16 rows.
INLINE void few_rows(int panels, const uint16_t *x, int64_t x_stride, const Matrix *w, int64_t panel, float *y, int64_t y_stride,
                     int is_added) {
    int64_t num_blocks = padded_in(w->num_in) / BLOCK, column = panel * BLOCK, ahead = 2 * num_blocks * BLOCK_SIZE * 2;
    const uint16_t *data = (const uint16_t *)w->data + panel * num_blocks * BLOCK_SIZE, *other = data + num_blocks * BLOCK_SIZE;
    if (ahead > MOST_AHEAD) ahead = MOST_AHEAD;
    y += column;
    STORED();
    BEGIN(0, y, column);
    BEGIN(1, y + 16, column + 16);
    if (panels == 2) {
        BEGIN(2, y + 32, column + 32);
        BEGIN(3, y + 48, column + 48);
    }
    for (int64_t k = 0; k < num_blocks; k++, data += BLOCK_SIZE, other += BLOCK_SIZE) {
        fetch_lines((const char *)data + ahead, BLOCK_SIZE * 2 / 64);
        _tile_loadd(4, x + k * BLOCK, x_stride * 2);
        _tile_loadd(6, data, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, data + BLOCK_SIZE / 2, 64);
        _tile_dpbf16ps(1, 4, 7);
        if (panels == 1) continue;
        fetch_lines((const char *)other + ahead, BLOCK_SIZE * 2 / 64);
        _tile_loadd(5, other, 64);
        _tile_dpbf16ps(2, 4, 5);
        _tile_loadd(6, other + BLOCK_SIZE / 2, 64);
        _tile_dpbf16ps(3, 4, 6);
    }
    _tile_stored(0, y, y_stride * 4);
    _tile_stored(1, y + 16, y_stride * 4);
    if (panels == 1) return;
    _tile_stored(2, y + 32, y_stride * 4);
    _tile_stored(3, y + 48, y_stride * 4);
}

// One panel for 17 to 32 rows; `next` is fetched meanwhile, so many lines with each block.
static void many_rows(const uint16_t *x, int64_t x_stride, const Matrix *w, int64_t panel, float *y, int64_t y_stride,
                      int is_added, const char *next, int64_t lines) {
    int64_t num_blocks = padded_in(w->num_in) / BLOCK, column = panel * BLOCK;
    const uint16_t *data = (const uint16_t *)w->data + panel * num_blocks * BLOCK_SIZE;
    y += column;
    float *lower = y + 16 * y_stride;
    STORED();
    BEGIN(0, y, column);
    BEGIN(1, y + 16, column + 16);
    BEGIN(2, lower, column);
    BEGIN(3, lower + 16, column + 16);
    for (int64_t k = 0; k < num_blocks; k++, data += BLOCK_SIZE, next += lines * 64) {
        _tile_loadd(6, data, 64);
        _tile_loadd(4, x + k * BLOCK, x_stride * 2);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, data + BLOCK_SIZE / 2, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, x + 16 * x_stride + k * BLOCK, x_stride * 2);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        fetch_lines(next, lines);
    }
    _tile_stored(0, y, y_stride * 4);
    _tile_stored(1, y + 16, y_stride * 4);
    _tile_stored(2, lower, y_stride * 4);
    _tile_stored(3, lower + 16, y_stride * 4);
}

// Panels [first, last), two at most, for all rows.
static void multiply_pairs_amx(const uint16_t *x, int64_t x_stride, int64_t num_rows, const Matrix *w, int64_t first, int64_t last,
                               float *y, int64_t y_stride, int is_added) {
    int64_t whole = num_rows % 32 > 16 ? num_rows : num_rows / 32 * 32, rest = num_rows - whole;
    int64_t num_tiles = (whole + 31) / 32, bytes = padded_in(w->num_in) * BLOCK * 2;
    int64_t lines = num_tiles ? (bytes / 64 + num_tiles - 1) / num_tiles / (padded_in(w->num_in) / BLOCK) : 0;
    for (int64_t p = first; p < last && whole; p++) {
        const char *next = (const char *)w->data + (p + 1) * bytes;
        if (whole >= 32) shape_tiles(32);
        for (int64_t row = 0, i = 0; row < whole; row += 32, i++) {
            if (row + 32 > whole) shape_tiles(whole - row);
            many_rows(x + row * x_stride, x_stride, w, p, y + row * y_stride, y_stride, is_added,
                      next + i * bytes / num_tiles, lines);
        }
    }
    if (rest) {
        shape_tiles(rest);
        x += whole * x_stride;
        if (last - first == 2) few_rows(2, x, x_stride, w, first, y + whole * y_stride, y_stride, is_added);
        else few_rows(1, x, x_stride, w, first, y + whole * y_stride, y_stride, is_added);
    }
    if (!is_added || !w->bias) return;
    for (int64_t row = 0; row < num_rows; row++)
        for (int64_t i = first * BLOCK; i < last * BLOCK; i++) y[row * y_stride + i] += w->bias[i];
}
#endif

// Give back what a thread has used for products of pairs.
INLINE void end_pairs(void) {
#ifdef HAS_AMX
    _tile_release();
#endif
}

// y [num_rows, padded(out)] (+)= x [num_rows, in] w^T + bias; called by all threads of the team.
static void multiply_pairs(const float *x, int64_t x_stride, int64_t num_rows, const Matrix *w, float *y, int64_t y_stride,
                           int is_added, uint16_t *halves) {
#ifdef __AVX512BF16__
    int64_t num_panels = (w->num_out + BLOCK - 1) / BLOCK, stride = padded_in(w->num_in);
#pragma omp for schedule(static)
    for (int64_t row = 0; row < num_rows; row++) round_row(x + row * x_stride, halves + row * stride, w->num_in);
#pragma omp for schedule(static)
    for (int64_t first = 0; first < num_panels; first += 2) {
        int64_t last = first + 2 < num_panels ? first + 2 : num_panels;
#ifdef HAS_AMX
        if (w->kind == PAIRS_AMX) {
            multiply_pairs_amx(halves, stride, num_rows, w, first, last, y, y_stride, is_added);
            continue;
        }
#endif
        multiply_pairs_avx512(halves, stride, num_rows, w, first, last, y, y_stride, is_added);
    }
#endif
}
