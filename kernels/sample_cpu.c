// Sampling on the CPU, one row at a time: temperature, top_k, top_p, min_p, typical_p and the draw, without a sort.
// As `pieray.models.sampler` says; its torch code is the reference.
#pragma once
#include "paged_attention_cpu.c"

typedef struct {
    double temperature, top_p, min_p, typical_p;
    int64_t top_k;
    uint64_t seed, counter;
} Choice;

static uint64_t splitmix(uint64_t state) {
    uint64_t z = state + 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static double uniform(const Choice *c) { return (double)(splitmix(splitmix(c->seed) + c->counter) >> 11) * 0x1p-53; }

static int64_t argmax(const float *x, int64_t n) {
    v8 tops = (v8){} - INFINITY;
    float top = -INFINITY;
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) tops = max8(*(const v8u *)(x + i), tops);
    for (; i < n; i++) top = x[i] > top ? x[i] : top;
    for (int j = 0; j < 8; j++) top = tops[j] > top ? tops[j] : top;
    for (i = 0; i < n; i++)
        if (x[i] == top) return i;
    return 0;
}

// The largest value v of pool[0, n) such that those >= v number at least `count` or weigh at least `mass`,
// whichever is asked for (the other 0).  Quickselect: reorders the pool.
static float select_threshold(float *pool, int64_t n, int64_t count, double mass) {
    double above_mass = 0;
    int64_t above = 0;
    for (;;) {
        float a = pool[0], b = pool[n / 2], c = pool[n - 1];
        float pivot = a > b ? (b > c ? b : (a > c ? c : a)) : (a > c ? a : (b > c ? c : b));
        int64_t greater = 0, equal = 0;
        double greater_mass = 0;
        for (int64_t i = 0; i < n; i++) {  // [0, greater) > pivot, [greater, greater + equal) == pivot
            float x = pool[i];
            if (x < pivot) continue;
            pool[i] = pool[greater + equal];
            pool[greater + equal] = x;
            if (x == pivot) { equal++; continue; }
            pool[greater + equal] = pool[greater];
            pool[greater++] = x;
            greater_mass += x;
        }
        if (greater && (count ? above + greater >= count : above_mass + greater_mass >= mass)) { n = greater; continue; }
        above += greater + equal;
        above_mass += greater_mass + (double)pivot * equal;
        if ((count ? above >= count : above_mass >= mass) || greater + equal == n) return pivot;
        pool += greater + equal;
        n -= greater + equal;
    }
}

// weights[i] = exp((x[i] - top) / temperature); from n up to a multiple of 8 they are 0.
static void weigh(const float *x, int64_t n, float top, float temperature, float *weights) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) *(v8u *)(weights + i) = exp8((*(const v8u *)(x + i) - top) / temperature);
    if (i == n) return;
    v8 rest = (v8){} - INFINITY;
    for (int64_t j = i; j < n; j++) rest[j - i] = (x[j] - top) / temperature;
    *(v8u *)(weights + i) = exp8(rest);
}

static int64_t pack_at_least(const float *weights, int64_t n, float threshold, float *pool, double *mass) {
    int64_t size = 0;
    *mass = 0;
    for (int64_t i = 0; i < n; i++) {
        if (weights[i] < threshold || weights[i] == 0) continue;
        pool[size++] = weights[i];
        *mass += weights[i];
    }
    return size;
}

// The least t such that the entries with distance[i] <= t weigh at least `mass`.  Quickselect: reorders both arrays.
static float select_nearest(float *distance, float *weights, int64_t n, double mass) {
    double below = 0;
    for (;;) {
        float a = distance[0], b = distance[n / 2], c = distance[n - 1];
        float pivot = a > b ? (b > c ? b : (a > c ? c : a)) : (a > c ? a : (b > c ? c : b));
        int64_t less = 0, equal = 0;
        double less_mass = 0, equal_mass = 0;
        for (int64_t i = 0; i < n; i++) {  // [0, less) < pivot, [less, less + equal) == pivot
            float x = distance[i], w = weights[i];
            if (x > pivot) continue;
            int64_t next = less + equal;
            distance[i] = distance[next];
            weights[i] = weights[next];
            if (x < pivot) {
                distance[next] = distance[less];
                weights[next] = weights[less];
                next = less++;
                less_mass += w;
            } else {
                equal++;
                equal_mass += w;
            }
            distance[next] = x;
            weights[next] = w;
        }
        if (less && below + less_mass >= mass) { n = less; continue; }
        below += less_mass + equal_mass;
        if (below >= mass || less + equal == n) return pivot;
        distance += less + equal;
        weights += less + equal;
        n -= less + equal;
    }
}

// Typical sampling: of the tokens that weigh at least `threshold`, those whose log-probability is nearest to its mean
// keep their weights, until they hold typical_p of the mass; the others' become 0.
static void keep_typical(const float *x, int64_t n, const Choice *c, float top, float temperature, float threshold,
                         float *weights, float *pool) {
    float *distance = pool, *mass_of = pool + n;
    double mass = 0, mean = 0;
    for (int64_t i = 0; i < n; i++) {
        if (weights[i] < threshold || weights[i] == 0) { weights[i] = 0; continue; }
        mass += weights[i];
        mean += (double)weights[i] * ((x[i] - top) / temperature);
    }
    mean /= mass;
    int64_t size = 0;
    for (int64_t i = 0; i < n; i++) {
        if (weights[i] == 0) continue;
        distance[size] = (float)fabs((x[i] - top) / temperature - mean);
        mass_of[size++] = weights[i];
    }
    float limit = select_nearest(distance, mass_of, size, c->typical_p * mass);
    for (int64_t i = 0; i < n; i++)
        if (weights[i] != 0 && (float)fabs((x[i] - top) / temperature - mean) > limit) weights[i] = 0;
}

// `weights` holds n floats rounded up to a multiple of 8, `pool` 2 n.
static int64_t draw(const float *logits, int64_t n, const Choice *c, float *weights, float *pool) {
    int64_t best = argmax(logits, n), last = best;
    if (c->temperature <= 0) return best;
    float temperature = c->temperature > 1e-6 ? c->temperature : 1e-6;
    weigh(logits, n, logits[best], temperature, weights);
    float threshold = 0;
    double mass, running = 0;
    int64_t size = pack_at_least(weights, n, 0, pool, &mass);
    if (c->top_k > 0 && c->top_k < size) {
        threshold = select_threshold(pool, size, c->top_k, 0);
        size = pack_at_least(weights, n, threshold, pool, &mass);
    }
    if (c->top_p < 1) threshold = select_threshold(pool, size, 0, c->top_p * mass);
    if (c->min_p > threshold) threshold = c->min_p;  // the most likely token weighs 1
    if (c->typical_p < 1) keep_typical(logits, n, c, logits[best], temperature, threshold, weights, pool);
    pack_at_least(weights, n, threshold, pool, &mass);
    double goal = uniform(c) * mass;
    for (int64_t i = 0; i < n; i++) {
        if (weights[i] < threshold || weights[i] == 0) continue;
        last = i;
        running += weights[i];
        if (running > goal) break;
    }
    return last;
}

// tokens[r] drawn from logits[rows[r] * stride, + vocab), or of row r if `rows` is NULL.  Returns 0, or 1 if memory ran
// out.
int sample_rows(const float *logits, int64_t stride, int64_t vocab, const Choice *choices, const int64_t *rows,
                int64_t num_rows, int64_t *tokens) {
    float *scratch = malloc((3 * vocab + 16) * sizeof(float));
    if (!scratch) return 1;
    for (int64_t r = 0; r < num_rows; r++)
        tokens[r] = draw(logits + (rows ? rows[r] : r) * stride, vocab, choices + r, scratch, scratch + (vocab + 7) / 8 * 8);
    free(scratch);
    return 0;
}
