// Per-channel layers on (B, C, positions): activations T, parameters and arithmetic R, sums double.

// z = (x + bias_c) exp(factor logs_c), its inverse, and ReLU after it. A null bias is 0, null logs are 0: so this is also
// an added bias, and ReLU alone.
typedef struct {
    const T *x;
    const R *bias, *logs;
    T *out;
    double factor;
    unsigned channels, positions, total, inverse, relu;
} NAME(ActNorm);

KERNEL(NAME(act_norm), NAME(ActNorm)) {
    for EACH(i, a.total) {
        unsigned c = i / a.positions % a.channels;
        R v = LOAD(a.x[i]), b = a.bias ? a.bias[c] : 0, k = a.logs ? (R)a.factor * a.logs[c] : 0;
        v = a.inverse ? v * FN(exp)(-k) - b : (v + b) * FN(exp)(k);
        // A NaN is not <= 0, and goes on.
        if (a.relu && v <= 0) v = 0;
        a.out[i] = STORE(v);
    }
}

// From z and its gradient: that of x, and of bias and logs without the log-det's share. One block a channel. Where ReLU
// followed, z is its output, and a gradient passes where z is not 0. Null results are left out.
typedef struct {
    const T *z, *gz;
    const R *logs;
    T *gx;
    R *gbias, *glogs;
    double factor;
    unsigned batch, channels, positions, relu;
} NAME(ActNormBack);

KERNEL(NAME(act_norm_back), NAME(ActNormBack)) {
    unsigned c = BLOCK, n = a.batch * a.positions;
    R scale = a.logs ? FN(exp)((R)a.factor * a.logs[c]) : 1;
    double s = 0, q = 0;
    for OF_BLOCK(k, n) {
        unsigned i = (k / a.positions * a.channels + c) * a.positions + k % a.positions;
        R g = LOAD(a.gz[i]), z = a.z ? LOAD(a.z[i]) : 0;
        if (a.relu && z <= 0) g = 0;
        s += g;
        q += (double)g * z;
        if (a.gx) a.gx[i] = STORE(g * scale);
    }
    s = block_sum(s);
    q = block_sum(q);
    if (THREAD == 0) {
        if (a.gbias) a.gbias[c] = (R)(s * scale);
        if (a.glogs) a.glogs[c] = (R)(a.factor * q);
    }
}

// Mean and biased variance of each channel, (2, C). One block a channel, two passes.
typedef struct {
    const T *x;
    R *out;
    unsigned batch, channels, positions;
} NAME(Moments);

KERNEL(NAME(moments), NAME(Moments)) {
    unsigned c = BLOCK, n = a.batch * a.positions;
    double s = 0, q = 0;
    for OF_BLOCK(k, n) {
        s += LOAD(a.x[(k / a.positions * a.channels + c) * a.positions + k % a.positions]);
    }
    double mean = block_sum(s) / n;
    for OF_BLOCK(k, n) {
        double d = LOAD(a.x[(k / a.positions * a.channels + c) * a.positions + k % a.positions]) - mean;
        q += d * d;
    }
    q = block_sum(q);
    if (THREAD == 0) {
        a.out[c] = (R)mean;
        a.out[a.channels + c] = (R)(q / n);
    }
}

// y = gamma_c (x - mean_c) / sqrt(var_c + eps) + beta_c, and ReLU after it.
typedef struct {
    const T *x;
    const R *mean, *var, *gamma, *beta;
    T *out;
    double eps;
    unsigned channels, positions, total, relu;
} NAME(Norm);

KERNEL(NAME(norm), NAME(Norm)) {
    for EACH(i, a.total) {
        unsigned c = i / a.positions % a.channels;
        R v = (LOAD(a.x[i]) - a.mean[c]) / FN(sqrt)(a.var[c] + (R)a.eps) * a.gamma[c] + a.beta[c];
        if (a.relu && v <= 0) v = 0;
        a.out[i] = STORE(v);
    }
}

// The backward pass; `own` says that mean and variance are those of x, so that they move with it. One block a channel.
typedef struct {
    const T *x, *gy;
    const R *mean, *var, *gamma, *beta;
    T *gx;
    R *ggamma, *gbeta;
    double eps;
    unsigned batch, channels, positions, relu, own;
} NAME(NormBack);

KERNEL(NAME(norm_back), NAME(NormBack)) {
    unsigned c = BLOCK, n = a.batch * a.positions;
    R mean = a.mean[c], r = 1 / FN(sqrt)(a.var[c] + (R)a.eps), gamma = a.gamma[c], beta = a.beta[c];
    double s = 0, q = 0;
    for OF_BLOCK(k, n) {
        unsigned i = (k / a.positions * a.channels + c) * a.positions + k % a.positions;
        R h = (LOAD(a.x[i]) - mean) * r, g = LOAD(a.gy[i]);
        if (a.relu && h * gamma + beta <= 0) g = 0;
        s += g;
        q += (double)g * h;
    }
    s = block_sum(s);
    q = block_sum(q);
    R of_mean = a.own ? (R)(s / n) : 0, of_var = a.own ? (R)(q / n) : 0;
    for OF_BLOCK(k, n) {
        unsigned i = (k / a.positions * a.channels + c) * a.positions + k % a.positions;
        R h = (LOAD(a.x[i]) - mean) * r, g = LOAD(a.gy[i]);
        if (a.relu && h * gamma + beta <= 0) g = 0;
        a.gx[i] = STORE(gamma * r * (g - of_mean - h * of_var));
    }
    if (THREAD == 0) {
        a.ggamma[c] = (R)q;
        a.gbeta[c] = (R)s;
    }
}
