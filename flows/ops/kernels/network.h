// The layers between the convolutions of a network: activations T, parameters and arithmetic R, sums double.
//
// Channels come last, (B, positions, C), which is what a GPU's convolutions read and write: an activation is `rows` rows of C
// numbers. A thread takes GROUP neighbours of a row at a time, in one access to memory, where `wide` says that channels and
// addresses allow it; otherwise one number. Sums over a channel are made by several blocks, each over a slice of the rows,
// whose partial sums are then added in order.
typedef struct {
    T v[GROUP];
} ALIGNED(sizeof(T) * GROUP < 16 ? sizeof(T) * GROUP : 16) NAME(Group);

DEVICE void NAME(load)(R *to, const T *from, unsigned wide) {
    if (wide) {
        NAME(Group) group = *(const NAME(Group) *)from;
        for (unsigned j = 0; j < GROUP; j++) to[j] = LOAD(group.v[j]);
    } else {
        to[0] = LOAD(*from);
    }
}

DEVICE void NAME(store)(T *to, const R *from, unsigned wide) {
    if (wide) {
        NAME(Group) group;
        for (unsigned j = 0; j < GROUP; j++) group.v[j] = STORE(from[j]);
        *(NAME(Group) *)to = group;
    } else {
        *to = STORE(from[0]);
    }
}

// (B, C, positions) in R to (B, positions, C) in T, and back: images into a network and out of it, and with B the outputs and
// positions the taps of a convolution its kernel.
typedef struct {
    const R *x;
    T *out;
    unsigned channels, positions, total;
} NAME(ToLast);
LAYOUT(NAME(ToLast), 32, total, 24);

KERNEL(NAME(to_last), NAME(ToLast)) {
    for EACH(i, a.total) {
        unsigned c = i % a.channels, row = i / a.channels, p = row % a.positions, b = row / a.positions;
        a.out[i] = STORE(a.x[(b * a.channels + c) * a.positions + p]);
    }
}

typedef struct {
    const T *x;
    R *out;
    unsigned channels, positions, total;
} NAME(FromLast);
LAYOUT(NAME(FromLast), 32, total, 24);

KERNEL(NAME(from_last), NAME(FromLast)) {
    for EACH(i, a.total) {
        unsigned p = i % a.positions, row = i / a.positions, c = row % a.channels, b = row / a.channels;
        a.out[i] = LOAD(a.x[(b * a.positions + p) * a.channels + c]);
    }
}

// z = act((x + map_{p,c} + bias_c) exp(factor logs_c)) + add, and ReLU as act. What is null is 0: so this is also an added
// bias, and ReLU alone. A map has `each` numbers, the same for all images.
typedef struct {
    const T *x, *add;
    const R *map, *bias, *logs;
    T *out;
    double factor;
    unsigned channels, each, groups, relu, wide;
} NAME(NetAct);
LAYOUT(NAME(NetAct), 80, wide, 72);

KERNEL(NAME(net_act), NAME(NetAct)) {
    for EACH(k, a.groups) {
        unsigned i = k * WIDTH(a.wide), c = i % a.channels, at = a.map ? i % a.each : 0;
        R v[GROUP], add[GROUP];
        NAME(load)(v, a.x + i, a.wide);
        if (a.add) NAME(load)(add, a.add + i, a.wide);
        for NEIGHBOURS(j, a.wide) {
            R u = v[j];
            if (a.map) u += a.map[at + j];
            if (a.bias) u += a.bias[c + j];
            if (a.logs) u *= FN(exp)((R)a.factor * a.logs[c + j]);
            // A NaN is not <= 0, and goes on.
            if (a.relu && u <= 0) u = 0;
            v[j] = a.add ? u + add[j] : u;
        }
        NAME(store)(a.out + i, v, a.wide);
    }
}

// From z and its gradient: that of x, and of bias and logs, (2, C). Where ReLU followed, z is its output, and a gradient
// passes where z is not 0. Null results are left out; without z there are no logs.
typedef struct {
    const T *z, *gz;
    const R *logs;
    T *gx;
    R *sums;
    double *partial;
    double factor;
    unsigned rows, channels, relu, slices, wide;
} NAME(NetActBack);
LAYOUT(NAME(NetActBack), 80, wide, 72);

KERNEL(NAME(net_act_back), NAME(NetActBack)) {
    OverRows t = over_rows(a.rows, a.channels, a.slices, a.wide);
    for (unsigned first = 0; first < t.columns; first += t.lanes) {
        unsigned c = (first + t.lane) * WIDTH(a.wide), active = t.active && first + t.lane < t.columns;
        double s[GROUP] = {0}, q[GROUP] = {0};
        R scale[GROUP];
        if (active) {
            for NEIGHBOURS(j, a.wide) scale[j] = a.logs ? FN(exp)((R)a.factor * a.logs[c + j]) : 1;
            for OF_ROWS(r, t) {
                unsigned i = r * a.channels + c;
                R g[GROUP], z[GROUP];
                NAME(load)(g, a.gz + i, a.wide);
                if (a.z) NAME(load)(z, a.z + i, a.wide);
                for NEIGHBOURS(j, a.wide) {
                    R v = a.z ? z[j] : 0;
                    if (a.relu && v <= 0) g[j] = 0;
                    s[j] += g[j];
                    q[j] += (double)g[j] * v;
                    g[j] *= scale[j];
                }
                if (a.gx) NAME(store)(a.gx + i, g, a.wide);
            }
        }
        if (!a.sums) continue;
        for NEIGHBOURS(j, a.wide) {
            double sum = column_sum(s[j], t.lanes), of_logs = column_sum(q[j], t.lanes);
            if (THREAD < t.lanes && active) {
                put_partial(a.partial, a.slices, c + j, sum * scale[j]);
                if (a.logs) put_partial(a.partial, a.slices, a.channels + c + j, a.factor * of_logs);
            }
        }
    }
}

// The sum over the batch of each of `each` numbers.
typedef struct {
    const T *x;
    R *out;
    unsigned batch, each, groups, wide;
} NAME(BatchSum);
LAYOUT(NAME(BatchSum), 32, wide, 28);

KERNEL(NAME(batch_sum), NAME(BatchSum)) {
    for EACH(k, a.groups) {
        unsigned i = k * WIDTH(a.wide);
        double sum[GROUP] = {0};
        for (unsigned b = 0; b < a.batch; b++) {
            R v[GROUP];
            NAME(load)(v, a.x + b * a.each + i, a.wide);
            for NEIGHBOURS(j, a.wide) sum[j] += v[j];
        }
        for NEIGHBOURS(j, a.wide) a.out[i + j] = (R)sum[j];
    }
}

// Mean and biased variance of each channel, (2, C): of each slice the sums of x - x_0 and of its square, with x_0 the
// channel's first number, so that a large mean cancels nothing.
typedef struct {
    const T *x;
    R *out;
    double *partial;
    unsigned rows, channels, slices, wide;
} NAME(Moments);
LAYOUT(NAME(Moments), 40, wide, 36);

KERNEL(NAME(moments), NAME(Moments)) {
    OverRows t = over_rows(a.rows, a.channels, a.slices, a.wide);
    for (unsigned first = 0; first < t.columns; first += t.lanes) {
        unsigned c = (first + t.lane) * WIDTH(a.wide), active = t.active && first + t.lane < t.columns;
        double s[GROUP] = {0}, q[GROUP] = {0};
        if (active) {
            R about[GROUP];
            NAME(load)(about, a.x + c, a.wide);
            for OF_ROWS(r, t) {
                R v[GROUP];
                NAME(load)(v, a.x + r * a.channels + c, a.wide);
                for NEIGHBOURS(j, a.wide) {
                    double d = (double)v[j] - about[j];
                    s[j] += d;
                    q[j] += d * d;
                }
            }
        }
        for NEIGHBOURS(j, a.wide) {
            double sum = column_sum(s[j], t.lanes), squares = column_sum(q[j], t.lanes);
            if (THREAD < t.lanes && active) {
                put_partial(a.partial, a.slices, c + j, sum);
                put_partial(a.partial, a.slices, a.channels + c + j, squares);
            }
        }
    }
}

// One block a channel.
KERNEL(NAME(moments_end), NAME(Moments)) {
    unsigned c = BLOCK;
    double s = slices_sum(a.partial, a.slices, c), q = slices_sum(a.partial, a.slices, a.channels + c);
    if (THREAD == 0) {
        double mean = s / a.rows, var = q / a.rows - mean * mean;
        a.out[c] = (R)(LOAD(a.x[c]) + mean);
        a.out[a.channels + c] = var > 0 || var != var ? (R)var : 0;
    }
}

// y = gamma_c (x - mean_c) / sqrt(var_c + eps) + beta_c, and ReLU after it.
typedef struct {
    const T *x;
    const R *mean, *var, *gamma, *beta;
    T *out;
    double eps;
    unsigned channels, groups, relu, wide;
} NAME(Norm);
LAYOUT(NAME(Norm), 72, wide, 68);

KERNEL(NAME(norm), NAME(Norm)) {
    for EACH(k, a.groups) {
        unsigned i = k * WIDTH(a.wide), c = i % a.channels;
        R v[GROUP];
        NAME(load)(v, a.x + i, a.wide);
        for NEIGHBOURS(j, a.wide) {
            R scale = a.gamma[c + j] * (1 / FN(sqrt)(a.var[c + j] + (R)a.eps));
            v[j] = (v[j] - a.mean[c + j]) * scale + a.beta[c + j];
            if (a.relu && v[j] <= 0) v[j] = 0;
        }
        NAME(store)(a.out + i, v, a.wide);
    }
}

// The backward pass in two kernels: the gradients of beta and gamma, (2, C), and from them that of x. `own` says that mean and
// variance are those of x, so that they move with it.
typedef struct {
    const T *x, *gy;
    const R *mean, *var, *gamma, *beta;
    T *gx;
    R *sums;
    double *partial;
    double eps;
    unsigned rows, channels, groups, relu, own, slices, wide;
} NAME(NormBack);
LAYOUT(NAME(NormBack), 112, wide, 104);

KERNEL(NAME(norm_back_sums), NAME(NormBack)) {
    OverRows t = over_rows(a.rows, a.channels, a.slices, a.wide);
    for (unsigned first = 0; first < t.columns; first += t.lanes) {
        unsigned c = (first + t.lane) * WIDTH(a.wide), active = t.active && first + t.lane < t.columns;
        double s[GROUP] = {0}, q[GROUP] = {0};
        if (active) {
            R mean[GROUP], r[GROUP], scale[GROUP], beta[GROUP];
            for NEIGHBOURS(j, a.wide) {
                mean[j] = a.mean[c + j];
                r[j] = 1 / FN(sqrt)(a.var[c + j] + (R)a.eps);
                scale[j] = a.gamma[c + j] * r[j];
                beta[j] = a.beta[c + j];
            }
            for OF_ROWS(row, t) {
                unsigned i = row * a.channels + c;
                R x[GROUP], g[GROUP];
                NAME(load)(x, a.x + i, a.wide);
                NAME(load)(g, a.gy + i, a.wide);
                for NEIGHBOURS(j, a.wide) {
                    R d = x[j] - mean[j];
                    if (a.relu && d * scale[j] + beta[j] <= 0) g[j] = 0;
                    s[j] += g[j];
                    q[j] += (double)g[j] * (d * r[j]);
                }
            }
        }
        for NEIGHBOURS(j, a.wide) {
            double of_beta = column_sum(s[j], t.lanes), of_gamma = column_sum(q[j], t.lanes);
            if (THREAD < t.lanes && active) {
                put_partial(a.partial, a.slices, c + j, of_beta);
                put_partial(a.partial, a.slices, a.channels + c + j, of_gamma);
            }
        }
    }
}

KERNEL(NAME(norm_back), NAME(NormBack)) {
    R n = (R)a.rows;
    for EACH(k, a.groups) {
        unsigned i = k * WIDTH(a.wide), c = i % a.channels;
        R x[GROUP], g[GROUP];
        NAME(load)(x, a.x + i, a.wide);
        NAME(load)(g, a.gy + i, a.wide);
        for NEIGHBOURS(j, a.wide) {
            R r = 1 / FN(sqrt)(a.var[c + j] + (R)a.eps), scale = a.gamma[c + j] * r, d = x[j] - a.mean[c + j];
            if (a.relu && d * scale + a.beta[c + j] <= 0) g[j] = 0;
            if (a.own) g[j] -= a.sums[c + j] / n + d * r * (a.sums[a.channels + c + j] / n);
            g[j] *= scale;
        }
        NAME(store)(a.gx + i, g, a.wide);
    }
}

// w = g v / |v| for each output channel of v (O, C, taps), as a convolution takes it, (O, taps, C), and 1/|v|. One block a
// channel.
typedef struct {
    const R *v, *g;
    T *w;
    double *inverse;
    unsigned channels, taps;
} NAME(WeightNorm);
LAYOUT(NAME(WeightNorm), 40, taps, 36);

KERNEL(NAME(weight_norm), NAME(WeightNorm)) {
    unsigned n = a.channels * a.taps;
    const R *v = a.v + BLOCK * n;
    double q = 0;
    for OF_BLOCK(i, n) q += (double)v[i] * v[i];
    // A direction of zeros has no norm to divide by.
    double inverse = 1 / sqrt(block_sum(q) + 1e-12);
    R scale = (R)(a.g[BLOCK] * inverse);
    for OF_BLOCK(i, n) a.w[BLOCK * n + i] = STORE(v[i % a.channels * a.taps + i / a.channels] * scale);
    if (THREAD == 0) a.inverse[BLOCK] = inverse;
}

// g_g = g_w . v / |v|,  g_v = g / |v| (g_w - (g_w . v / |v|) v / |v|), with g_w (O, taps, C).
typedef struct {
    const T *gw;
    const R *v, *g;
    const double *inverse;
    R *gv, *gg;
    unsigned channels, taps;
} NAME(WeightNormBack);
LAYOUT(NAME(WeightNormBack), 56, taps, 52);

KERNEL(NAME(weight_norm_back), NAME(WeightNormBack)) {
    unsigned n = a.channels * a.taps;
    const T *gw = a.gw + BLOCK * n;
    const R *v = a.v + BLOCK * n;
    double dot = 0, inverse = a.inverse[BLOCK];
    for OF_BLOCK(i, n) dot += (double)LOAD(gw[i % a.taps * a.channels + i / a.taps]) * v[i];
    double along = block_sum(dot) * inverse;
    R scale = (R)(a.g[BLOCK] * inverse), back = (R)(along * inverse);
    for OF_BLOCK(i, n) a.gv[BLOCK * n + i] = scale * (LOAD(gw[i % a.taps * a.channels + i / a.taps]) - back * v[i]);
    if (THREAD == 0) a.gg[BLOCK] = (R)along;
}
