/* Leading singular triples of transmitting matrices on a CPU, one sample at a time, for native.py.

   Block Lanczos with two start vectors: a pass over a map serves both. With Z = P_1 P_2' F_2' F_2 P at the positions
   that both maps have in common, the next block is A = F_1 Z and the next P is F_1' A, from one pass over F_1. P is
   orthogonalised by the coefficients of A; where rounding would show, it is computed anew. A sample that leaves the
   range without scaling, or does not converge, is marked as in doubt and left to the caller. */

#include <math.h>
#include <stdint.h>
#include <string.h>

typedef float v8 __attribute__((vector_size(32), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")
#define LOW 0x1p-24f       /* norms of a map's first product within which no scale is needed */
#define HIGH 0x1p30f
#define HIGHEST 0x1p120f   /* and squared ones of the later products */
#define MAX_VECTORS 64
#define FIRST_TEST 6       /* vectors before the first test: a single one would trust an unlucky start */
#define NARROW 64          /* positions in a row, up to which two rows lie close together */
#define AHEAD 8192         /* floats that a map is asked for before they are read */
#define ROUNDING 0x1p-24   /* relative rounding of a product */
#define EFFECT 4e-6        /* relative error of p that may remain in the result */
#define TOO_MUCH 1e-4

typedef struct {
    const float *maps;                 /* batch x channels x height x width */
    int64_t channels, height, width;
    const int32_t *row_bins, *column_bins; /* first and past the last of each common row and column; null: no pooling */
    int64_t pooled;                    /* whether to pool the map once, before the iteration */
} Side;

typedef struct {
    Side near, far;
    int64_t batch, height, width;      /* of the positions in common */
    int64_t blocks;                    /* at most, of two vectors each */
    double tolerance;
    const float *start;                /* 2 x height x width */
    float *sigma, *u, *v, *near_positions, *far_positions; /* all but the first may be null */
    uint8_t *doubt;                    /* batch */
    float *work;                       /* threads x work_size */
    int64_t work_size;
    int64_t thread, item;              /* counters, from 0 */
} Norms;

typedef struct {
    float *out;                        /* batch x channels x area */
    int64_t batch, channels, area, terms;
    const float *columns[2], *rows[2]; /* batch x channels, batch x area */
    int64_t item;
} LowRank;

/* A map of one sample as an operator, and the room to pool some of its channels. */
typedef struct {
    const float *rows;
    int64_t channels;
    const Side *side;                  /* null where positions are the common ones already */
    float *pooled, *line;
} Operator;

/* Macros, since what a vector is passed in depends on the target. */
#define load(x) (*(const v8 *)(x))
#define store(x, y) (*(v8 *)(x) = (y))
#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
typedef int32_t i8 __attribute__((vector_size(32)));
#define SHUFFLE(x, y, ...) __builtin_shuffle(x, y, (i8){__VA_ARGS__})
#endif
#define EVEN(x, y) SHUFFLE(x, y, 0, 2, 4, 6, 8, 10, 12, 14)
#define ODD(x, y) SHUFFLE(x, y, 1, 3, 5, 7, 9, 11, 13, 15)
#define sum8(x) (((x[0] + x[4]) + (x[1] + x[5])) + ((x[2] + x[6]) + (x[3] + x[7])))

INLINE float dot(const float *x, const float *y, int64_t n) {
    v8 s = {0}, t = {0};
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        s += load(x + i) * load(y + i);
        t += load(x + i + 8) * load(y + i + 8);
    }
    float rest = 0;
    for (; i < n; i++) rest += x[i] * y[i];
    s += t;
    return sum8(s) + rest;
}

INLINE void add_multiple(float *y, float a, const float *x, int64_t n) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) store(y + i, load(y + i) + a * load(x + i));
    for (; i < n; i++) y[i] += a * x[i];
}

INLINE void multiply(float *y, float a, const float *x, int64_t n) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) store(y + i, a * load(x + i));
    for (; i < n; i++) y[i] = a * x[i];
}

/* image = F w and z += F' image, for `count` rows of F and two vectors w; the images are `apart`. */
#define PASS_OF(count)                                                                                                 \
    INLINE void pass_of_##count(const float *f, int64_t n, const float *w, float *image, int64_t apart, float *z) {    \
        v8 s[count], t[count];                                                                                         \
        float a[count], b[count];                                                                                      \
        int64_t i = 0;                                                                                                 \
        UNROLL for (int r = 0; r < count; r++) s[r] = t[r] = (v8){0};                                                  \
        for (; i + 8 <= n; i += 8) {                                                                                   \
            const v8 x = load(w + i), y = load(w + n + i);                                                             \
            if (i % 16 == 0) /* a group of rows ahead */                                                               \
                UNROLL for (int r = 0; r < count; r++) __builtin_prefetch(f + (count + r) * n + i, 0, 2);              \
            UNROLL for (int r = 0; r < count; r++) {                                                                   \
                const v8 row = load(f + r * n + i);                                                                    \
                s[r] += row * x;                                                                                       \
                t[r] += row * y;                                                                                       \
            }                                                                                                          \
        }                                                                                                              \
        UNROLL for (int r = 0; r < count; r++) a[r] = sum8(s[r]), b[r] = sum8(t[r]);                                   \
        for (int64_t k = i; k < n; k++)                                                                                \
            UNROLL for (int r = 0; r < count; r++) a[r] += f[r * n + k] * w[k], b[r] += f[r * n + k] * w[n + k];       \
        for (i = 0; i + 8 <= n; i += 8) {                                                                              \
            v8 x = load(z + i), y = load(z + n + i);                                                                   \
            UNROLL for (int r = 0; r < count; r++) {                                                                   \
                const v8 row = load(f + r * n + i);                                                                    \
                x += a[r] * row;                                                                                       \
                y += b[r] * row;                                                                                       \
            }                                                                                                          \
            store(z + i, x);                                                                                           \
            store(z + n + i, y);                                                                                       \
        }                                                                                                              \
        for (; i < n; i++)                                                                                             \
            UNROLL for (int r = 0; r < count; r++) z[i] += a[r] * f[r * n + i], z[n + i] += b[r] * f[r * n + i];       \
        UNROLL for (int r = 0; r < count; r++) image[r] = a[r], image[apart + r] = b[r];                               \
    }
PASS_OF(4)
PASS_OF(1)

/* Adaptive average pooling of one channel, with torch's bins. */
INLINE void pool(const float *x, const Side *side, int64_t height, int64_t width, float *line, float *out) {
    const int64_t full = side->width;
    for (int64_t i = 0; i < height; i++) {
        const int32_t first = side->row_bins[2 * i], last = side->row_bins[2 * i + 1];
        const float *top = x + first * full;
        /* Of a large map what a processor fetches ahead by itself is not enough. */
        for (int64_t k = 0; k < (last - first) * full; k += 16) __builtin_prefetch(top + AHEAD + k, 0, 2);
        float *row = out + i * width;
        if (last - first == 2 && full == 2 * width && full <= NARROW) {
            int64_t j = 0;
            for (; j + 8 <= width; j += 8) {
                const v8 left = load(top + 2 * j) + load(top + full + 2 * j);
                const v8 right = load(top + 2 * j + 8) + load(top + full + 2 * j + 8);
                store(row + j, 0.25f * (EVEN(left, right) + ODD(left, right)));
            }
            for (; j < width; j++)
                row[j] = 0.25f * (top[2 * j] + top[2 * j + 1] + top[full + 2 * j] + top[full + 2 * j + 1]);
            continue;
        }
        memcpy(line, top, full * sizeof(float));
        for (int32_t r = first + 1; r < last; r++) add_multiple(line, 1, x + r * full, full);
        if (full == 2 * width) {
            const float share = 1 / (2.0f * (last - first));
            int64_t j = 0;
            for (; j + 8 <= width; j += 8) {
                const v8 left = load(line + 2 * j), right = load(line + 2 * j + 8);
                store(row + j, share * (EVEN(left, right) + ODD(left, right)));
            }
            for (; j < width; j++) row[j] = share * (line[2 * j] + line[2 * j + 1]);
        } else {
            for (int64_t j = 0; j < width; j++) {
                const int32_t left = side->column_bins[2 * j], right = side->column_bins[2 * j + 1];
                float total = 0;
                for (int32_t k = left; k < right; k++) total += line[k];
                row[j] = total / ((last - first) * (right - left));
            }
        }
    }
}

/* Some channels of F at the common positions. */
INLINE const float *rows_of(const Operator *op, int64_t height, int64_t width, int64_t from, int64_t count) {
    const Side *side = op->side;
    if (!side) return op->rows + from * height * width;
    for (int64_t c = 0; c < count; c++)
        pool(op->rows + (from + c) * side->height * side->width, side, height, width, op->line,
             op->pooled + c * height * width);
    return op->pooled;
}

/* image = F w and z = F' image, for two vectors w. */
INLINE void pass(const Operator *op, int64_t height, int64_t width, const float *w, float *image, float *z) {
    const int64_t n = height * width, channels = op->channels;
    memset(z, 0, 2 * n * sizeof(float));
    for (int64_t c = 0; c < channels; c += 4) {
        const int64_t count = channels - c < 4 ? channels - c : 4;
        const float *rows = rows_of(op, height, width, c, count);
        if (count == 4) pass_of_4(rows, n, w, image + c, channels, z);
        else for (int64_t k = 0; k < count; k++) pass_of_1(rows + k * n, n, w, image + c + k, channels, z);
    }
}

/* z = F' a, for one vector. */
INLINE void adjoint(const Operator *op, int64_t height, int64_t width, const float *a, float *z) {
    const int64_t n = height * width;
    memset(z, 0, n * sizeof(float));
    for (int64_t c = 0; c < op->channels; c++) add_multiple(z, a[c], rows_of(op, height, width, c, 1), n);
}

INLINE Operator operator_of(const Side *side, int64_t sample, int64_t height, int64_t width, float **room) {
    const int64_t full = side->height * side->width, area = height * width;
    const float *map = side->maps + sample * side->channels * full;
    Operator op = {map, side->channels, 0, 0, 0};
    if (!side->row_bins) return op;
    op.line = *room;
    op.pooled = op.line + side->width;
    *room = op.pooled + (side->pooled ? side->channels : 4) * area;
    op.side = side;
    if (side->pooled) {
        op.rows = rows_of(&op, height, width, 0, side->channels);
        op.side = 0;
    }
    return op;
}

/* A symmetric matrix: its diagonal, and what stands one and two beside it, in row i: (i, i), (i, i - 1), (i, i - 2). */
typedef struct {
    double diagonal[MAX_VECTORS], beside[MAX_VECTORS], beyond[MAX_VECTORS];
} Band;

/* Largest eigenvalue of the leading matrix of order n and its unit eigenvector s, from those of order n - 1.
   With x - H = L D L', the last pivot is concave and rises in x above the smaller matrix's largest eigenvalue; its root
   is the one of order n, its slope |y|^2 with L' y = (0, ..., 0, 1), and y at the root the eigenvector. Newton's method
   reaches the root from below; it starts at the Ritz value of s and the last coordinate. */
INLINE double extended(const Band *h, int n, double before, double *s) {
    const int i = n - 1;
    if (n == 1) {
        s[0] = 1;
        return h->diagonal[0];
    }
    const double last = h->diagonal[i], coupling = h->beside[i] * s[i - 1] + (n > 2 ? h->beyond[i] * s[i - 2] : 0);
    const double ritz = (before + last) / 2 + hypot((before - last) / 2, coupling);
    double low = before, high = INFINITY, x = fmax(ritz, before * (1 + 1e-9));
    double pivot[MAX_VECTORS], one[MAX_VECTORS], two[MAX_VECTORS], y[MAX_VECTORS];
    for (int round = 0; round < 60; round++) {
        int k = 0;
        one[0] = two[0] = two[1] = 0;
        for (; k < n; k++) {
            pivot[k] = x - h->diagonal[k];
            if (k > 1) two[k] = -h->beyond[k] / pivot[k - 2];
            if (k > 0) {
                const double rest = -h->beside[k] + (k > 1 ? h->beyond[k] * one[k - 1] : 0);
                one[k] = rest / pivot[k - 1];
                pivot[k] -= one[k] * rest - (k > 1 ? two[k] * h->beyond[k] : 0);
            }
            if (k < i && !(pivot[k] > 0)) break;
        }
        if (k < n) { /* left of the smaller matrix's eigenvalue, by rounding */
            low = x;
            x = high < INFINITY ? (low + high) / 2 : x + fabs(x) * ldexp(1e-9, round);
            continue;
        }
        if (round == 0 && x > ritz && pivot[i] >= 0) {
            /* The last coordinate changes nothing that shows, but for its own share. */
            double share = last > before ? 1 : 0;
            if (last < before) share = coupling / (ritz - last);
            const double scale = last > before ? 0 : 1 / sqrt(1 + share * share);
            for (int c = 0; c < i; c++) s[c] *= scale;
            s[i] = last > before ? 1 : share * scale;
            return ritz;
        }
        double square = 1;
        y[i] = 1;
        for (int c = i - 1; c >= 0; c--) {
            y[c] = -one[c + 1] * y[c + 1] - (c + 2 < n ? two[c + 2] * y[c + 2] : 0);
            square += y[c] * y[c];
        }
        const double step = -pivot[i] / square;
        if (pivot[i] > 0) high = x;
        else low = x;
        const double scale = 1 / sqrt(square);
        for (int c = 0; c < n; c++) s[c] = y[c] * scale;
        /* Next to the smaller matrix's eigenvalue steps are as short as the way from it, and grow. */
        if (fabs(step) <= 4e-10 * x && fabs(step) <= 0.1 * (x - before)) return x + step;
        x += step;
        if (!(x > low && x < high)) x = (low + high) / 2;
    }
    return x;
}

INLINE void combine(float *out, const float *vectors, const double *s, int count, int64_t n, float scale) {
    multiply(out, (float)s[0] * scale, vectors, n);
    for (int k = 1; k < count; k++) add_multiple(out, (float)s[k] * scale, vectors + k * n, n);
}

/* y -= x c for two vectors y, the second `apart` from the first. */
INLINE void subtract(float *y, int64_t apart, const float *x, float c0, float c1, int64_t n) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const v8 v = load(x + i);
        store(y + i, load(y + i) - c0 * v);
        store(y + apart + i, load(y + apart + i) - c1 * v);
    }
    for (; i < n; i++) y[i] -= c0 * x[i], y[apart + i] -= c1 * x[i];
}

/* Two vectors a made orthogonal to `count` others and to each other, and p by the same coefficients. The upper triangle
   r is of what is left, whose vectors keep their lengths. One of at most `cut` is noise and becomes zero. */
INLINE void orthogonalise(
    float *a, float *p, const float *q, const float *before, int count, int64_t n, int64_t area, double cut,
    float coefficients[][2], double r[3]
) {
    float *b = a + n, again[MAX_VECTORS][2], projection = 0, more = 0;
    for (int c = 0; c < count; c++) {
        coefficients[c][0] = dot(q + c * n, a, n);
        coefficients[c][1] = dot(q + c * n, b, n);
    }
    for (int c = 0; c < count; c++) subtract(a, n, q + c * n, coefficients[c][0], coefficients[c][1], n);
    const float square = dot(a, a, n);
    const int first = square > cut * cut;
    if (first) {
        projection = dot(a, b, n) / square;
        add_multiple(b, -projection, a, n);
    }
    /* Twice is enough: one pass leaves what rounding brought back in. */
    for (int c = 0; c < count; c++) {
        again[c][0] = dot(q + c * n, a, n);
        again[c][1] = dot(q + c * n, b, n);
    }
    for (int c = 0; c < count; c++) subtract(a, n, q + c * n, again[c][0], again[c][1], n);
    const float length = first ? sqrtf(dot(a, a, n)) : 0;
    if (length > 0) {
        more = dot(a, b, n) / (length * length);
        add_multiple(b, -more, a, n);
    }
    for (int c = 0; c < count; c++) {
        coefficients[c][0] += again[c][0];
        coefficients[c][1] += again[c][1] + projection * again[c][0];
        subtract(p, area, before + c * area, coefficients[c][0], coefficients[c][1], area);
    }
    add_multiple(p + area, -(projection + more), p, area);
    const float rest = sqrtf(dot(b, b, n));
    r[0] = length;
    r[1] = (double)length * (projection + more);
    r[2] = rest > cut ? rest : 0;
}

/* Whether the triple of a sample was found. */
INLINE int norm_of_sample(const Norms *job, int64_t sample, float *room) {
    const int64_t height = job->height, width = job->width, area = height * width;
    const int64_t near_channels = job->near.channels, far_channels = job->far.channels, vectors = 2 * job->blocks;
    float *q = room, *p = q + (vectors + 2) * near_channels, *z = p + (vectors + 2) * area;
    float *images = z + vectors * area, *image = images + vectors * far_channels;
    room = image + far_channels;
    const Operator near = operator_of(&job->near, sample, height, width, &room);
    const Operator far = operator_of(&job->far, sample, height, width, &room);
    Band h;
    double s[MAX_VECTORS], r[3], value = 0, drift = 0, drift_before = 0, most = 0, oblique = 1;
    float coefficients[MAX_VECTORS][2];
    int found = 0, count = 0;

    for (;; count += 2) { /* of the vectors that are there, from none */
        float *a = q + count * near_channels, *next = p + count * area;
        double cut, size;
        if (!count) {
            pass(&near, height, width, job->start, a, next);
            const float length = sqrtf(dot(a, a, near_channels));
            if (!(length >= LOW && length <= HIGH)) return 0;
            size = sqrt((double)dot(a + near_channels, a + near_channels, near_channels));
            cut = 1e-4 * size;
        } else {
            const int last = count - 2;
            pass(&far, height, width, p + last * area, images + last * far_channels, z + last * area);
            if (!last) {
                const float length = sqrtf(dot(images, images, far_channels));
                if (!(length >= LOW && length <= HIGH)) return 0;
            }
            pass(&near, height, width, z + last * area, a, next);
            /* Where the far map's products lead away from p, an error in p weighs more. */
            for (int64_t k = last; k < count; k++) {
                const float *x = p + k * area, *y = z + k * area, *w = images + k * far_channels;
                const double square = dot(w, w, far_channels);
                if (square > 0) oblique = fmax(oblique, sqrt((double)dot(x, x, area) * dot(y, y, area)) / square);
            }
            const float squares = dot(a, a, near_channels) + dot(a + near_channels, a + near_channels, near_channels);
            if (!(squares <= HIGHEST)) return 0;
            size = fmax(value, dot(q, a, near_channels));
            cut = 0.1 * job->tolerance * size;
        }
        orthogonalise(a, next, q, p, count, near_channels, area, cut, coefficients, r);
        if (count) {
            const int i = count - 2;
            h.diagonal[i] = coefficients[i][0];
            h.diagonal[i + 1] = coefficients[i + 1][1];
            h.beside[i + 1] = ((double)coefficients[i][1] + coefficients[i + 1][0]) / 2;
            value = extended(&h, i + 1, value, s);
            value = extended(&h, i + 2, value, s);
            const double residual = hypot(r[0] * s[i] + r[1] * s[i + 1], r[2] * s[i + 1]);
            /* What is left of an exhausted space is noise. */
            found = (count >= FIRST_TEST || count >= near_channels) && residual <= job->tolerance * value;
            found = found || !(r[0] > 0 || r[2] > 0);
            size = fmax(size, value);
            if (found || count >= vectors) break;
        }
        h.beyond[count] = r[0];
        h.beside[count] = r[1];
        h.beyond[count + 1] = r[2];
        const double inherited = fmax(drift, drift_before) + ROUNDING;
        double grown = 0, passed_on = 0;
        drift_before = drift;
        drift = 0;
        for (int j = 0; j < 2; j++) {
            const double length = r[2 * j];
            if (!(length > 0)) { /* an exhausted space goes on with zeros */
                memset(a + j * near_channels, 0, near_channels * sizeof(float));
                memset(next + j * area, 0, area * sizeof(float));
                continue;
            }
            multiply(a + j * near_channels, (float)(1 / length), a + j * near_channels, near_channels);
            grown = (inherited * size + passed_on * fabs(r[1])) / length;
            passed_on = grown; /* what the second vector took of the first, before that is computed anew */
            if (grown * oblique <= EFFECT) {
                multiply(next + j * area, (float)(1 / length), next + j * area, area);
            } else {
                adjoint(&near, height, width, a + j * near_channels, next + j * area);
                grown = ROUNDING;
            }
            drift = fmax(drift, grown);
            most = fmax(most, grown);
        }
    }
    if (!found || most * oblique > TOO_MUCH) return 0;
    /* The basis is orthonormal up to rounding; the images follow the vector. */
    float *u = q + count * near_channels;
    combine(u, q, s, count, near_channels, 1);
    const float inverse = 1 / sqrtf(dot(u, u, near_channels));
    combine(image, images, s, count, far_channels, inverse);
    const float sigma = sqrtf(dot(image, image, far_channels));
    if (!(sigma > 0 && sigma <= HIGH * HIGH)) return 0;
    job->sigma[sample] = sigma / area;
    if (!job->u) return 1;
    multiply(job->u + sample * near_channels, inverse, u, near_channels);
    multiply(job->v + sample * far_channels, 1 / sigma, image, far_channels);
    combine(job->near_positions + sample * area, p, s, count, area, inverse / area);
    combine(job->far_positions + sample * area, z, s, count, area, inverse / sigma / area);
    return 1;
}

INLINE void norms(void *data) {
    Norms *job = data;
    float *work = job->work + __atomic_fetch_add(&job->thread, 1, __ATOMIC_RELAXED) * job->work_size;
    int64_t i;
    while ((i = __atomic_fetch_add(&job->item, 1, __ATOMIC_RELAXED)) < job->batch)
        job->doubt[i] = !norm_of_sample(job, i, work);
}

/* out = sum of columns rows', written once; a few channels of a sample at a time. */
INLINE void low_rank(void *data) {
    LowRank *job = data;
    const int64_t blocks = (job->channels + 15) / 16, n = job->area;
    int64_t item;
    while ((item = __atomic_fetch_add(&job->item, 1, __ATOMIC_RELAXED)) < job->batch * blocks) {
        const int64_t b = item / blocks, from = item % blocks * 16;
        const int64_t to = from + 16 < job->channels ? from + 16 : job->channels;
        const float *r0 = job->rows[0] + b * n, *r1 = job->terms > 1 ? job->rows[1] + b * n : 0;
        for (int64_t c = from; c < to; c++) {
            const int64_t k = b * job->channels + c;
            const float a0 = job->columns[0][k], a1 = r1 ? job->columns[1][k] : 0;
            float *out = job->out + k * n;
            int64_t i = 0;
            if (!r1) {
                multiply(out, a0, r0, n);
                continue;
            }
            for (; i + 8 <= n; i += 8) store(out + i, a0 * load(r0 + i) + a1 * load(r1 + i));
            for (; i < n; i++) out[i] = a0 * r0[i] + a1 * r1[i];
        }
    }
}

#define FOR(name, suffix, target)                                                                                      \
    target static void name##_##suffix(void *data) { name(data); }
FOR(norms, baseline, )
FOR(low_rank, baseline, )
#if defined(__x86_64__)
FOR(norms, avx2, __attribute__((target("avx2,fma"))))
FOR(low_rank, avx2, __attribute__((target("avx2,fma"))))
#define CHOSEN(name) (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? name##_avx2 : name##_baseline)
#else
#define CHOSEN(name) name##_baseline
#endif

/* `parallel` is the GOMP_parallel of the OpenMP library that torch runs on, so that there is one pool of threads. */
typedef void (*Parallel)(void (*)(void *), void *, unsigned, unsigned);

static void run(void (*work)(void *), void *data, Parallel parallel, int64_t threads) {
    if (threads > 1) parallel(work, data, (unsigned)threads, 0);
    else work(data);
}

void lckd_norms(Norms *job, Parallel parallel, int64_t threads) { run(CHOSEN(norms), job, parallel, threads); }
void lckd_low_rank(LowRank *job, Parallel parallel, int64_t threads) { run(CHOSEN(low_rank), job, parallel, threads); }
