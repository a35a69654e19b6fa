// Training batches made on the device from stored bytes: which examples, their variation, their noise.
//
// Every random number is a function of (seed, update, place in the batch, element): Philox4x32-10 (Salmon et al. 2011,
// "Parallel random numbers: as easy as 1, 2, 3"), a counter-based generator, so nothing is kept between launches and a
// resumed run sees the very batches that it would have seen.

typedef struct { unsigned v[4]; } Four;

DEVICE unsigned mul_high(unsigned a, unsigned b) { return (unsigned)(((unsigned long long)a * b) >> 32); }

DEVICE Four philox(Four c, unsigned k0, unsigned k1) {
    for (int round = 0; round < 10; round++) {
        unsigned a = mul_high(0xD2511F53u, c.v[0]), b = 0xD2511F53u * c.v[0];
        unsigned d = mul_high(0xCD9E8D57u, c.v[2]), e = 0xCD9E8D57u * c.v[2];
        Four next = {{d ^ c.v[1] ^ k0, e, a ^ c.v[3] ^ k1, b}};
        c = next;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c;
}

// x = floor(pixel / 2^drop) + r unit, for an image flipped and shifted with its edge pixels repeated. One thread for four
// elements. `orders` holds the order of the epochs with even and with odd numbers. The places made are `batch` of a batch of
// `whole`, from `first` on.
typedef struct {
    const unsigned char *pixels;
    const unsigned *orders, *labels;
    const unsigned long long *update;
    float *x;
    unsigned *out_labels;
    float unit;
    unsigned examples, batch, c, h, w, drop, shift_bits, flip, most_y, most_x, key0, key1, first, whole;
} Batch;
LAYOUT(Batch, 112, whole, 104);

// A whole number from -most to most.
DEVICE int offset(unsigned random, unsigned most) { return (int)mul_high(random, 2 * most + 1) - (int)most; }

DEVICE unsigned clamp_to(int i, unsigned side) { return i < 0 ? 0 : i >= (int)side ? side - 1 : (unsigned)i; }

KERNEL(batch, Batch) {
    unsigned dims = a.c * a.h * a.w, groups = (dims + 3) / 4;
    unsigned long long update = *a.update;
    for EACH(i, a.batch * groups) {
        unsigned made = i / groups, in_batch = a.first + made, first = i % groups * 4;
        unsigned long long position = update * a.whole + in_batch, epoch = position / a.examples;
        unsigned place = a.orders[(epoch & 1) * a.examples + (unsigned)(position % a.examples)];
        // Counters below `groups` are the noise, the last one the variation.
        Four at = {{0xffffffffu, in_batch, (unsigned)update, (unsigned)(update >> 32)}};
        Four vary = philox(at, a.key0, a.key1);
        at.v[0] = i % groups;
        Four noise = philox(at, a.key0, a.key1);
        int flip = a.flip && vary.v[0] >> 31, dy = offset(vary.v[1], a.most_y), dx = offset(vary.v[2], a.most_x);
        const unsigned char *image = a.pixels + (unsigned long long)place * dims;
        for (unsigned k = 0; k < 4 && first + k < dims; k++) {
            unsigned e = first + k, x = e % a.w, y = e / a.w % a.h, c = e / (a.w * a.h);
            unsigned from_y = clamp_to((int)y + dy, a.h), from_x = clamp_to((int)(flip ? a.w - 1 - x : x) + dx, a.w);
            unsigned pixel = image[(c * a.h + from_y) * a.w + from_x] >> a.drop;
            a.x[(unsigned long long)made * dims + e] = (float)pixel + (float)(noise.v[k] >> a.shift_bits) * a.unit;
        }
        if (first == 0 && a.labels) a.out_labels[made] = a.labels[place];
    }
}

// The next update's number, at the end of this one.
typedef struct { unsigned long long *update; } Advance;
LAYOUT(Advance, 8, update, 0);

KERNEL(advance, Advance) {
    if (BLOCK == 0 && THREAD == 0) *a.update += 1;
}

// The generator by itself, for its published values.
typedef struct {
    Four counter;
    unsigned key0, key1;
    unsigned *out;
} Random;
LAYOUT(Random, 32, out, 24);

KERNEL(random_numbers, Random) {
    if (THREAD < 4) a.out[THREAD] = philox(a.counter, a.key0, a.key1).v[THREAD];
}
