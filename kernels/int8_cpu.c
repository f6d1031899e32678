// Products of rows with packed matrices of int8: one scale for each output and, found anew each time, for each row.
//
// A row x becomes round(x / scale) with scale = max |x| / 127, an output the exact sum of integers times both scales: it
// is the same in any company, with any number of threads, and by any of the instructions.
//
// INT8 matrices lie as those of floats do.  INT8_VNNI and INT8_AMX read one packing, [ceil(out / 32), ceil(in / 64), 2, 16,
// 16, 4]: panels of 32 outputs, blocks of 64 inputs, and in each two tiles of 16 fours of inputs by 16 outputs.
#pragma once
#define INT8_BLOCK 64              // inputs of a block
#define INT8_BLOCK_BYTES (64 * 32)
#define INT8_PANELS 4              // panels that a thread takes at once
#define INT8_EXACT 1024            // 1024 * 128 * 127 is below 2^24
#define INT8_FEW_ROWS 3            // so many rows go by dot products, more by tiles
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef int16_t svec __attribute__((vector_size(2 * LANES)));
typedef int8_t bvec __attribute__((vector_size(LANES), aligned(1)));
// By way of int16: in one step GCC converts lane by lane.
#define WIDENED(bytes) __builtin_convertvector(__builtin_convertvector(bytes, svec), ivec)

INLINE int64_t padded_int8(int64_t n) { return (n + INT8_BLOCK - 1) / INT8_BLOCK * INT8_BLOCK; }

// Bytes from a quantized row to the next: its numbers, zeros up to a whole block, and its scale.
INLINE int64_t int8_stride(int64_t num_in) { return padded_int8(num_in) + 64; }

INLINE float scale_of(const int8_t *row, int64_t num_in) { return *(const float *)(row + padded_int8(num_in)); }

// The kinds of int8 matrices that this process can multiply, as bits 1 << kind.
int64_t int8_kinds(void) {
    int64_t kinds = 1 << INT8;
#ifdef __AVX512VNNI__
    kinds |= 1 << INT8_VNNI;
#if defined(HAS_AMX) && defined(__AMX_INT8__)
    if (pair_kinds() >> PAIRS_AMX & 1) kinds |= 1 << INT8_AMX;
#endif
#endif
    return kinds;
}

// A row that is not finite gets a scale of NaN, so that all its outputs are.
INLINE void quantize_row(const float *x, int8_t *y, int64_t n) {
    const float magic = 12582912.0f;  // added to a float it rounds to nearest, and the integer lands in the low bits
    v8 tops = {};
    i8 are_odd = {};
    float top = 0;
    int64_t i = 0, is_odd = 0;
    for (; i + 8 <= n; i += 8) {
        v8 v = *(const v8u *)(x + i);
        are_odd |= v - v != 0;
        tops = max8((v8)((i8)v & 0x7FFFFFFF), tops);
    }
    for (; i < n; i++) {
        is_odd |= x[i] - x[i] != 0;
        top = fabsf(x[i]) > top ? fabsf(x[i]) : top;
    }
    for (int j = 0; j < 8; j++) {
        is_odd |= are_odd[j];
        top = tops[j] > top ? tops[j] : top;
    }
    int is_zero = is_odd || top < 1e-30f;
    float factor = is_zero ? 0 : 127 / top;
    *(float *)(y + padded_int8(n)) = is_odd ? NAN : is_zero ? 0 : top / 127;
    if (is_zero) { memset(y, 0, padded_int8(n)); return; }
    for (i = 0; i + LANES <= n; i += LANES)
        *(bvec *)(y + i) = __builtin_convertvector((ivec)(*(const vec *)(x + i) * factor + magic) - 0x4B400000, bvec);
    for (; i < n; i++) {
        float rounded = __builtin_fmaf(x[i], factor, magic);
        int32_t bits;
        memcpy(&bits, &rounded, 4);
        y[i] = bits - 0x4B400000;
    }
    memset(y + n, 0, padded_int8(n) - n);
}

// y[column, + LANES) (+)= the sums of a row times its scale and those of the outputs, + bias.
INLINE void scale_sums(ivec sums, float scale, const Matrix *w, int64_t column, float *y, int is_added) {
    vec *target = (vec *)(y + column), found = __builtin_convertvector(sums, vec) * (*(const vec *)(w->scales + column) * scale);
    ROUNDED(found);
    if (w->bias) found += *(const vec *)(w->bias + column);
    *target = is_added ? *target + found : found;
}

// The product of some rows with some panels; strides in bytes and in floats.
typedef struct {
    const int8_t *x;
    int64_t x_stride;
    const Matrix *w;
    float *y;
    int64_t y_stride;
    int is_added;
} Int8Product;

// One panel of INT8 by `rows` rows, a constant at each call.  Sums of INT8_EXACT products are whole numbers that a float
// has all of: so far they are added up as floats, which is faster than integers are.
INLINE void int8_tile(int rows, Int8Product p, int64_t row, int64_t panel) {
    const Matrix *w = p.w;
    const int8_t *x = p.x + row * p.x_stride, *data = (const int8_t *)w->data + panel * w->num_in * PANEL;
    ivec acc[6][2] = {};
    for (int64_t begin = 0; begin < w->num_in; begin += INT8_EXACT) {
        int64_t end = begin + INT8_EXACT < w->num_in ? begin + INT8_EXACT : w->num_in;
        vec part[6][2];
        for (int i = 0; i < rows; i++) part[i][0] = part[i][1] = (vec){};
        for (int64_t k = begin; k < end; k++) {
            const bvec *at = (const bvec *)(data + k * PANEL);
            vec first = __builtin_convertvector(WIDENED(at[0]), vec);
            vec second = __builtin_convertvector(WIDENED(at[1]), vec);
            for (int i = 0; i < rows; i++) {
                float value = x[i * p.x_stride + k];
                part[i][0] += value * first;
                part[i][1] += value * second;
            }
        }
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < 2; j++) acc[i][j] += __builtin_convertvector(part[i][j], ivec);
    }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < 2; j++)
            scale_sums(acc[i][j], scale_of(x + i * p.x_stride, w->num_in), w, panel * PANEL + j * LANES,
                       p.y + (row + i) * p.y_stride, p.is_added);
}

static void multiply_int8_plain(Int8Product p, int64_t num_rows, int64_t first, int64_t last) {
    for (int64_t panel = first; panel < last; panel++) {
        int64_t row = 0;
        for (; row + 6 <= num_rows; row += 6) int8_tile(6, p, row, panel);
        for (; row + 3 <= num_rows; row += 3) int8_tile(3, p, row, panel);
        for (; row < num_rows; row++) int8_tile(1, p, row, panel);
    }
}

#ifdef __AVX512VNNI__
// `panels` panels by `rows` rows, constants at each call.  The instruction wants one side unsigned: rows are taken with 128
// added, which `sums` of the outputs take away again.
INLINE void vnni_tile(int rows, int panels, Int8Product p, int64_t row, int64_t panel) {
    const Matrix *w = p.w;
    int64_t num_blocks = padded_int8(w->num_in) / INT8_BLOCK;
    const int8_t *x = p.x + row * p.x_stride, *data = (const int8_t *)w->data + panel * num_blocks * INT8_BLOCK_BYTES;
    __m512i acc[6][INT8_PANELS][2];
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < panels; j++) acc[i][j][0] = acc[i][j][1] = _mm512_setzero_si512();
    for (int64_t k = 0; k < num_blocks; k++) {
        for (int four = 0; four < 16; four++) {
            __m512i values[6];
            for (int i = 0; i < rows; i++) {
                int32_t bits;
                memcpy(&bits, x + i * p.x_stride + k * INT8_BLOCK + 4 * four, 4);
                values[i] = _mm512_set1_epi32(bits ^ 0x80808080);
            }
            for (int j = 0; j < panels; j++) {
                const int8_t *at = data + (j * num_blocks + k) * INT8_BLOCK_BYTES + four * 64;
                __m512i one = _mm512_load_si512(at), other = _mm512_load_si512(at + INT8_BLOCK_BYTES / 2);
                for (int i = 0; i < rows; i++) {
                    acc[i][j][0] = _mm512_dpbusd_epi32(acc[i][j][0], values[i], one);
                    acc[i][j][1] = _mm512_dpbusd_epi32(acc[i][j][1], values[i], other);
                }
            }
        }
    }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < 2 * panels; j++) {
            int64_t column = panel * 32 + j * 16;
            ivec sums = (ivec)_mm512_sub_epi32(acc[i][j / 2][j % 2], _mm512_slli_epi32(_mm512_loadu_si512(w->sums + column), 7));
            scale_sums(sums, scale_of(x + i * p.x_stride, w->num_in), w, column, p.y + (row + i) * p.y_stride, p.is_added);
        }
}

static void multiply_int8_vnni(Int8Product p, int64_t num_rows, int64_t first, int64_t last) {
    if (num_rows <= 2 && last - first == INT8_PANELS) {
        if (num_rows == 1) vnni_tile(1, INT8_PANELS, p, 0, first);
        else vnni_tile(2, INT8_PANELS, p, 0, first);
        return;
    }
    for (int64_t panel = first; panel < last; panel++) {
        int64_t row = 0;
        for (; row + 6 <= num_rows; row += 6) vnni_tile(6, 1, p, row, panel);
        switch (num_rows - row) {
            case 5: vnni_tile(5, 1, p, row, panel); break;
            case 4: vnni_tile(4, 1, p, row, panel); break;
            case 3: vnni_tile(3, 1, p, row, panel); break;
            case 2: vnni_tile(2, 1, p, row, panel); break;
            case 1: vnni_tile(1, 1, p, row, panel); break;
        }
    }
}
#endif

#if defined(HAS_AMX) && defined(__AMX_INT8__)
#define INT8_TILES 1
// Sums of `num_rows` rows, `width` to a row and `panels` panels, behind the tiles that hold them.
INLINE void scale_tiles(const int32_t *sums, int64_t width, Int8Product p, int64_t row, int64_t num_rows, int64_t panel, int panels) {
    for (int64_t i = 0; i < num_rows; i++) {
        float scale = scale_of(p.x + (row + i) * p.x_stride, p.w->num_in);
        for (int j = 0; j < 2 * panels; j++)
            scale_sums((ivec)_mm512_loadu_si512(sums + i * width + 16 * j), scale, p.w, panel * 32 + 16 * j, p.y + (row + i) * p.y_stride,
                       p.is_added);
    }
}

// One or two panels for up to 16 rows; see few_rows in pairs_cpu.c.
INLINE void int8_few_rows(int panels, Int8Product p, int64_t row, int64_t num_rows, int64_t panel) {
    int64_t num_blocks = padded_int8(p.w->num_in) / INT8_BLOCK, ahead = 2 * num_blocks * INT8_BLOCK_BYTES;
    const int8_t *data = (const int8_t *)p.w->data + panel * num_blocks * INT8_BLOCK_BYTES, *x = p.x + row * p.x_stride;
    const int8_t *other = data + num_blocks * INT8_BLOCK_BYTES;
    int32_t sums[16 * 64] __attribute__((aligned(64)));
    if (ahead > MOST_AHEAD) ahead = MOST_AHEAD;
    STORED();
    _tile_zero(0);
    _tile_zero(1);
    if (panels == 2) {
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t k = 0; k < num_blocks; k++, data += INT8_BLOCK_BYTES, other += INT8_BLOCK_BYTES) {
        fetch_lines((const char *)data + ahead, INT8_BLOCK_BYTES / 64);
        _tile_loadd(4, x + k * INT8_BLOCK, p.x_stride);
        _tile_loadd(6, data, 64);
        _tile_dpbssd(0, 4, 6);
        _tile_loadd(7, data + INT8_BLOCK_BYTES / 2, 64);
        _tile_dpbssd(1, 4, 7);
        if (panels == 1) continue;
        fetch_lines((const char *)other + ahead, INT8_BLOCK_BYTES / 64);
        _tile_loadd(5, other, 64);
        _tile_dpbssd(2, 4, 5);
        _tile_loadd(6, other + INT8_BLOCK_BYTES / 2, 64);
        _tile_dpbssd(3, 4, 6);
    }
    _tile_stored(0, sums, 256);
    _tile_stored(1, sums + 16, 256);
    if (panels == 2) {
        _tile_stored(2, sums + 32, 256);
        _tile_stored(3, sums + 48, 256);
    }
    STORED();
    scale_tiles(sums, 64, p, row, num_rows, panel, panels);
}

// One panel for 17 to 32 rows; `next` is fetched meanwhile, so many lines with each block.
static void int8_many_rows(Int8Product p, int64_t row, int64_t num_rows, int64_t panel, const char *next, int64_t lines) {
    int64_t num_blocks = padded_int8(p.w->num_in) / INT8_BLOCK;
    const int8_t *data = (const int8_t *)p.w->data + panel * num_blocks * INT8_BLOCK_BYTES, *x = p.x + row * p.x_stride;
    int32_t sums[32 * 32] __attribute__((aligned(64)));
    STORED();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t k = 0; k < num_blocks; k++, data += INT8_BLOCK_BYTES, next += lines * 64) {
        _tile_loadd(6, data, 64);
        _tile_loadd(4, x + k * INT8_BLOCK, p.x_stride);
        _tile_dpbssd(0, 4, 6);
        _tile_loadd(7, data + INT8_BLOCK_BYTES / 2, 64);
        _tile_dpbssd(1, 4, 7);
        _tile_loadd(5, x + 16 * p.x_stride + k * INT8_BLOCK, p.x_stride);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
        fetch_lines(next, lines);
    }
    _tile_stored(0, sums, 128);
    _tile_stored(1, sums + 16, 128);
    _tile_stored(2, sums + 16 * 32, 128);
    _tile_stored(3, sums + 16 * 32 + 16, 128);
    STORED();
    scale_tiles(sums, 32, p, row, num_rows, panel, 1);
}

static void multiply_int8_amx(Int8Product p, int64_t num_rows, int64_t first, int64_t last) {
    int64_t whole = num_rows % 32 > 16 ? num_rows : num_rows / 32 * 32, rest = num_rows - whole;
    int64_t num_tiles = (whole + 31) / 32, num_blocks = padded_int8(p.w->num_in) / INT8_BLOCK, bytes = num_blocks * INT8_BLOCK_BYTES;
    int64_t lines = num_tiles ? (bytes / 64 + num_tiles - 1) / num_tiles / num_blocks : 0;
    for (int64_t panel = first; panel < last && whole; panel++) {
        const char *next = (const char *)p.w->data + (panel + 1) * bytes;
        if (whole >= 32) shape_tiles(32);
        for (int64_t row = 0, i = 0; row < whole; row += 32, i++) {
            int64_t num = whole - row < 32 ? whole - row : 32;
            if (num < 32) shape_tiles(num);
            int8_many_rows(p, row, num, panel, next + i * bytes / num_tiles, lines);
        }
    }
    if (!rest) return;
    shape_tiles(rest);
    for (int64_t panel = first; panel < last; panel += 2) {
        if (last - panel >= 2) int8_few_rows(2, p, whole, rest, panel);
        else int8_few_rows(1, p, whole, rest, panel);
    }
}
#endif

// y [num_rows, padded(out)] (+)= x [num_rows, in] w^T + bias; called by all threads of the team.
static void multiply_int8(const float *x, int64_t x_stride, int64_t num_rows, const Matrix *w, float *y, int is_added, int8_t *rows) {
    int64_t panel_size = w->kind == INT8 ? PANEL : 32, num_panels = (w->num_out + panel_size - 1) / panel_size;
    Int8Product p = {rows, int8_stride(w->num_in), w, y, padded(w->num_out), is_added};
#pragma omp for schedule(static)
    for (int64_t row = 0; row < num_rows; row++) quantize_row(x + row * x_stride, rows + row * p.x_stride, w->num_in);
#pragma omp for schedule(static)
    for (int64_t first = 0; first < num_panels; first += INT8_PANELS) {
        int64_t last = first + INT8_PANELS < num_panels ? first + INT8_PANELS : num_panels;
#ifdef INT8_TILES
        if (w->kind == INT8_AMX && num_rows > INT8_FEW_ROWS) {
            multiply_int8_amx(p, num_rows, first, last);
            continue;
        }
#endif
#ifdef __AVX512VNNI__
        if (w->kind != INT8) {
            multiply_int8_vnni(p, num_rows, first, last);
            continue;
        }
#endif
        multiply_int8_plain(p, num_rows, first, last);
    }
}
