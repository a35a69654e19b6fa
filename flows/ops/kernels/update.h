// The optimiser over all parameters at once. Tables that never change lie on the device; only the gradients' addresses come
// with each launch, by value. `chunks` says which tensor a block works on and where it starts.

#ifndef TENSORS
// As many addresses as the 32764 bytes of a launch's arguments hold, beside the rest.
#define TENSORS 3500
// Elements a block works on.
#define CHUNK 16384
// The numbers of one update, written by the host before it: see `on_device` in update/cuda.rs.
typedef struct {
    double b1, b2, eps, a, c, lr, momentum, decay, max_norm, rule;
} Hyper;
// What updates leave to be read back now and then.
typedef struct {
    double loss, norm, clip, updates, bad, bad_loss;
} Tally;
enum { ADAM, ADAMAX, RMS_PROP };

// Numbers of the host written over the first `n` of `out`. They are arguments of the launch, which waits for nothing: a copy from
// the host's memory may wait for all that was launched before it.
#define NUMBERS 10
typedef struct {
    double v[NUMBERS];
    double *out;
    unsigned n;
} Put;
LAYOUT(Put, 96, n, 88);

KERNEL(put, Put) {
    for OF_BLOCK(i, a.n) a.out[i] = a.v[i];
}
#endif

typedef struct {
    R *const *p, *const *state, *const *average;
    // Two numbers a tensor: c in g <- g + c p, and the weight decay w in p <- (1 - lr w) p.
    const double *penalty;
    const unsigned *len, *chunks;
    double *partial;
    Hyper *hyper;
    Tally *tally;
    // This update's norm, and what the gradients are multiplied by.
    double *found;
    const R *loss;
    unsigned parts;
    const R *g[TENSORS];
} NAME(Update);
LAYOUT(NAME(Update), 28096, g, 96);

// The sum of squares of a chunk of gradients (and of L2's share).
KERNEL(NAME(square_sums), NAME(Update)) {
    unsigned t = a.chunks[2 * BLOCK], start = a.chunks[2 * BLOCK + 1], n = a.len[t] - start;
    double q = 0;
    if (a.g[t]) {
        for OF_BLOCK(k, n < CHUNK ? n : CHUNK) {
            R g = a.g[t][start + k];
            if (a.penalty[2 * t] != 0) g += (R)a.penalty[2 * t] * a.p[t][start + k];
            q += (double)g * g;
        }
    }
    q = block_sum(q);
    if (THREAD == 0) a.partial[BLOCK] = q;
}

// The norm of all gradients, how they are clipped, and the tally. After a loss or a norm that is not finite nothing is
// updated any more: the parameters stay as they were before that update, whenever the host looks.
KERNEL(NAME(clip), NAME(Update)) {
    double q = 0;
    for OF_BLOCK(i, a.parts) q += a.partial[i];
    q = block_sum(q);
    if (THREAD == 0) {
        double norm = sqrt(q), loss = *a.loss, most = a.hyper->max_norm;
        a.found[0] = norm;
        a.found[1] = norm > most ? most / norm : 1;
        if (a.tally->bad == 0) {
            int bad = !(norm - norm == 0), bad_loss = !(loss - loss == 0);
            if (bad || bad_loss) {
                a.tally->bad = 1;
                a.tally->bad_loss = bad_loss;
            } else {
                a.tally->loss += loss;
                a.tally->norm += norm;
                a.tally->clip += a.found[1];
                a.tally->updates += 1;
            }
        }
    }
}

// State, parameter and moving average of a chunk.
KERNEL(NAME(optimise), NAME(Update)) {
    if (a.tally->bad != 0) return;
    Hyper h = *a.hyper;
    unsigned t = a.chunks[2 * BLOCK], start = a.chunks[2 * BLOCK + 1], len = a.len[t], n = len - start;
    R *p = a.p[t] + start, *m = a.state[t] + start, *v = m + len, *e = a.average ? a.average[t] + start : 0;
    const R *gs = a.g[t] ? a.g[t] + start : 0;
    R clip = (R)a.found[1], l2 = (R)a.penalty[2 * t], keep = (R)(1 - h.lr * a.penalty[2 * t + 1]);
    R b1 = (R)h.b1, b2 = (R)h.b2, c1 = (R)(1 - h.b1), c2 = (R)(1 - h.b2);
    for OF_BLOCK(k, n < CHUNK ? n : CHUNK) {
        if (gs) {
            R g = (gs[k] + l2 * p[k]) * clip;
            if (h.rule == ADAM) {
                m[k] = b1 * m[k] + c1 * g;
                v[k] = b2 * v[k] + c2 * g * g;
                p[k] = keep * p[k] - (R)h.a * m[k] / (FN(sqrt)(v[k]) * (R)h.c + (R)h.eps);
            } else if (h.rule == ADAMAX) {
                m[k] = b1 * m[k] + c1 * g;
                R old = b2 * v[k], new_v = FN(fabs)(g);
                v[k] = old > new_v ? old : new_v;
                p[k] = keep * p[k] - (R)h.a * m[k] / (v[k] * (R)h.c + (R)h.eps);
            } else {
                v[k] = b2 * v[k] + c2 * g * g;
                m[k] = (R)h.momentum * m[k] + (R)h.lr * g / FN(sqrt)(v[k] + (R)h.eps);
                p[k] = keep * p[k] - m[k];
            }
        }
        if (e) e[k] = (R)h.decay * e[k] + (R)(1 - h.decay) * p[k];
    }
}
