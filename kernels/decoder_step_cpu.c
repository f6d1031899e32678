// A whole decoder step on the CPU in one call, of all native architectures without experts, with weights as in matrix_cpu.c,
// sums in float32, and activations too, but for what goes into a product of pairs (bfloat16) or of int8.  For small models
// most of a torch step is dispatch; here there is none.
//
// A row's logits do not depend on the batch around it, to the last bit: see matrix_cpu.c and paged_attention_cpu.c.
#pragma once
#include "matrix_cpu.c"
#include "paged_attention_amx.c"

#include <stddef.h>

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
    int32_t is_bf16;      // the embedding
    int32_t is_gelu;      // the gate: gelu by tanh, else silu
    int32_t is_row_norm;  // QK norm of all heads of a row together, else of each head
    int32_t has_tiles;    // attention goes by tiles (AMX)
    int32_t kv_kind;      // of the pool: see load8
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

// Where a product stands in the model, for what adapters add to it; rows [first, first + num_rows) of the step, or of
// those that are wanted.
typedef struct {
    const Step *step;
    int64_t layer, first, num_rows;
    int are_wanted;
} Place;

// y (+)= x w^T + bias for the rows of `place`, then what the adapters of its segments add; `at` is the pair's place in a
// LoraBlock.
static void project(const float *x, int64_t x_stride, const Matrix *w, float *y, int is_added, Work work, Place place, size_t at) {
    const Step *s = place.step;
    multiply(x, x_stride, place.num_rows, w, y, is_added, work);
    for (int64_t i = 0; i < s->num_segments; i++) {
        const Segment *g = s->segments + i;
        const LowRank *pair = (const LowRank *)((const char *)(g->blocks + place.layer) + at);
        int64_t first = place.are_wanted ? g->first_row : g->first, last = first + (place.are_wanted ? g->num_rows : g->num_tokens);
        first = (first > place.first ? first : place.first) - place.first;
        last = (last < place.first + place.num_rows ? last : place.first + place.num_rows) - place.first;
        if (!pair->down.data || first >= last) continue;
        multiply(x + first * x_stride, x_stride, last - first, &pair->down, s->lora, 0, work);
        multiply(s->lora, padded(pair->down.num_out), last - first, &pair->up, y + first * padded(w->num_out), 1, work);
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
        for (int64_t i = 0; i < d; i++) store1(b->kv, at + i, heads[(m->num_heads + h) * d + i], m->kv_kind);
    }
}

// Whether attention goes by tiles, as the products do.
INLINE int attends_by_tiles(const Model *m) {
    return m->has_tiles && m->num_heads / m->num_kv_heads <= MOST_GROUP && m->softcap == 0;
}

// mixed[i - first] = attention of row `rows ? rows[i] : i`, for i in [first, first + num_rows).
static void attend_rows(const float *qkv, const Model *m, const Block *b, const Step *s, const int64_t *rows, int64_t first,
                        int64_t num_rows, float *mixed, float *scores) {
    Layer l = {b->kv, m->num_heads, m->num_kv_heads, m->head_dim, m->page_size, b->window, m->scale, m->softcap, NULL, m->kv_kind};
    int64_t d = m->head_dim, group = m->num_heads / m->num_kv_heads, q_stride = padded(b->qkv.num_out), width = m->num_heads * d;
    // rows of one request share what is unpacked for them; where each has its own, threads share the rows
    int64_t together = !attends_by_tiles(m) || s->ragged.num_requests >= num_rows ? 1 : rows_together(&l);
    int64_t num_parts = (num_rows + together - 1) / together;
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < num_parts * m->num_kv_heads; i++) {
        int64_t head = i % m->num_kv_heads, at = first + i / m->num_kv_heads * together, end = at + together;
        if (end > first + num_rows) end = first + num_rows;
        while (at < end) {
            int64_t row = rows ? rows[at] : at, num = 1;
            float *target = mixed + (at - first) * width + head * group * d;
            const float *q = qkv + head * group * d;
            if (attends_by_tiles(m)) {
                int64_t behind = s->ragged.qo_indptr[request_of(&s->ragged, row) + 1];
                while (at + num < end && (rows ? rows[at + num] : at + num) < behind) num++;
                attend_tiles(q, q_stride, &(Queries){&l, &s->ragged, rows, head, at, num}, target, (char *)scores);
            } else {
                Span span = span_of(&s->ragged, row, b->window);
                attend(q + row * q_stride, &l, head, &span, target, scores);
            }
            at += num;
        }
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

static void give_hidden(const Model *m, const Step *s, const float *normed, int64_t first, int64_t num_rows) {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < num_rows; i++)
        memcpy(s->hidden + (first + i) * m->hidden, normed + i * padded(m->hidden), m->hidden * sizeof(float));
}

// Tokens that go through a layer together: what they take stays in the second cache.
#define MOST_TOGETHER 256

// Floats of the parts of a step's workspace.  Each token has the first two; each of those that go together the rest.
typedef struct {
    int64_t x, qkv, normed, wide, gated, halves;
} Widths;

static Widths widths_of(const Model *m) {
    int64_t heads = m->num_heads * m->head_dim, most = padded_in(m->hidden);
    if (padded_in(heads) > most) most = padded_in(heads);
    if (padded_in(m->intermediate) > most) most = padded_in(m->intermediate);
    int64_t wide = padded(2 * m->intermediate);
    return (Widths){padded(m->hidden), padded(heads + 2 * m->num_kv_heads * m->head_dim), padded(m->hidden),
                    wide > padded(heads) ? wide : padded(heads), padded(m->intermediate), most / 2 + 32};
}

// Floats that a step of `num_tokens` takes in its workspace, which begins on a line of the cache.
int64_t decoder_workspace(const Model *m, int64_t num_tokens) {
    Widths w = widths_of(m);
    int64_t together = num_tokens < MOST_TOGETHER ? num_tokens : MOST_TOGETHER;
    int64_t rows = 2 * num_tokens * w.x + num_tokens * w.qkv;  // wanted rows are copied behind all of them
    return rows + together * (w.normed + w.wide + w.gated + w.halves);
}

// Floats that one thread takes: scores of attention, or an unpacked panel.
static int64_t thread_floats(const Model *m, const Step *s) {
    Layer shape = {NULL, m->num_heads, m->num_kv_heads, m->head_dim, m->page_size, 0, 0, 0, NULL, 0};
    int64_t heads = m->num_heads * m->head_dim, most = scratch_floats(&shape, &s->ragged);
    int64_t widths[3] = {m->hidden, m->intermediate, heads};
    for (int i = 0; i < 3; i++) most = widths[i] * PANEL > most ? widths[i] * PANEL : most;
    if (attends_by_tiles(m) && tiles_space(&shape, s->ragged.max_kv_len) > most * 4) most = tiles_space(&shape, s->ragged.max_kv_len) / 4;
    return (most + 15) / 16 * 16;
}

int64_t decoder_panel(void) { return PANEL; }

// A layer's keys and values, of all tokens, and their queries into `qkv`.
static void place_keys(const Model *m, const Step *s, int64_t layer, const float *x, float *qkv, float *normed, Work work) {
    const Block *b = m->blocks + layer;
    Widths w = widths_of(m);
    for (int64_t first = 0; first < s->num_tokens; first += MOST_TOGETHER) {
        int64_t left = s->num_tokens - first, num = left < MOST_TOGETHER ? left : MOST_TOGETHER;
        float *heads = qkv + first * w.qkv;
        if (b->attn_norm) normalize_rows(x + first * w.x, b->attn_norm, normed, num, m);
        project(b->attn_norm ? normed : x + first * w.x, w.normed, &b->qkv, heads, 0, work, (Place){s, layer, first, num, 0}, offsetof(LoraBlock, qkv));
#pragma omp for schedule(static)
        for (int64_t t = 0; t < num; t++)
            place_row(heads + t * w.qkv, m, b, s->positions[first + t], s->slots[first + t]);
    }
}

// The rest of a layer: x of `num_rows` tokens, or of the wanted ones.
static void mix_and_gate(const Model *m, const Step *s, int64_t layer, const int64_t *rows, int64_t num_rows, float *x,
                         const float *qkv, float *normed, float *wide, float *gated, Work work) {
    const Block *b = m->blocks + layer;
    Widths w = widths_of(m);
    int64_t heads = m->num_heads * m->head_dim, are_added = !b->attn_post && !b->mlp_post && m->residual_scale == 1;
    for (int64_t first = 0; first < num_rows; first += MOST_TOGETHER) {
        int64_t left = num_rows - first, num = left < MOST_TOGETHER ? left : MOST_TOGETHER;
        Place place = {s, layer, first, num, rows != NULL};
        float *part = x + first * w.x, *sum = are_added ? part : normed;
        attend_rows(qkv, m, b, s, rows, first, num, wide, work.scratch);
        project(wide, heads, &b->out, sum, are_added, work, place, offsetof(LoraBlock, out));
        if (!are_added) add_rows(normed, b->attn_post, part, num, m);
        if (b->mlp_norm) normalize_rows(part, b->mlp_norm, normed, num, m);
        project(b->mlp_norm ? normed : part, w.normed, &b->gate_up, wide, 0, work, place, offsetof(LoraBlock, gate_up));
        gate_rows(wide, gated, num, m->intermediate, m->is_gelu);
        project(gated, m->intermediate, &b->down, sum, are_added, work, place, offsetof(LoraBlock, mlp_down));
        if (!are_added) add_rows(normed, b->mlp_post, part, num, m);
    }
}

// A step's phases: the embeddings (0); of each layer l the keys (2 l + 1) and the rest (2 l + 2); the logits behind all.
#define NUM_PHASES(m) (2 * (m)->num_layers + 2)

// Phases [from, to) of a step: what is between two phases lies in `work`, decoder_workspace floats, as [tokens, padded(hidden)]
// rows, as much for those that are wanted, and [tokens, padded(queries, keys and values)].  The last phase gives logits
// [num_rows, padded(vocab)] of the wanted rows.  Returns 0, or 1 if memory ran out.
int decoder_phases(const Model *m, const Step *s, float *work, float *logits, int threads, int64_t from, int64_t to) {
    Widths w = widths_of(m);
    int64_t tokens = s->num_tokens, together = tokens < MOST_TOGETHER ? tokens : MOST_TOGETHER;
    float *all = work, *wanted = all + tokens * w.x, *qkv = wanted + tokens * w.x, *normed = qkv + tokens * w.qkv;
    float *wide = normed + together * w.normed, *gated = wide + together * w.wide;
    uint16_t *halves = (uint16_t *)(gated + together * w.gated);
    int failed = 0;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        float *scratch = aligned_alloc(64, thread_floats(m, s) * sizeof(float));
        Work own = {scratch, halves};
        if (!scratch) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp barrier
        if (!failed && from == 0) {
            embed_rows(m, s, all);
            if (m->embed_scale != 1) scale_embeds(m, s, all);
            if (s->num_embeds) place_embeds(m, s, all);
        }
        for (int64_t phase = from > 1 ? from : 1; phase < to && phase < NUM_PHASES(m) - 1 && !failed; phase++) {
            int64_t layer = (phase - 1) / 2;
            if (phase % 2) {
                place_keys(m, s, layer, all, qkv, normed, own);
            } else if (layer < m->num_layers - 1) {
                mix_and_gate(m, s, layer, NULL, tokens, all, qkv, normed, wide, gated, own);
            } else {
                take_rows(all, s->rows, s->num_rows, wanted, w.x);  // nothing after the last keys needs the other rows
                mix_and_gate(m, s, layer, s->rows, s->num_rows, wanted, qkv, normed, wide, gated, own);
            }
        }
        int64_t num_rows = to < NUM_PHASES(m) ? 0 : s->num_rows;
        for (int64_t first = 0; first < num_rows && !failed; first += MOST_TOGETHER) {
            int64_t left = num_rows - first, num = left < MOST_TOGETHER ? left : MOST_TOGETHER;
            normalize_rows(wanted + first * w.x, m->norm, normed, num, m);
            if (s->hidden) give_hidden(m, s, normed, first, num);
            multiply(normed, w.normed, num, &m->lm_head, logits + first * padded(m->lm_head.num_out), 0, own);
            if (m->logits_scale != 1 || m->logits_softcap > 0) bend_logits(m, logits + first * padded(m->lm_head.num_out), num);
        }
        end_pairs();
        free(scratch);
    }
    return failed;
}

// A whole step.
int decoder_step(const Model *m, const Step *s, float *work, float *logits, int threads) {
    return decoder_phases(m, s, work, logits, threads, 0, NUM_PHASES(m));
}
