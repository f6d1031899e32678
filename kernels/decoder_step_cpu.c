// A whole decoder step on the CPU in one call, of all native architectures without experts, with weights of float32 or
// bfloat16, activations and sums in float32.  For small models most of a torch step is dispatch; here there is none.
//
// Each output of a matrix product is one chain of fused multiply-adds over k, in order, in every tile shape, so a
// row's logits do not depend on the batch around it, to the last bit.
#pragma once
#include "paged_attention_cpu.c"

#include <stddef.h>

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

// A matrix [out, in] packed as [ceil(out / PANEL), in, PANEL], zero-padded; bias is [padded out] float32 or NULL.
typedef struct {
    const void *data;
    const float *bias;
    int64_t num_out, num_in;
} Matrix;

typedef struct {
    Matrix qkv, out, gate_up, down;
    const float *attn_norm, *mlp_norm, *q_norm, *k_norm;  // NULL: there is no such norm
    const float *attn_post, *mlp_post;                    // norms of what attention and MLP add; NULL: none
    const float *cos, *sin;                               // [max_position, head_dim / 2]
    void *kv;                                             // this layer of the pool
    int64_t window;
} Block;

typedef struct {
    int64_t num_layers, hidden, intermediate, num_heads, num_kv_heads, head_dim, page_size;
    float eps, scale;
    float softcap, embed_scale, residual_scale, logits_scale, logits_softcap;  // a softcap of 0: none
    int32_t is_bf16;      // the packed matrices, the embedding and the pool
    int32_t is_gelu;      // the gate: gelu by tanh, else silu
    int32_t is_row_norm;  // QK norm of all heads of a row together, else of each head
    const void *embed;    // [vocab, hidden]
    const float *norm;
    Matrix lm_head;
    Block *blocks;
} Model;

// A low-rank addition to a matrix's output, (x down^T) up^T, in float32 whatever the model; down.data NULL: none.
typedef struct {
    Matrix down, up;
} LowRank;

typedef struct {
    LowRank qkv, out, gate_up, mlp_down;
} LoraBlock;

// Tokens [first, first + num_tokens) of a step, and rows [first_row, ...) of the wanted, go through an adapter.
typedef struct {
    const LoraBlock *blocks;
    int64_t first, num_tokens, first_row, num_rows;
} Segment;

typedef struct {
    const int64_t *tokens, *positions, *slots, *rows;
    int64_t num_tokens, num_rows;
    Ragged ragged;
    const Segment *segments;
    int64_t num_segments;
    float *lora;  // [num_tokens, padded(the greatest rank)]
    const int64_t *embed_rows;  // rows that read `embeds` in place of their tokens' embeddings
    const float *embeds;        // [num_embeds, hidden]
    int64_t num_embeds;
    float *hidden;  // NULL, or [num_rows, hidden]: the wanted rows behind the final norm
} Step;

INLINE int64_t padded(int64_t n) { return (n + PANEL - 1) / PANEL * PANEL; }

INLINE vec load_weights(const void *p, int64_t i, int is_bf16) {
    if (!is_bf16) return *(const vec *)((const float *)p + i);
    return (vec)(__builtin_convertvector(*(const hvec *)((const uint16_t *)p + i), uvec) << 16);
}

// The part of a product that one call of `tile` computes: columns from `column` on, weights from `data` on.
typedef struct {
    const float *x;
    float *y;
    const void *data;
    const float *bias;
    int64_t x_stride, y_stride, k_len, column;
    int is_added;
} Tile;

// y[rows, PANEL * panels) (+)= x w + bias: `rows` and `panels` are constants at each call, the sums stay in registers.
INLINE void tile(int rows, int panels, Tile t, int64_t row, int is_bf16) {
    const float *x = t.x + row * t.x_stride;
    vec acc[6][4][2];
    for (int i = 0; i < rows; i++)
        for (int p = 0; p < panels; p++) acc[i][p][0] = acc[i][p][1] = (vec){};
    for (int64_t k = 0; k < t.k_len; k++) {
        for (int p = 0; p < panels; p++) {
            int64_t at = (p * t.k_len + k) * PANEL;
            vec first = load_weights(t.data, at, is_bf16), second = load_weights(t.data, at + LANES, is_bf16);
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
            if (t.bias) sum += *(const vec *)(t.bias + column);
            *target = t.is_added ? *target + sum : sum;
        }
    }
}

// One panel for `num_rows` rows, in tiles of 6 and a rest of 3 to 5: shorter ones would wait for their own sums.
INLINE void tile_rows(Tile t, int64_t num_rows, int is_bf16) {
    int64_t row = 0;
    for (; num_rows - row >= 9 || num_rows - row == 6; row += 6) tile(6, 1, t, row, is_bf16);
    if (num_rows - row >= 7) { tile(4, 1, t, row, is_bf16); row += 4; }
    switch (num_rows - row) {
        case 5: tile(5, 1, t, row, is_bf16); break;
        case 4: tile(4, 1, t, row, is_bf16); break;
        case 3: tile(3, 1, t, row, is_bf16); break;
        case 2: tile(2, 1, t, row, is_bf16); break;
        case 1: tile(1, 1, t, row, is_bf16); break;
    }
}

// A panel in float32, so that many rows do not unpack the same weights again; the same bits either way.
INLINE void unpack_panel(const void *data, int64_t k_len, float *out) {
    for (int64_t i = 0; i < k_len * PANEL; i += LANES) *(vec *)(out + i) = load_weights(data, i, 1);
}

// Panels [first, last) for all rows; `scratch` holds an unpacked panel.
INLINE void multiply_panels(Tile t, const Matrix *w, int64_t num_rows, int64_t first, int64_t last, float *scratch, int is_bf16) {
    for (int64_t p = first; p < last; p++) {
        t.data = (const char *)w->data + p * t.k_len * PANEL * (is_bf16 ? 2 : 4);
        t.column = p * PANEL;
        if (num_rows == 1 && p + 4 <= last) { tile(1, 4, t, 0, is_bf16); p += 3; }
        else if (num_rows == 2 && p + 2 <= last) { tile(2, 2, t, 0, is_bf16); p += 1; }
        else if (num_rows < 8 || !is_bf16) tile_rows(t, num_rows, is_bf16);
        else {
            unpack_panel(t.data, t.k_len, scratch);
            t.data = scratch;
            tile_rows(t, num_rows, 0);
        }
    }
}

// y [num_rows, padded(out)] (+)= x [num_rows, in] w^T + bias; called by all threads of the team.
static void multiply(const float *x, int64_t x_stride, int64_t num_rows, const Matrix *w, float *y, int is_added, float *scratch,
                     int is_bf16) {
    int64_t num_panels = padded(w->num_out) / PANEL;
    Tile t = {x, y, NULL, w->bias, x_stride, padded(w->num_out), w->num_in, 0, is_added};
#pragma omp for schedule(static)
    for (int64_t first = 0; first < num_panels; first += 4) {
        int64_t last = first + 4 < num_panels ? first + 4 : num_panels;
        if (is_bf16) multiply_panels(t, w, num_rows, first, last, scratch, 1);
        else multiply_panels(t, w, num_rows, first, last, scratch, 0);
    }
}

// y (+)= x w^T + bias for all rows, then what the adapters of its segments add; `at` is the pair's place in a LoraBlock.
static void project(const float *x, int64_t x_stride, int64_t num_rows, const Matrix *w, float *y, int is_added, float *scratch,
                    int is_bf16, const Step *s, int64_t layer, size_t at, int are_wanted) {
    multiply(x, x_stride, num_rows, w, y, is_added, scratch, is_bf16);
    for (int64_t i = 0; i < s->num_segments; i++) {
        const Segment *g = s->segments + i;
        const LowRank *pair = (const LowRank *)((const char *)(g->blocks + layer) + at);
        int64_t first = are_wanted ? g->first_row : g->first, rows = are_wanted ? g->num_rows : g->num_tokens;
        if (!pair->down.data || !rows) continue;
        multiply(x + first * x_stride, x_stride, rows, &pair->down, s->lora, 0, scratch, 0);
        multiply(s->lora, padded(pair->down.num_out), rows, &pair->up, y + first * padded(w->num_out), 1, scratch, 0);
    }
}

INLINE void normalize(const float *x, const float *weight, float *y, int64_t n, float eps) {
    v8 sums = {};
    float rest = 0;
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) sums += *(const v8u *)(x + i) * *(const v8u *)(x + i);
    for (; i < n; i++) rest += x[i] * x[i];
    float factor = 1 / sqrtf((sum_lanes(sums) + rest) / n + eps);
    for (i = 0; i < n; i++) y[i] = x[i] * factor * weight[i];
}

static void normalize_rows(const float *x, const float *weight, float *y, int64_t num_rows, const Model *m) {
    int64_t stride = padded(m->hidden);
#pragma omp for schedule(static)
    for (int64_t t = 0; t < num_rows; t++) normalize(x + t * stride, weight, y + t * stride, m->hidden, m->eps);
}

// QK norm and rotation of one row's heads, then its keys and values into the pool.
static void place_row(float *heads, const Model *m, const Block *b, int64_t position, int64_t slot) {
    int64_t d = m->head_dim, half = d / 2, num_keys = m->num_heads + m->num_kv_heads;
    const float *cos = b->cos + position * half, *sin = b->sin + position * half;
    int is_head_norm = b->q_norm && !m->is_row_norm;
    if (b->q_norm && m->is_row_norm) {
        float *keys = heads + m->num_heads * d;
        normalize(heads, b->q_norm, heads, m->num_heads * d, m->eps);
        normalize(keys, b->k_norm, keys, m->num_kv_heads * d, m->eps);
    }
    for (int64_t h = 0; h < num_keys; h++) {
        float *x = heads + h * d;
        if (is_head_norm) normalize(x, h < m->num_heads ? b->q_norm : b->k_norm, x, d, m->eps);
        for (int64_t i = 0; i < half; i++) {
            float first = x[i], second = x[i + half];
            x[i] = first * cos[i] - second * sin[i];
            x[i + half] = second * cos[i] + first * sin[i];
        }
    }
    int64_t page = slot / m->page_size, offset = slot % m->page_size;
    for (int64_t h = 0; h < 2 * m->num_kv_heads; h++) {
        int64_t at = ((page * 2 * m->num_kv_heads + h) * m->page_size + offset) * d;
        for (int64_t i = 0; i < d; i++) store1(b->kv, at + i, heads[(m->num_heads + h) * d + i], m->is_bf16);
    }
}

// mixed[i] = attention of row `rows ? rows[i] : i`, for i in [0, num_rows).
static void attend_rows(const float *qkv, const Model *m, const Block *b, const Step *s, const int64_t *rows, int64_t num_rows,
                        float *mixed, float *scores) {
    Layer l = {b->kv, m->num_heads, m->num_kv_heads, m->head_dim, m->page_size, b->window, m->scale, m->softcap, NULL};
    int64_t d = m->head_dim, group = m->num_heads / m->num_kv_heads, q_stride = padded(b->qkv.num_out);
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < num_rows * m->num_kv_heads; i++) {
        int64_t place = i / m->num_kv_heads, head = i % m->num_kv_heads, row = rows ? rows[place] : place;
        Span span = span_of(&s->ragged, row, b->window);
        float *target = mixed + (place * m->num_heads + head * group) * d;
        attend(qkv + row * q_stride + head * group * d, &l, head, &span, target, scores, m->is_bf16);
    }
}

// gate * sigmoid(z) * up, with z the gate (silu) or what makes it gelu by tanh; a z below -87 counts as -87 in the
// exponent, where the product is 0 either way.
INLINE v8 gated8(v8 gate, v8 up, int is_gelu) {
    v8 z = is_gelu ? 1.59576912f * (gate + 0.044715f * gate * gate * gate) : gate;
    i8 is_low = z < -87.0f;
    v8 exponent = (v8)(((i8)-z & ~is_low) | ((i8)((v8){} + 87.0f) & is_low));
    return gate / (1 + exp8(exponent)) * up;
}

// gate_up [num_rows, padded(2 n)] -> y [num_rows, n].
static void gate_rows(const float *gate_up, float *y, int64_t num_rows, int64_t n, int is_gelu) {
#pragma omp for schedule(static)
    for (int64_t t = 0; t < num_rows; t++) {
        const float *gate = gate_up + t * padded(2 * n), *up = gate + n;
        int64_t i = 0;
        for (; i + 8 <= n; i += 8) *(v8u *)(y + t * n + i) = gated8(*(const v8u *)(gate + i), *(const v8u *)(up + i), is_gelu);
        for (; i < n; i++) y[t * n + i] = gated8((v8){gate[i]}, (v8){up[i]}, is_gelu)[0];
    }
}

// dst[i] = src[rows[i]]
static void take_rows(const float *src, const int64_t *rows, int64_t num_rows, float *dst, int64_t width) {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < num_rows; i++) memcpy(dst + i * width, src + rows[i] * width, width * sizeof(float));
}

static void embed_rows(const Model *m, const Step *s, float *x) {
    int64_t n = m->hidden, stride = padded(n);
#pragma omp for schedule(static)
    for (int64_t t = 0; t < s->num_tokens; t++) {
        int64_t from = s->tokens[t] * n, i = 0;
        for (; i + 8 <= n; i += 8) *(v8u *)(x + t * stride + i) = load8(m->embed, from + i, m->is_bf16);
        for (; i < n; i++) {
            uint32_t bits = (uint32_t)((const uint16_t *)m->embed)[m->is_bf16 ? from + i : 0] << 16;
            if (m->is_bf16) memcpy(x + t * stride + i, &bits, 4);
            else x[t * stride + i] = ((const float *)m->embed)[from + i];
        }
    }
}

static void scale_embeds(const Model *m, const Step *s, float *x) {
#pragma omp for schedule(static)
    for (int64_t t = 0; t < s->num_tokens; t++)
        for (int64_t i = 0; i < m->hidden; i++) x[t * padded(m->hidden) + i] *= m->embed_scale;
}

// x += residual_scale * y, of y normalized if there is a norm for it; y is overwritten.
static void add_rows(float *y, const float *norm, float *x, int64_t num_rows, const Model *m) {
    int64_t stride = padded(m->hidden);
#pragma omp for schedule(static)
    for (int64_t t = 0; t < num_rows; t++) {
        if (norm) normalize(y + t * stride, norm, y + t * stride, m->hidden, m->eps);
        for (int64_t i = 0; i < m->hidden; i++) x[t * stride + i] += m->residual_scale * y[t * stride + i];
    }
}

static void bend_logits(const Model *m, float *logits, int64_t num_rows) {
    int64_t stride = padded(m->lm_head.num_out);
#pragma omp for schedule(static)
    for (int64_t t = 0; t < num_rows; t++)
        for (int64_t i = 0; i < stride; i += 8) {
            v8u *at = (v8u *)(logits + t * stride + i);
            *at *= m->logits_scale;
            if (m->logits_softcap > 0) *at = m->logits_softcap * tanh8(*at / m->logits_softcap);
        }
}

static void place_embeds(const Model *m, const Step *s, float *x) {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < s->num_embeds; i++)
        memcpy(x + s->embed_rows[i] * padded(m->hidden), s->embeds + i * m->hidden, m->hidden * sizeof(float));
}

static void give_hidden(const Model *m, const Step *s, const float *normed) {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < s->num_rows; i++)
        memcpy(s->hidden + i * m->hidden, normed + i * padded(m->hidden), m->hidden * sizeof(float));
}

// Floats that one token takes in the workspace of `decoder_step`.
int64_t decoder_workspace(const Model *m) {
    int64_t heads = m->num_heads * m->head_dim, qkv = heads + 2 * m->num_kv_heads * m->head_dim;
    int64_t wide = padded(2 * m->intermediate) + padded(m->intermediate), attention = padded(qkv) + padded(heads);
    return 3 * padded(m->hidden) + (wide > attention ? wide : attention);
}

// Floats that one thread takes: scores of attention, or an unpacked panel.
static int64_t thread_floats(const Model *m, const Step *s) {
    Layer shape = {NULL, m->num_heads, m->num_kv_heads, m->head_dim, m->page_size, 0, 0, 0, NULL};
    int64_t heads = m->num_heads * m->head_dim, most = scratch_floats(&shape, &s->ragged);
    int64_t widths[3] = {m->hidden, m->intermediate, heads};
    for (int i = 0; i < 3; i++) most = widths[i] * PANEL > most ? widths[i] * PANEL : most;
    return most;
}

int64_t decoder_panel(void) { return PANEL; }

// logits [num_rows, padded(vocab)] of the wanted rows; `work` is num_tokens * decoder_workspace floats.
// Returns 0, or 1 if memory ran out.
int decoder_step(const Model *m, const Step *s, float *work, float *logits, int threads) {
    int64_t tokens = s->num_tokens, stride = padded(m->hidden), heads = m->num_heads * m->head_dim;
    float *all = work, *wanted = all + tokens * stride, *normed = wanted + tokens * stride, *wide = normed + tokens * stride;
    int failed = 0;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        float *x = all, *scratch = malloc(thread_floats(m, s) * sizeof(float));
        int64_t rows = tokens;
        if (!scratch) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp barrier
        if (!failed) embed_rows(m, s, x);
        if (!failed && m->embed_scale != 1) scale_embeds(m, s, x);
        if (!failed && s->num_embeds) place_embeds(m, s, x);
        for (int64_t layer = 0; layer < m->num_layers && !failed; layer++) {
            const Block *b = m->blocks + layer;
            int is_last = layer == m->num_layers - 1, are_added = !b->attn_post && !b->mlp_post && m->residual_scale == 1;
            int64_t qkv_stride = padded(b->qkv.num_out);
            float *mixed = wide + tokens * qkv_stride, *gated = wide + tokens * padded(2 * m->intermediate);
            if (b->attn_norm) normalize_rows(x, b->attn_norm, normed, rows, m);
            project(b->attn_norm ? normed : x, stride, rows, &b->qkv, wide, 0, scratch, m->is_bf16, s, layer,
                    offsetof(LoraBlock, qkv), 0);
#pragma omp for schedule(static)
            for (int64_t t = 0; t < rows; t++) place_row(wide + t * qkv_stride, m, b, s->positions[t], s->slots[t]);
            if (is_last) {  // nothing after the last keys needs the other rows
                take_rows(x, s->rows, s->num_rows, wanted, stride);
                x = wanted;
                rows = s->num_rows;
            }
            attend_rows(wide, m, b, s, is_last ? s->rows : NULL, rows, mixed, scratch);
            project(mixed, heads, rows, &b->out, are_added ? x : normed, are_added, scratch, m->is_bf16, s, layer,
                    offsetof(LoraBlock, out), is_last);
            if (!are_added) add_rows(normed, b->attn_post, x, rows, m);
            if (b->mlp_norm) normalize_rows(x, b->mlp_norm, normed, rows, m);
            project(b->mlp_norm ? normed : x, stride, rows, &b->gate_up, wide, 0, scratch, m->is_bf16, s, layer,
                    offsetof(LoraBlock, gate_up), is_last);
            gate_rows(wide, gated, rows, m->intermediate, m->is_gelu);
            project(gated, m->intermediate, rows, &b->down, are_added ? x : normed, are_added, scratch, m->is_bf16, s, layer,
                    offsetof(LoraBlock, mlp_down), is_last);
            if (!are_added) add_rows(normed, b->mlp_post, x, rows, m);
        }
        if (!failed) {
            normalize_rows(x, m->norm, normed, rows, m);
            if (s->hidden) give_hidden(m, s, normed);
            multiply(normed, stride, rows, &m->lm_head, logits, 0, scratch, m->is_bf16);
            if (m->logits_scale != 1 || m->logits_softcap > 0) bend_logits(m, logits, s->num_rows);
        }
        free(scratch);
    }
    return failed;
}
