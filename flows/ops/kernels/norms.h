// Per-channel layers on (B, C, positions): activations T, parameters and arithmetic R, sums double.
//
// A thread takes GROUP neighbours of one channel at a time, in one access to memory, where `wide` says that positions and
// addresses allow it; otherwise one number. Sums over a channel are made by several blocks, its slices, whose partial sums
// are then added in order: a GPU has more multiprocessors than most layers have channels.
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

// A slice of a channel, which block `BLOCK` works on: groups from `first` to `end` of the channel's own.
typedef struct {
    unsigned c, slice, first, end;
} NAME(Slice);

DEVICE NAME(Slice) NAME(slice_of)(unsigned slices, unsigned groups) {
    unsigned each = (groups + slices - 1) / slices, slice = BLOCK % slices, first = slice * each;
    unsigned end = first + each < groups ? first + each : groups;
    NAME(Slice) s = {BLOCK / slices, slice, first, end};
    return s;
}

// The place of group k of channel c.
DEVICE unsigned NAME(place)(unsigned k, unsigned c, unsigned channels, unsigned positions, unsigned wide) {
    unsigned i = k * WIDTH(wide);
    return (i / positions * channels + c) * positions + i % positions;
}

// Writes a sum of a slice: to row `row` of the partial sums, or where there is one slice as the result.
DEVICE void NAME(put_sum)(R *out, double *partial, unsigned slices, unsigned row, unsigned slice, double v) {
    if (slices > 1) partial[row * slices + slice] = v;
    else out[row] = (R)v;
}

// out_i = sum over slices of partial (rows, slices).
typedef struct {
    const double *partial;
    R *out;
    unsigned rows, slices;
} NAME(SliceSums);

KERNEL(NAME(slice_sums), NAME(SliceSums)) {
    for EACH(i, a.rows) {
        double sum = 0;
        for (unsigned s = 0; s < a.slices; s++) sum += a.partial[i * a.slices + s];
        a.out[i] = (R)sum;
    }
}

// z = act((x + map_{c,p} + bias_c) exp(factor logs_c)) + add, its inverse, and ReLU as act. What is null is 0: so this is
// also an added bias, and ReLU alone.
typedef struct {
    const T *x, *add;
    const R *map, *bias, *logs;
    T *out;
    double factor;
    unsigned channels, positions, groups, inverse, relu, wide;
} NAME(ActNorm);

KERNEL(NAME(act_norm), NAME(ActNorm)) {
    for EACH(k, a.groups) {
        unsigned i = k * WIDTH(a.wide), row = i / a.positions, c = row % a.channels, p = i - row * a.positions;
        R b = a.bias ? a.bias[c] : 0, l = a.logs ? (R)a.factor * a.logs[c] : 0, e = FN(exp)(a.inverse ? -l : l);
        R v[GROUP], add[GROUP];
        NAME(load)(v, a.x + i, a.wide);
        if (a.add) NAME(load)(add, a.add + i, a.wide);
        for NEIGHBOURS(j, a.wide) {
            R u = v[j];
            if (a.map) u += a.map[c * a.positions + p + j];
            u = a.inverse ? u * e - b : (u + b) * e;
            // A NaN is not <= 0, and goes on.
            if (a.relu && u <= 0) u = 0;
            v[j] = a.add ? u + add[j] : u;
        }
        NAME(store)(a.out + i, v, a.wide);
    }
}

// From z and its gradient: that of x, and of bias and logs without the log-det's share, (2, C). Where ReLU followed, z is its
// output, and a gradient passes where z is not 0. Null results are left out; without z there are no logs.
typedef struct {
    const T *z, *gz;
    const R *logs;
    T *gx;
    R *sums;
    double *partial;
    double factor;
    unsigned batch, channels, positions, relu, slices, wide;
} NAME(ActNormBack);

KERNEL(NAME(act_norm_back), NAME(ActNormBack)) {
    NAME(Slice) slice = NAME(slice_of)(a.slices, a.batch * a.positions / WIDTH(a.wide));
    R scale = a.logs ? FN(exp)((R)a.factor * a.logs[slice.c]) : 1;
    double s = 0, q = 0;
    for OF_SLICE(k, slice) {
        unsigned i = NAME(place)(k, slice.c, a.channels, a.positions, a.wide);
        R g[GROUP], z[GROUP];
        NAME(load)(g, a.gz + i, a.wide);
        if (a.z) NAME(load)(z, a.z + i, a.wide);
        for NEIGHBOURS(j, a.wide) {
            R v = a.z ? z[j] : 0;
            if (a.relu && v <= 0) g[j] = 0;
            s += g[j];
            q += (double)g[j] * v;
            g[j] *= scale;
        }
        if (a.gx) NAME(store)(a.gx + i, g, a.wide);
    }
    if (!a.sums) return;
    s = block_sum(s);
    q = block_sum(q);
    if (THREAD == 0) {
        NAME(put_sum)(a.sums, a.partial, a.slices, slice.c, slice.slice, s * scale);
        if (a.logs) NAME(put_sum)(a.sums, a.partial, a.slices, a.channels + slice.c, slice.slice, a.factor * q);
    }
}

// The sum over the batch of each of `each` numbers.
typedef struct {
    const T *x;
    R *out;
    unsigned batch, each, groups, wide;
} NAME(BatchSum);

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

// Mean and biased variance of each channel, (2, C): of each slice the sums of x - x_0 and of its square, (2, C, slices), with
// x_0 the channel's first number, so that a large mean cancels nothing.
typedef struct {
    const T *x;
    R *out;
    double *partial;
    unsigned batch, channels, positions, slices, wide;
} NAME(Moments);

KERNEL(NAME(moments), NAME(Moments)) {
    NAME(Slice) slice = NAME(slice_of)(a.slices, a.batch * a.positions / WIDTH(a.wide));
    double first = LOAD(a.x[slice.c * a.positions]), s = 0, q = 0;
    for OF_SLICE(k, slice) {
        R v[GROUP];
        NAME(load)(v, a.x + NAME(place)(k, slice.c, a.channels, a.positions, a.wide), a.wide);
        for NEIGHBOURS(j, a.wide) {
            double d = v[j] - first;
            s += d;
            q += d * d;
        }
    }
    s = block_sum(s);
    q = block_sum(q);
    if (THREAD == 0) {
        a.partial[BLOCK] = s;
        a.partial[a.channels * a.slices + BLOCK] = q;
    }
}

KERNEL(NAME(moments_end), NAME(Moments)) {
    for EACH(c, a.channels) {
        double first = LOAD(a.x[c * a.positions]), n = (double)a.batch * a.positions, s = 0, q = 0;
        for (unsigned k = c * a.slices; k < (c + 1) * a.slices; k++) {
            s += a.partial[k];
            q += a.partial[a.channels * a.slices + k];
        }
        double mean = s / n, var = q / n - mean * mean;
        a.out[c] = (R)(first + mean);
        a.out[a.channels + c] = var > 0 || var != var ? (R)var : 0;
    }
}

// y = gamma_c (x - mean_c) / sqrt(var_c + eps) + beta_c, and ReLU after it.
typedef struct {
    const T *x;
    const R *mean, *var, *gamma, *beta;
    T *out;
    double eps;
    unsigned channels, positions, groups, relu, wide;
} NAME(Norm);

KERNEL(NAME(norm), NAME(Norm)) {
    for EACH(k, a.groups) {
        unsigned i = k * WIDTH(a.wide), c = i / a.positions % a.channels;
        R mean = a.mean[c], scale = a.gamma[c] * (1 / FN(sqrt)(a.var[c] + (R)a.eps)), beta = a.beta[c], v[GROUP];
        NAME(load)(v, a.x + i, a.wide);
        for NEIGHBOURS(j, a.wide) {
            v[j] = (v[j] - mean) * scale + beta;
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
    unsigned batch, channels, positions, groups, relu, own, slices, wide;
} NAME(NormBack);

KERNEL(NAME(norm_back_sums), NAME(NormBack)) {
    NAME(Slice) slice = NAME(slice_of)(a.slices, a.batch * a.positions / WIDTH(a.wide));
    unsigned c = slice.c;
    R mean = a.mean[c], r = 1 / FN(sqrt)(a.var[c] + (R)a.eps), scale = a.gamma[c] * r, beta = a.beta[c];
    double s = 0, q = 0;
    for OF_SLICE(k, slice) {
        unsigned i = NAME(place)(k, c, a.channels, a.positions, a.wide);
        R x[GROUP], g[GROUP];
        NAME(load)(x, a.x + i, a.wide);
        NAME(load)(g, a.gy + i, a.wide);
        for NEIGHBOURS(j, a.wide) {
            R d = x[j] - mean;
            if (a.relu && d * scale + beta <= 0) g[j] = 0;
            s += g[j];
            q += (double)g[j] * (d * r);
        }
    }
    s = block_sum(s);
    q = block_sum(q);
    if (THREAD == 0) {
        NAME(put_sum)(a.sums, a.partial, a.slices, c, slice.slice, s);
        NAME(put_sum)(a.sums, a.partial, a.slices, a.channels + c, slice.slice, q);
    }
}

KERNEL(NAME(norm_back), NAME(NormBack)) {
    R n = (R)((double)a.batch * a.positions);
    for EACH(k, a.groups) {
        unsigned i = k * WIDTH(a.wide), c = i / a.positions % a.channels;
        R mean = a.mean[c], r = 1 / FN(sqrt)(a.var[c] + (R)a.eps), scale = a.gamma[c] * r, beta = a.beta[c];
        R of_mean = a.own ? a.sums[c] / n : 0, of_var = a.own ? a.sums[a.channels + c] / n : 0;
        R x[GROUP], g[GROUP];
        NAME(load)(x, a.x + i, a.wide);
        NAME(load)(g, a.gy + i, a.wide);
        for NEIGHBOURS(j, a.wide) {
            R d = x[j] - mean;
            if (a.relu && d * scale + beta <= 0) g[j] = 0;
            g[j] = scale * (g[j] - of_mean - d * r * of_var);
        }
        NAME(store)(a.gx + i, g, a.wide);
    }
}
