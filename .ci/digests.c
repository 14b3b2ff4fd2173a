/* Digests of what every C primitive writes, for every storage type, at every instruction set that this machine runs.

   Prints one line per storage type and primitive. The instruction sets must agree among themselves, or the exit status is 1;
   whether compilers and architectures agree is seen by comparing what they print. The data are made with integers alone,
   in lengths around the vectors' and with magnitudes that float holds, barely holds, and does not hold. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "scalar.h"

enum { ROWS = 11, WIDTH = 523, SIZE = ROWS * WIDTH, LINES = 1024 };

static const char *DTYPES[FN_DTYPES] = {"float32", "float64", "float16", "bfloat16"};
static const ptrdiff_t LENGTHS[] = {1, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 129, 257, 518, WIDTH};
static const double SCALES[][2] = {{1, 0.5}, {1, 1000}, {1e-3, 100}, {1e30, 0}, {1e-30, 0}, {0, 3}}; /* spread, mean */
enum { N_LENGTHS = sizeof LENGTHS / sizeof *LENGTHS, N_SCALES = sizeof SCALES / sizeof *SCALES };

static char lines[LINES][64];
static int line, mismatches, first_level;
static uint64_t hash, state;

static double uniform(void) { /* -1 to 1 */
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (double)(int64_t)(state >> 11) * 0x1p-52 - 1;
}

static void *memory(size_t n) {
    void *p = aligned_alloc(64, (n + 127) / 64 * 64);
    if (!p) abort();
    memset(p, 0, (n + 127) / 64 * 64);
    return p;
}

static void eat(const void *data, size_t n) { /* FNV-1a */
    for (size_t i = 0; i < n; i++) hash = (hash ^ ((const unsigned char *)data)[i]) * 1099511628211u;
}
/* A NaN's sign and payload are no part of the promise. */
static void eat_doubles(const double *d, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i++) {
        double v = d[i] == d[i] ? d[i] : 0x1p1000;
        eat(&v, sizeof v);
    }
}

static void begin(void) { hash = 14695981039346656037u; }
static void report(int level, const char *dtype, const char *primitive) {
    char text[64];
    snprintf(text, sizeof text, "%-9s %-19s %016llx", dtype, primitive, (unsigned long long)hash);
    if (level == first_level) strcpy(lines[line], text), puts(text);
    else if (strcmp(lines[line], text)) mismatches++, printf("%s at level %d\n", text, level);
    line++;
}

typedef struct { const fn_ops *ops; void *x, *dy, *res, *y, *z, *gamma, *beta; double *stage; } data_t;

/* `which` scales x; dy and the residual stay near 1. */
static void fill(data_t *d, int which) {
    state = 88172645463325252u + (uint64_t)which;
    for (int i = 0; i < SIZE; i++) d->stage[i] = uniform() * SCALES[which][0] + SCALES[which][1];
    d->ops->put(d->stage, SIZE, d->x, d->ops->itemsize);
    for (int i = 0; i < SIZE; i++) d->stage[i] = uniform();
    d->ops->put(d->stage, SIZE, d->dy, d->ops->itemsize);
    for (int i = 0; i < SIZE; i++) d->stage[i] = uniform();
    d->ops->put(d->stage, SIZE, d->res, d->ops->itemsize);
    for (int i = 0; i < WIDTH; i++) {
        double g = 1 + uniform() / 2, b = uniform();
        if (d->ops->itemsize == 8) ((double *)d->gamma)[i] = g, ((double *)d->beta)[i] = b;
        else ((float *)d->gamma)[i] = (float)g, ((float *)d->beta)[i] = (float)b;
    }
    memset(d->y, 0, SIZE * 8);
    memset(d->z, 0, SIZE * 8);
}

static void eat_storage(data_t *d, const void *p) {
    d->ops->get(p, d->ops->itemsize, SIZE, d->stage);
    eat_doubles(d->stage, SIZE);
}

static fn_norm norm_of(const fn_moments *m, double gamma, double beta) {
    fn_norm p = {m->mean, m->mean_lo, gamma / __builtin_sqrt(m->m2 / m->n + 1e-5), beta, 0};
    p.wide = fn_needs_wide(p.mean, m->m2, p.scale);
    p.near = fn_is_near(p.mean, m->m2 / m->n);
    return p;
}

#define EVERY(which) for (int which = (begin(), 0); which < N_SCALES; which++)
#define EVERY_LENGTH(len) for (int l = 0; l < N_LENGTHS; l++) for (ptrdiff_t len = LENGTHS[l], once = 1; once; once = 0)

static void spans(data_t *d, int level, const char *dtype) {
    const fn_ops *o = d->ops;
    fn_moments m;
    EVERY(which) EVERY_LENGTH(len) {
        fn_spans s = {len, ROWS, WIDTH};
        fill(d, which);
        o->moments(d->x, s, &m);
        eat_doubles(&m.n, 6);
    }
    report(level, dtype, "moments");
    EVERY(which) EVERY_LENGTH(len) {
        double beside[3][8] = {{0}};
        fill(d, which);
        o->moments_beside(d->x, l % 2 ? 8 : 3, len, beside[0], beside[1], beside[2]);
        eat_doubles(beside[0], 24);
    }
    report(level, dtype, "moments side by side");
    for (int flags = 0; flags < 4; flags++) {
        char name[32];
        EVERY(which) EVERY_LENGTH(len) {
            fn_spans s = {len, ROWS, WIDTH};
            fill(d, which);
            o->moments(d->x, s, &m);
            fn_norm p = norm_of(&m, 1.25, 0.5);
            o->affine(d->x, len % 2 ? d->res : NULL, d->y, s, &p, flags, 0, NULL);
            eat_storage(d, d->y);
        }
        snprintf(name, sizeof name, "affine %d", flags);
        report(level, dtype, name);
        EVERY(which) EVERY_LENGTH(len) {
            fn_spans s = {len, ROWS, WIDTH};
            fn_sums sums;
            fill(d, which);
            o->moments(d->x, s, &m);
            fn_norm p = norm_of(&m, 1.25, 0.5);
            const void *res = len % 2 && (flags & FN_RELU) ? d->res : NULL;
            o->grad_sums(d->dy, d->x, res, s, &p, flags, &sums);
            eat_doubles(&sums.sum, 4);
            fn_grad g = {p.scale, -p.scale * p.scale * p.scale * sums.dot / m.n, -p.scale * sums.sum / m.n};
            o->grad_apply(d->dy, d->x, res, d->y, res ? d->z : NULL, s, &p, &g, flags, 0, NULL, NULL);
            eat_storage(d, d->y);
            eat_storage(d, d->z);
        }
        snprintf(name, sizeof name, "gradient %d", flags);
        report(level, dtype, name);
    }
}

/* Rows one after the other in memory, streamed, each leaving its last line to the next. */
static void neighbours(data_t *d, int level, const char *dtype) {
    const fn_ops *o = d->ops;
    EVERY(which) EVERY_LENGTH(len) {
        fn_spans s = {len, 1, 0};
        fn_norm p[ROWS];
        fn_grad g[ROWS];
        fill(d, which);
        for (int r = 0, left = 0, gleft = 0; r < ROWS; r++) {
            ptrdiff_t at = r * len * o->itemsize;
            const char *x = (const char *)d->x + at, *dy = (const char *)d->dy + at;
            int flags = FN_STREAM | (r + 1 < ROWS ? FN_LEAVE : 0) | (which % 2 ? FN_RELU : 0);
            fn_moments m;
            fn_sums sums;
            o->moments(x, s, &m);
            p[r] = norm_of(&m, 1.25, 0.5);
            o->grad_sums(dy, x, NULL, s, p + r, flags & FN_RELU, &sums);
            g[r] = (fn_grad){p[r].scale, -p[r].scale * p[r].scale * p[r].scale * sums.dot / m.n, -p[r].scale * sums.sum / m.n};
            left = o->affine(x, NULL, (char *)d->y + at, s, p + r, flags, 0, left ? p + r - 1 : NULL);
            gleft = o->grad_apply(dy, x, NULL, (char *)d->z + at, NULL, s, p + r, g + r, flags, 0, gleft ? p + r - 1 : NULL,
                                  gleft ? g + r - 1 : NULL);
        }
        o->fence();
        eat_storage(d, d->y);
        eat_storage(d, d->z);
        for (int r = 0, left = 0; r + 1 < ROWS; r++) { /* and each while the next is summed */
            ptrdiff_t at = r * len * o->itemsize, next = at + len * o->itemsize;
            const char *x = d->x, *dy = d->dy;
            fn_sums sums;
            left = o->grad_turns(dy + at, x + at, (char *)d->y + at, s, p + r, g + r, FN_STREAM | FN_LEAVE | (which % 2 ? FN_RELU : 0),
                                 left ? p + r - 1 : NULL, left ? g + r - 1 : NULL, dy + next, x + next, p + r + 1, &sums);
            eat_doubles(&sums.sum, 4);
        }
        o->fence();
        eat_storage(d, d->y);
    }
    report(level, dtype, "neighbours");
}

/* The rows as channels of one group; gammas that float cannot hold among others. */
static void groups(data_t *d, int level, const char *dtype) {
    const fn_ops *o = d->ops;
    double gamma[ROWS], beta[ROWS];
    fn_sums sums[ROWS];
    for (int r = 0; r < ROWS; r++) {
        gamma[r] = r % 5 == 4 ? 1e32 : 1.25 - 0.5 * r;
        beta[r] = 0.5 - 0.125 * r;
    }
    for (int relu = 0; relu < 2; relu++) EVERY(which) EVERY_LENGTH(len) {
        const fn_channels c = {len % 2 ? gamma : NULL, len % 3 ? beta : NULL, ROWS, len};
        fn_moments m;
        fill(d, which);
        o->moments(d->x, (fn_spans){ROWS * len, 1, 0}, &m);
        fn_norm shared = norm_of(&m, 1, 0);
        shared.near = len % 2;
        o->group_affine(d->x, d->y, &c, &shared, relu ? FN_RELU : 0, 0);
        o->group_grad_sums(d->dy, d->x, &c, &shared, relu ? FN_RELU : 0, sums);
        fn_grad g = {0, -0.01 * shared.scale, 0.02};
        o->group_grad_apply(d->dy, d->x, d->z, &c, &shared, &g, relu ? FN_RELU : 0, 0);
        eat_doubles(&sums->sum, 4 * ROWS);
        eat_storage(d, d->y);
        eat_storage(d, d->z);
    }
    report(level, dtype, "groups");
}

static void columns(data_t *d, int level, const char *dtype) {
    const fn_ops *o = d->ops;
    double *v = memory(10 * WIDTH * sizeof *v), *numbers = memory(8 * WIDTH * sizeof *numbers);
    double *sum = v, *low = v + WIDTH, *centre = v + 2 * WIDTH, *m2 = v + 3 * WIDTH, *dsum = v + 4 * WIDTH, *dot = v + 5 * WIDTH,
           *dsum_lo = v + 6 * WIDTH, *dot_lo = v + 7 * WIDTH, *square = v + 8 * WIDTH, *square_lo = v + 9 * WIDTH;
    double *mean = numbers, *mean_lo = numbers + WIDTH, *scale = numbers + 2 * WIDTH, *shift = numbers + 3 * WIDTH,
           *var = numbers + 4 * WIDTH, *a = numbers + 5 * WIDTH, *b = numbers + 6 * WIDTH, *c = numbers + 7 * WIDTH;
    const fn_norms p = {mean, mean_lo, scale, shift, var, ROWS};
    const fn_grads g = {a, b, c};
    const fn_planes sums = {dsum, dsum_lo, dot, dot_lo};
    for (int relu = 0; relu < 2; relu++) {
        EVERY(which) EVERY_LENGTH(width) {
            ptrdiff_t post = width % 7 ? 1 : 7, channels = width / post;
            fill(d, which);
            memset(v, 0, 10 * WIDTH * sizeof *v);
            o->col_sums(d->x, ROWS, width, WIDTH, relu ? FN_FAR : 0, sum, low, square, square_lo);
            for (ptrdiff_t j = 0; j < width; j++) centre[j] = (sum[j] + low[j]) / ROWS;
            o->col_squares(d->x, ROWS, width, WIDTH, centre, m2);
            for (ptrdiff_t j = 0; j < channels; j++) { /* the statistics of a channel's first column stand for it */
                fn_moments m = {ROWS, 0, 0, centre[j * post], 0, m2[j * post]};
                fn_norm one = norm_of(&m, 1.25, 0.5);
                mean[j] = one.mean, scale[j] = one.scale, shift[j] = one.shift, var[j] = m.m2 / ROWS;
            }
            const void *res = relu && width % 2 ? d->res : NULL;
            o->col_affine(d->x, res, d->y, ROWS, width, WIDTH, &p, post, relu);
            eat_storage(d, d->y);
            o->col_grad_sums(d->dy, d->x, res, ROWS, width, WIDTH, &p, post, relu, sums);
            for (ptrdiff_t j = 0; j < channels; j++) {
                double r = scale[j];
                a[j] = r, b[j] = -r * r * r * dot[j * post] / ROWS, c[j] = -r * dsum[j * post] / ROWS;
            }
            o->col_grad_apply(d->dy, d->x, res, d->y, res ? d->z : NULL, ROWS, width, WIDTH, &p, &g, post, relu);
            eat_doubles(v, 10 * WIDTH);
            eat_storage(d, d->y);
            eat_storage(d, d->z);
        }
        report(level, dtype, relu ? "columns, relu" : "columns");
    }
    free(v), free(numbers);
}

/* Numbers of every size go through the arithmetic on statistics; what one step makes is the next one's. */
static void channels(data_t *d, int level, const char *dtype) {
    const fn_channel_ops *o = d->ops->channels;
    double *v = memory(10 * WIDTH * sizeof *v), *part[10];
    for (int i = 0; i < 10; i++) part[i] = v + i * WIDTH;
    EVERY(which) EVERY_LENGTH(n) {
        fill(d, which);
        d->ops->get(d->x, d->ops->itemsize, 10 * WIDTH, v);
        o->means(part[0], part[1], 37, n, part[2], part[3]);
        for (ptrdiff_t i = 0; i < n; i++) part[4][i] *= part[4][i];
        o->recentre(part[4], which % 2 ? part[1] : NULL, part[3], 37, n);
        o->centre(part[4], part[6], part[0], part[1], part[2], part[3], n);
        o->mend(part[4], part[6], n);
        o->pool_squares(part[4], part[0], part[1], 5, part[2], part[3], n, part[5], part[6]);
        o->finish(part[4], 37, 1e-5, n, part[7], part[8]);
        o->blend(part[0], 0.1, 1.25, part[7], n);
        o->accumulate(part[5], part[6], n % 2 ? part[8] : NULL, n, part[2], part[3]);
        o->slopes((fn_planes){part[2], part[3], part[5], part[6]}, n % 2 ? part[0] : NULL, part[8], 37, n, part[1], part[9]);
        o->collapse(part[2], part[3], n, part[7]);
        o->multiply(part[7], part[8], n, part[6]);
        fn_sizes sizes = o->sizes((const float *)part[4], 2 * n);
        part[6][0] = sizes.least;
        part[7][0] = sizes.most;
        o->add_runs(part[9], n % 2 ? part[1] : NULL, n, 1, part[2], part[3]);
        eat_doubles(v, 10 * WIDTH);
    }
    report(level, dtype, "channels");
    free(v);
}

static void rows(data_t *d, int level, const char *dtype) {
    const fn_ops *o = d->ops;
    double *dgamma = memory(4 * WIDTH * sizeof *dgamma), *dbeta = dgamma + WIDTH;
    double numbers[3 * ROWS], four[4 * ROWS];
    fn_row_stats stat = {numbers, numbers + ROWS, numbers + 2 * ROWS};
    fn_planes sums = {four, four + ROWS, four + 2 * ROWS, four + 3 * ROWS};
    for (int centred = 0; centred < 2; centred++) {
        EVERY(which) EVERY_LENGTH(len) {
            fill(d, which);
            memset(dgamma, 0, 4 * WIDTH * sizeof *dgamma);
            int sum = len % 2, short_rows = len % 16 == 0; /* which share cache lines, and form their sums on the way */
            void *y = (char *)d->y + (short_rows ? 4 * o->itemsize : 0);
            o->rows_forward(d->x, sum ? d->res : NULL, sum ? d->z : NULL, y, ROWS, len, len % 3 ? d->gamma : NULL,
                            len % 5 && centred ? d->beta : NULL, 1e-5, centred, stat, len % 4 ? FN_STREAM : 0);
            eat_storage(d, d->y);
            eat_storage(d, d->z);
            const void *x = sum ? d->z : d->x;
            fn_sizes sizes = {1, 1};
            if (o->itemsize != 8) sizes = o->channels->sizes(d->gamma, len);
            o->rows_grad_sums(d->dy, x, d->gamma, ROWS, len, len, stat, centred, sums);
            o->rows_grad(d->dy, x, d->gamma, y, ROWS, len, len, (double)len, stat, sizes, short_rows ? (fn_planes){0} : sums, centred,
                         len % 4 ? FN_STREAM : 0, dgamma, dbeta, dgamma + 2 * WIDTH, dgamma + 3 * WIDTH);
            eat_doubles(numbers, 3 * ROWS);
            eat_doubles(four, 4 * ROWS);
            eat_doubles(dgamma, 4 * WIDTH);
            eat_storage(d, d->y);
        }
        report(level, dtype, centred ? "layer norm" : "RMS norm");
    }
    free(dgamma);
}

static void likelihood(data_t *d, int level, const char *dtype) {
    const fn_ops *o = d->ops;
    for (int logarithm = 0; logarithm < 2; logarithm++) {
        EVERY(which) EVERY_LENGTH(len) {
            fill(d, which);
            o->softmax(d->x, d->y, ROWS, len, logarithm, which % 2 ? FN_STREAM : 0, which % 2 ? d->stage : NULL);
            eat_storage(d, d->y);
            o->softmax_grad(d->dy, d->y, d->z, ROWS, len, logarithm, which % 2 ? FN_STREAM : 0);
            eat_storage(d, d->z);
        }
        report(level, dtype, logarithm ? "log-softmax" : "softmax");
    }
    double *weight = memory(WIDTH * sizeof *weight);
    EVERY(which) EVERY_LENGTH(len) {
        double out[4];
        fill(d, which);
        for (int j = 0; j < WIDTH; j++) weight[j] = 1 + uniform() / 2;
        o->lse(d->x, len, len % 2 ? weight : NULL, out);
        o->cross_entropy_grad(d->x, d->y, len, out[0], out[3], 0.75, len % 2 ? 0.125 : 0, len % 2 ? weight : NULL, len / 2, 0.5,
                              which % 2 ? FN_STREAM : 0);
        eat_doubles(out, 2);
        eat_storage(d, d->y);
    }
    report(level, dtype, "cross-entropy");
    free(weight);
}

static void regularization(data_t *d, int level, const char *dtype) {
    const fn_ops *o = d->ops;
    uint64_t bits[SIZE / 64 + 2];
    EVERY(which) EVERY_LENGTH(len) {
        fill(d, which);
        memset(bits, 0, sizeof bits);
        int flags = len % 2 ? FN_STREAM : 0;
        if (len == WIDTH) len = SIZE;
        o->dropout(d->x, d->y, bits, ((ptrdiff_t)64 << 30) * l, len, 42, 1u << 30, 4.0 / 3, flags);
        o->dropout_grad(d->dy, d->z, bits, len, 4.0 / 3, flags);
        eat(bits, sizeof bits);
        eat_storage(d, d->y);
        eat_storage(d, d->z);
        o->dropout(d->x, d->y, NULL, 64 * l, len, 42, 1u << 30, 4.0 / 3, flags ^ FN_STREAM);
        eat_storage(d, d->y);
    }
    report(level, dtype, "dropout");
}

/* Every bit pattern of a half type to double, and back from doubles around the borders of rounding. */
static void conversions(data_t *d, int level, const char *dtype) {
    begin();
    if (d->ops->itemsize == 2) {
        uint16_t *all = memory(65536 * 2), *back = memory(65536 * 2);
        double *wide = memory(65536 * sizeof *wide);
        for (int i = 0; i < 65536; i++) all[i] = (uint16_t)i;
        d->ops->get(all, 2, 65536, wide);
        eat_doubles(wide, 65536);
        for (int i = 0; i < 65536; i++) wide[i] = wide[i] == wide[i] ? wide[i] * (1 + (i % 5 - 2) * 0x1p-11) : 0;
        d->ops->put(wide, 65536, back, 2);
        eat(back, 65536 * 2);
        free(all), free(back), free(wide);
    }
    report(level, dtype, "conversion");
}

int main(void) {
    int seen = 0;
    for (int level = 0; level < FN_LEVELS; level++) {
        const fn_ops *table = fn_table(level);
        if (!table) continue;
        if (!seen) first_level = level;
        line = 0;
        for (int t = 0; t < FN_DTYPES; t++) {
            data_t d = {table + t, memory(SIZE * 8), memory(SIZE * 8), memory(SIZE * 8), memory(SIZE * 8), memory(SIZE * 8),
                        memory(WIDTH * 8), memory(WIDTH * 8), memory(SIZE * 8)};
            spans(&d, level, DTYPES[t]);
            neighbours(&d, level, DTYPES[t]);
            groups(&d, level, DTYPES[t]);
            columns(&d, level, DTYPES[t]);
            channels(&d, level, DTYPES[t]);
            rows(&d, level, DTYPES[t]);
            likelihood(&d, level, DTYPES[t]);
            regularization(&d, level, DTYPES[t]);
            conversions(&d, level, DTYPES[t]);
            free(d.x), free(d.dy), free(d.res), free(d.y), free(d.z), free(d.gamma), free(d.beta), free(d.stage);
        }
        seen++;
        fprintf(stderr, "level %d\n", level);
    }
    fprintf(stderr, "%d instruction sets, %d differences\n", seen, mismatches);
    return seen == 0 || mismatches > 0;
}
