// A step of rows of the decode table on the CPU: checked, laid out, decoded and drawn in one call, from the columns.
#include "decoder_step_cpu.c"
#include "sample_cpu.c"

// A column: where row 0 is, and bytes from a row to the next; elements need not be aligned.
typedef struct {
    const char *data;
    int64_t stride;
} Column;

typedef struct {
    Column tokens;  // uint32
    Column positions, kv_lens;  // int64
    Column pages;              // uint32 [width], each row's side by side, rows a multiple of 4 bytes apart
    Column choices;            // Choice
    int64_t num_rows, width;
} Rows;

// What a row may name.
typedef struct {
    int64_t vocab, max_position, num_pages;
} Bounds;

INLINE uint32_t u32_at(Column c, int64_t row) {
    uint32_t value;
    memcpy(&value, c.data + row * c.stride, sizeof value);
    return value;
}

INLINE int64_t i64_at(Column c, int64_t row) {
    int64_t value;
    memcpy(&value, c.data + row * c.stride, sizeof value);
    return value;
}

// Each token's place in the pool and what it attends to; `longs` holds 4 n, `ints` 4 n + 2.  Returns 1 if a row names
// what there is not.
static int lay_out(const Rows *r, const Bounds *bounds, int64_t page_size, Step *s, int64_t *longs, int32_t *ints) {
    int64_t n = r->num_rows, *tokens = longs, *positions = longs + n, *slots = longs + 2 * n, *rows = longs + 3 * n;
    int32_t *qo_indptr = ints, *page_indptr = ints + n + 1, *kv_lens = ints + 2 * n + 2, *causal = ints + 3 * n + 2;
    int64_t max_kv_len = 0, stride = r->pages.stride / 4;
    for (int64_t i = 0; i < n; i++) {
        const uint32_t *pages = (const uint32_t *)(r->pages.data + i * r->pages.stride);
        int64_t kv_len = i64_at(r->kv_lens, i);
        tokens[i] = u32_at(r->tokens, i);
        positions[i] = i64_at(r->positions, i);
        if (kv_len < 0 || kv_len / page_size >= r->width) return 1;
        if (tokens[i] >= bounds->vocab || positions[i] < 0 || positions[i] >= bounds->max_position) return 1;
        for (int64_t p = 0; p <= kv_len / page_size; p++)
            if (pages[p] >= bounds->num_pages) return 1;
        slots[i] = pages[kv_len / page_size] * page_size + kv_len % page_size;
        rows[i] = qo_indptr[i] = i;
        page_indptr[i] = i * stride;
        kv_lens[i] = kv_len + 1;
        causal[i] = 1;
        if (kv_len >= max_kv_len) max_kv_len = kv_len + 1;
    }
    qo_indptr[n] = n;
    page_indptr[n] = n * stride;
    s->tokens = tokens, s->positions = positions, s->slots = slots, s->rows = rows;
    s->num_tokens = s->num_rows = n;
    s->ragged = (Ragged){qo_indptr, page_indptr, (const int32_t *)r->pages.data, kv_lens, causal, NULL, NULL, n, max_kv_len};
    return 0;
}

// Whether the greatest of x[0, n) is a number, as is each that it was compared with.
INLINE int is_finite_row(const float *x, int64_t n) {
    v8 tops = (v8){} - INFINITY;
    i8 are_odd = {};
    float top = -INFINITY;
    int64_t i = 0, is_odd = 0;
    for (; i + 8 <= n; i += 8) {
        v8 values = *(const v8u *)(x + i);
        are_odd |= values != values;
        tops = max8(values, tops);
    }
    for (; i < n; i++) {
        is_odd |= x[i] != x[i];
        top = x[i] > top ? x[i] : top;
    }
    for (int j = 0; j < 8; j++) {
        is_odd |= are_odd[j];
        top = tops[j] > top ? tops[j] : top;
    }
    return !is_odd && top > -INFINITY && top < INFINITY;
}

// Zeroes the rows of x [num_rows, vocab] whose greatest is not finite, and marks them in `is_bad`; how many.
int64_t zero_bad_rows(float *x, int64_t stride, int64_t vocab, int64_t num_rows, uint8_t *is_bad) {
    int64_t num_bad = 0;
    for (int64_t i = 0; i < num_rows; i++) {
        is_bad[i] = !is_finite_row(x + i * stride, vocab);
        if (!is_bad[i]) continue;
        memset(x + i * stride, 0, vocab * sizeof(float));
        num_bad++;
    }
    return num_bad;
}

// Run the rows, whose adapters `s` names, and draw from their logits [num_rows, padded(vocab)]: tokens[r], 0 for rows
// marked in `is_special` (or NULL), whose draws are the caller's.  Rows whose logits are not finite are counted in
// `num_bad` and marked in is_bad[r], their logits and tokens 0.
// Returns 0, 1 if memory ran out, or 2 if a row names what there is not: nothing is computed then.
int decode_rows(const Model *m, const Rows *r, const Bounds *bounds, Step *s, float *work, float *logits, int threads,
                const uint8_t *is_special, int64_t *tokens, uint8_t *is_bad, int64_t *num_bad) {
    int64_t n = r->num_rows, vocab = bounds->vocab, stride = padded(m->lm_head.num_out);
    int64_t *longs = malloc(4 * n * sizeof(int64_t) + (4 * n + 2) * sizeof(int32_t));
    float *scratch = malloc((3 * vocab + 16) * sizeof(float));
    int failed = !longs || !scratch;
    if (!failed && lay_out(r, bounds, m->page_size, s, longs, (int32_t *)(longs + 4 * n))) failed = 2;
    if (!failed) failed = decoder_step(m, s, work, logits, threads);
    *num_bad = failed ? 0 : zero_bad_rows(logits, stride, vocab, n, is_bad);
    for (int64_t i = 0; i < n && !failed; i++) {
        Choice choice;
        tokens[i] = 0;
        if (is_bad[i] || (is_special && is_special[i])) continue;
        memcpy(&choice, r->choices.data + i * r->choices.stride, sizeof choice);
        tokens[i] = draw(logits + i * stride, vocab, &choice, scratch, scratch + (vocab + 7) / 8 * 8);
    }
    free(scratch);
    free(longs);
    return failed;
}
