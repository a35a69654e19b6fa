// The layers of a flow and the parts of its networks that are not convolutions; R is f32 or f64.

// What a coupling changes: `len` numbers from `start` of each example of `example`, `positions` to a channel. A mask is 1
// where a number is kept all the same; it may be constant along channels or positions (a stride of 0).
typedef struct {
    const R *mask;
    unsigned start, len, example, positions, mask_channel, mask_position;
} NAME(Part);

DEVICE R NAME(mask_at)(NAME(Part) p, unsigned j) {
    return p.mask ? p.mask[j / p.positions * p.mask_channel + j % p.positions * p.mask_position] : 0;
}

enum { NAME(ZERO), NAME(EXP), NAME(SIGMOID), NAME(TANH) };

// The log-scale s of the network's h, e^s and ds/dh.
DEVICE void NAME(log_scale)(unsigned kind, R h, R gain, R *s, R *e, R *slope) {
    if (kind == NAME(EXP)) {
        *s = h;
        *e = FN(exp)(h);
        *slope = 1;
    } else if (kind == NAME(SIGMOID)) {
        // log sigmoid(u) = min(u, 0) - log(1 + e^-|u|), and its derivative is sigmoid(-u).
        R u = h + 2, t = FN(exp)(-FN(fabs)(u)), large = 1 / (1 + t), small = t / (1 + t);
        *s = (u > 0 ? 0 : u) - FN(log1p)(t);
        *e = u > 0 ? large : small;
        *slope = u > 0 ? small : large;
    } else if (kind == NAME(TANH)) {
        R t = FN(tanh)(h);
        *s = gain * t;
        *e = FN(exp)(gain * t);
        *slope = gain * (1 - t * t);
    } else {
        *s = 0;
        *e = 1;
        *slope = 0;
    }
}

// y = (x + t) e^s or x e^s + t, or x from y, and log-det_b = sum s. One block an example.
typedef struct {
    const R *x, *net, *gain;
    R *out, *log_det;
    NAME(Part) part;
    unsigned kind, shift_first, inverse;
} NAME(Coupling);
LAYOUT(NAME(Coupling), 88, inverse, 80);

KERNEL(NAME(coupling), NAME(Coupling)) {
    NAME(Part) p = a.part;
    unsigned b = BLOCK;
    const R *x = a.x + (unsigned long long)b * p.example;
    const R *net = a.net + (unsigned long long)b * p.len * (a.kind ? 2 : 1);
    R *out = a.out + (unsigned long long)b * p.example, gain = a.gain ? *a.gain : 0;
    double sum = 0;
    for OF_BLOCK(i, p.example) {
        unsigned j = i - p.start;
        R v = x[i];
        // Below `start`, j wraps around to a large number.
        if (j < p.len && NAME(mask_at)(p, j) == 0) {
            R t = net[j], s, e, slope;
            NAME(log_scale)(a.kind, a.kind ? net[p.len + j] : 0, gain, &s, &e, &slope);
            if (a.inverse) {
                // e^-s, and not 1 / e^s: the same as the processor's code.
                R d = a.kind ? FN(exp)(-s) : 1;
                v = a.shift_first ? v * d - t : (v - t) * d;
            } else {
                v = a.shift_first ? (v + t) * e : v * e + t;
            }
            sum += s;
        }
        out[i] = v;
    }
    if (a.log_det) {
        sum = block_sum(sum);
        if (THREAD == 0) a.log_det[b] = (R)sum;
    }
}

// From x, the network's output and the gradients of y and log-det: those of x (without the network's share), of the
// network's output, and of the gain, one number an example.
typedef struct {
    const R *x, *net, *gain, *gy, *gld;
    R *gx, *gnet, *ggain;
    NAME(Part) part;
    unsigned kind, shift_first;
} NAME(CouplingBack);
LAYOUT(NAME(CouplingBack), 104, shift_first, 100);

KERNEL(NAME(coupling_back), NAME(CouplingBack)) {
    NAME(Part) p = a.part;
    unsigned b = BLOCK;
    unsigned long long at = (unsigned long long)b * p.example, of_net = (unsigned long long)b * p.len * (a.kind ? 2 : 1);
    const R *x = a.x + at, *gy = a.gy + at, *net = a.net + of_net;
    R *gx = a.gx + at, *gnet = a.gnet + of_net, gain = a.gain ? *a.gain : 0, gld = a.gld[b];
    double sum = 0;
    for OF_BLOCK(i, p.example) {
        unsigned j = i - p.start;
        R g = gy[i];
        if (j < p.len) {
            R gt = 0, gh = 0;
            if (NAME(mask_at)(p, j) == 0) {
                R t = net[j], h = a.kind ? net[p.len + j] : 0, s, e, slope;
                NAME(log_scale)(a.kind, h, gain, &s, &e, &slope);
                R gs = g * e * (a.shift_first ? x[i] + t : x[i]) + gld;
                gh = gs * slope;
                gt = a.shift_first ? g * e : g;
                if (a.ggain) sum += gs * FN(tanh)(h);
                g *= e;
            }
            gnet[j] = gt;
            if (a.kind) gnet[p.len + j] = gh;
        }
        gx[i] = g;
    }
    if (a.ggain) {
        sum = block_sum(sum);
        if (THREAD == 0) a.ggain[b] = (R)sum;
    }
}

// The changed part of each example by itself, (B, len); with a mask, all of it where the mask is 1.
typedef struct {
    const R *x;
    R *out;
    NAME(Part) part;
    unsigned total;
} NAME(Take);
LAYOUT(NAME(Take), 56, total, 48);

KERNEL(NAME(take_part), NAME(Take)) {
    NAME(Part) p = a.part;
    for EACH(i, a.total) {
        unsigned j = i % p.len;
        R v = a.x[(unsigned long long)(i / p.len) * p.example + p.start + j];
        a.out[i] = p.mask ? v * NAME(mask_at)(p, j) : v;
    }
}

// out = x with `part` (B, len) added to its part, where the mask is 1 if there is one.
typedef struct {
    const R *x, *add;
    R *out;
    NAME(Part) part;
    unsigned total;
} NAME(AddPart);
LAYOUT(NAME(AddPart), 64, total, 56);

KERNEL(NAME(add_part), NAME(AddPart)) {
    NAME(Part) p = a.part;
    for EACH(i, a.total) {
        unsigned j = i % p.example - p.start;
        R v = a.x[i];
        if (j < p.len) {
            R d = a.add[(unsigned long long)(i / p.example) * p.len + j];
            v += p.mask ? d * NAME(mask_at)(p, j) : d;
        }
        a.out[i] = v;
    }
}

// z[4 c + 2 u + v, i, j] = x[c, 2 i + u, 2 j + v], and back; h and w are those of z.
typedef struct {
    const R *x;
    R *out;
    unsigned channels, h, w, total, inverse;
} NAME(Squeeze);
LAYOUT(NAME(Squeeze), 40, inverse, 32);

KERNEL(NAME(squeeze), NAME(Squeeze)) {
    for EACH(i, a.total) {
        // i counts the elements of z: (b, 4 c + 2 u + v, y, x).
        unsigned x = i % a.w, y = i / a.w % a.h, k = i / (a.w * a.h) % (4 * a.channels);
        unsigned b = i / (a.w * a.h * 4 * a.channels);
        unsigned j = ((b * a.channels + k / 4) * 2 * a.h + 2 * y + k / 2 % 2) * 2 * a.w + 2 * x + k % 2;
        if (a.inverse) a.out[j] = a.x[i];
        else a.out[i] = a.x[j];
    }
}

// z = (x + map_{c,p} + bias_c) exp(factor logs_c) for x (B, C, positions), and its inverse. A null map is 0.
typedef struct {
    const R *x, *map, *bias, *logs;
    R *out;
    double factor;
    unsigned channels, positions, total, inverse;
} NAME(ActNorm);
LAYOUT(NAME(ActNorm), 64, inverse, 60);

KERNEL(NAME(act_norm), NAME(ActNorm)) {
    for EACH(i, a.total) {
        unsigned c = i / a.positions % a.channels;
        R v = a.x[i], b = a.bias[c], k = a.logs ? (R)a.factor * a.logs[c] : 0;
        if (a.map) v += a.map[i % (a.channels * a.positions)];
        a.out[i] = a.inverse ? v * FN(exp)(-k) - b : (v + b) * FN(exp)(k);
    }
}

// From z and its gradient: that of x, and in slices those of bias and logs, (2, C), without the log-det's share. Without logs
// there is no gx.
typedef struct {
    const R *z, *gz, *logs;
    R *gx;
    double *partial;
    double factor;
    unsigned batch, channels, positions, slices;
} NAME(ActNormBack);
LAYOUT(NAME(ActNormBack), 64, slices, 60);

KERNEL(NAME(act_norm_back), NAME(ActNormBack)) {
    unsigned c = BLOCK / a.slices;
    Slice slice = slice_of(a.batch * a.positions, a.slices);
    R scale = a.logs ? FN(exp)((R)a.factor * a.logs[c]) : 1;
    double s = 0, q = 0;
    for OF_SLICE(k, slice) {
        unsigned i = (k / a.positions * a.channels + c) * a.positions + k % a.positions;
        R g = a.gz[i];
        s += g;
        if (a.logs) {
            q += (double)g * a.z[i];
            a.gx[i] = g * scale;
        }
    }
    s = block_sum(s);
    q = block_sum(q);
    if (THREAD == 0) {
        put_partial(a.partial, a.slices, c, s * scale);
        if (a.logs) put_partial(a.partial, a.slices, a.channels + c, a.factor * q);
    }
}

// Sums from those of their slices. One block a sum.
typedef struct {
    const double *partial;
    R *out;
    unsigned slices;
} NAME(SliceSums);
LAYOUT(NAME(SliceSums), 24, slices, 16);

KERNEL(NAME(slice_sums), NAME(SliceSums)) {
    double sum = slices_sum(a.partial, a.slices, BLOCK);
    if (THREAD == 0) a.out[BLOCK] = (R)sum;
}

// out = the sum of up to VECTORS vectors of n numbers, in order; a stride of 0 repeats one number.
#ifndef VECTORS
#define VECTORS 128
#endif
typedef struct {
    R *out;
    unsigned n, vectors;
    const R *v[VECTORS];
    unsigned stride[VECTORS];
} NAME(SumVectors);
LAYOUT(NAME(SumVectors), 1552, stride, 1040);

KERNEL(NAME(sum_vectors), NAME(SumVectors)) {
    for EACH(i, a.n) {
        R sum = 0;
        for (unsigned k = 0; k < a.vectors; k++) sum += a.v[k][i * a.stride[k]];
        a.out[i] = sum;
    }
}

// out = factor times the sum of x. One block.
typedef struct {
    const R *x;
    R *out;
    double factor;
    unsigned n;
} NAME(ScaledSum);
LAYOUT(NAME(ScaledSum), 32, n, 24);

KERNEL(NAME(scaled_sum), NAME(ScaledSum)) {
    double sum = 0;
    for OF_BLOCK(i, a.n) sum += a.x[i];
    sum = block_sum(sum);
    if (THREAD == 0) *a.out = (R)(a.factor * sum);
}

// Running moments, (1 - share) running + share batch, in place; `batch` is (2, C). Moments that are not
// finite are left out: more passes run before the host learns of a loss that is not finite, and it then searches for the layer that
// caused it with these running moments.
typedef struct {
    R *mean, *var;
    const R *batch;
    double share;
    unsigned channels;
} NAME(Mixed);
LAYOUT(NAME(Mixed), 40, channels, 32);

KERNEL(NAME(mix_moments), NAME(Mixed)) {
    for EACH(i, 2 * a.channels) {
        R *running = i < a.channels ? a.mean + i : a.var + (i - a.channels);
        if (a.batch[i] - a.batch[i] == 0) *running = *running * (R)(1 - a.share) + a.batch[i] * (R)a.share;
    }
}

// y[b, o, p] = sum_c w[o, c] x[b, c, p], or with w transposed. Always in full precision: the inverse must undo it.
typedef struct {
    const R *x, *w;
    R *out;
    unsigned channels, positions, total, transpose;
} NAME(Mix);
LAYOUT(NAME(Mix), 40, transpose, 36);

KERNEL(NAME(channel_mix), NAME(Mix)) {
    unsigned n = a.channels;
    for EACH(i, a.total) {
        unsigned p = i % a.positions, o = i / a.positions % n;
        const R *x = a.x + (i - p - o * a.positions) + p;
        const R *w = a.transpose ? a.w + o : a.w + o * n;
        unsigned step = a.transpose ? n : 1;
        R sum = 0;
        for (unsigned c = 0; c < n; c++) sum += w[c * step] * x[c * a.positions];
        a.out[i] = sum;
    }
}

// g_w[o, c] = sum_{b, p} g_y[b, o, p] x[b, c, p]; a block adds up one slice of one element.
typedef struct {
    const R *x, *gy;
    double *partial;
    unsigned batch, channels, positions, slices;
} NAME(Outer);
LAYOUT(NAME(Outer), 40, slices, 36);

KERNEL(NAME(channel_outer), NAME(Outer)) {
    unsigned element = BLOCK / a.slices, o = element / a.channels, c = element % a.channels;
    Slice slice = slice_of(a.batch * a.positions, a.slices);
    double sum = 0;
    for OF_SLICE(k, slice) {
        unsigned at = k / a.positions * a.channels, p = k % a.positions;
        sum += (double)a.gy[(at + o) * a.positions + p] * a.x[(at + c) * a.positions + p];
    }
    sum = block_sum(sum);
    if (THREAD == 0) put_partial(a.partial, a.slices, element, sum);
}

// W = P L (U + diag(sign exp(log s))) and log|det W| = sum log s, from one matrix that packs the three.
typedef struct {
    const R *packed, *sign;
    const unsigned *perm;
    R *w, *log_det;
    unsigned n;
} NAME(Plu);
LAYOUT(NAME(Plu), 48, n, 40);

// U[i, j] with its diagonal.
DEVICE double NAME(upper)(const R *packed, const R *sign, unsigned n, unsigned i, unsigned j) {
    if (i > j) return 0;
    return i == j ? (double)sign[i] * exp((double)packed[i * n + i]) : (double)packed[i * n + j];
}

KERNEL(NAME(plu), NAME(Plu)) {
    unsigned n = a.n;
    for EACH(e, n * n) {
        unsigned i = a.perm[e / n], j = e % n;
        double sum = NAME(upper)(a.packed, a.sign, n, i, j);
        for (unsigned k = 0; k < i && k <= j; k++) {
            sum += (double)a.packed[i * n + k] * NAME(upper)(a.packed, a.sign, n, k, j);
        }
        a.w[e] = (R)sum;
    }
    if (BLOCK == 0) {
        double logs = 0;
        for OF_BLOCK(i, n) logs += a.packed[i * n + i];
        logs = block_sum(logs);
        if (THREAD == 0) *a.log_det = (R)logs;
    }
}

// With G the gradient of L U (that of W, rows permuted back): that of L is G U^T below the diagonal, that of U is L^T G on
// and above it, and a diagonal element of U is sign exp(log s).
typedef struct {
    const R *packed, *sign, *gw, *gld;
    const unsigned *place;
    R *out;
    unsigned n;
} NAME(PluBack);
LAYOUT(NAME(PluBack), 56, n, 48);

// `place` is the inverse of the permutation: row i of L U is row place[i] of W.
KERNEL(NAME(plu_back), NAME(PluBack)) {
    unsigned n = a.n;
    for EACH(e, n * n) {
        unsigned i = e / n, j = e % n;
        double sum = 0;
        if (j < i) {
            for (unsigned k = j; k < n; k++) {
                sum += (double)a.gw[a.place[i] * n + k] * NAME(upper)(a.packed, a.sign, n, j, k);
            }
        } else {
            sum = a.gw[a.place[i] * n + j];
            for (unsigned k = i + 1; k < n; k++) {
                sum += (double)a.packed[k * n + i] * a.gw[a.place[k] * n + j];
            }
            if (i == j) sum = sum * NAME(upper)(a.packed, a.sign, n, i, i) + *a.gld;
        }
        a.out[e] = (R)sum;
    }
}

// W^-1, a thread a column: L U x = b, where b is row perm[j] of the identity. `work` is (n, n).
typedef struct {
    const R *packed, *sign;
    const unsigned *perm;
    double *work;
    R *out;
    unsigned n;
} NAME(PluInverse);
LAYOUT(NAME(PluInverse), 48, n, 40);

KERNEL(NAME(plu_inverse), NAME(PluInverse)) {
    unsigned n = a.n;
    for EACH(j, n) {
        double *x = a.work + j;
        for (unsigned i = 0; i < n; i++) {
            double v = i == a.perm[j];
            for (unsigned k = 0; k < i; k++) v -= (double)a.packed[i * n + k] * x[k * n];
            x[i * n] = v;
        }
        for (unsigned i = n; i-- > 0;) {
            double v = x[i * n];
            for (unsigned k = i + 1; k < n; k++) v -= (double)a.packed[i * n + k] * x[k * n];
            v *= (double)a.sign[i] * exp(-(double)a.packed[i * n + i]);
            x[i * n] = v;
            a.out[i * n + j] = (R)v;
        }
    }
}

// W^-1 and log |det W| by Gauss-Jordan elimination with partial pivoting, in f64 and in one block. `work` is (n, 2 n): W beside
// the identity. A singular W gives what is not finite.
typedef struct {
    const R *w;
    double *work;
    R *inverse, *log_det;
    unsigned n;
} NAME(Invert);
LAYOUT(NAME(Invert), 40, n, 32);

KERNEL(NAME(invert), NAME(Invert)) {
    unsigned n = a.n, m = 2 * n;
    double *work = a.work, logs = 0;
    for OF_BLOCK(e, n * m) {
        unsigned i = e / m, j = e % m;
        work[e] = j < n ? (double)a.w[i * n + j] : (double)(j - n == i);
    }
    SYNC();
    for (unsigned k = 0; k < n; k++) {
        // Every thread looks for the pivot itself, so that none has to wait.
        unsigned row = k;
        double most = fabs(work[k * m + k]);
        for (unsigned i = k + 1; i < n; i++) {
            double v = fabs(work[i * m + k]);
            if (v > most) {
                most = v;
                row = i;
            }
        }
        double pivot = work[row * m + k];
        logs += log(most);
        // The pivot's row changes places with row k, and is divided; column k is not read again but in the elimination.
        double *from = work + row * m, *to = work + k * m;
        SYNC();
        for OF_BLOCK(j, m - k) {
            double v = from[k + j];
            if (row != k) from[k + j] = to[k + j];
            to[k + j] = j ? v / pivot : v;
        }
        SYNC();
        unsigned width = m - k - 1;
        for OF_BLOCK(e, n * width) {
            unsigned i = e / width, j = k + 1 + e % width;
            if (i != k) work[i * m + j] -= work[i * m + k] * to[j];
        }
        SYNC();
    }
    for OF_BLOCK(e, n * n) a.inverse[e] = (R)work[e / n * m + n + e % n];
    if (THREAD == 0) *a.log_det = (R)logs;
}

// [x, -x, mask] along the channels, from x (B, C, positions): the input of RealNVP's network. `signs` is 2 with -x, else 1.
typedef struct {
    const R *x, *mask;
    R *out;
    unsigned channels, positions, total, signs;
} NAME(Signed);
LAYOUT(NAME(Signed), 40, signs, 36);

KERNEL(NAME(signed_input), NAME(Signed)) {
    unsigned rows = a.signs * a.channels + (a.mask ? 1 : 0);
    for EACH(i, a.total) {
        unsigned p = i % a.positions, k = i / a.positions % rows, b = i / (a.positions * rows);
        R v;
        if (k < a.channels) v = a.x[(b * a.channels + k) * a.positions + p];
        else if (k < a.signs * a.channels) v = -a.x[(b * a.channels + k - a.channels) * a.positions + p];
        else v = a.mask[p];
        a.out[i] = v;
    }
}

// The gradient of x from that of [x, -x, mask].
typedef struct {
    const R *gu;
    R *gx;
    unsigned channels, positions, total, signs, rows;
} NAME(SignedBack);
LAYOUT(NAME(SignedBack), 40, rows, 32);

KERNEL(NAME(signed_input_back), NAME(SignedBack)) {
    for EACH(i, a.total) {
        unsigned p = i % a.positions, k = i / a.positions % a.channels, b = i / (a.positions * a.channels);
        const R *g = a.gu + (b * a.rows + k) * a.positions + p;
        a.gx[i] = a.signs == 2 ? g[0] - g[a.channels * a.positions] : g[0];
    }
}
