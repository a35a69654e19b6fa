// What the kernels are written in: CUDA, or plain C on one processor.
//
// Every kernel takes one struct by value and runs blocks of THREADS threads on a one-dimensional grid. Compiled by nvcc it is
// a CUDA kernel; compiled by a C compiler (emulate.c) it is the same code with each thread a coroutine, so that its
// arithmetic, its indices and its launch are tested where there is no GPU. The subset is C: no templates, no overloads.
#ifdef __CUDACC__
// As in launch.rs.
#define THREADS 256
#define DEVICE static __device__ __forceinline__
#define SHARED __shared__
#define THREAD threadIdx.x
#define BLOCK blockIdx.x
#define BLOCKS gridDim.x
#define SYNC() __syncthreads()
#define ALIGNED(bytes) __align__(bytes)
// The struct stays in constant memory, however large: it is read in place.
#define KERNEL(name, Args) extern "C" __global__ void __launch_bounds__(THREADS) name(const __grid_constant__ Args a)
#else
#include <math.h>
// Nothing depends on their number, and coroutines are slow.
#define THREADS 8
#define DEVICE static inline
#define SHARED static
#define THREAD emulated_thread
#define BLOCK emulated_block
#define BLOCKS emulated_blocks
#define SYNC() emulated_sync()
#define ALIGNED(bytes) __attribute__((aligned(bytes)))
// The names are expanded before they are pasted.
#define KERNEL(name, Args) KERNEL_OF(name, Args)
#define KERNEL_OF(name, Args)                                                                                          \
    static void name##_body(const Args a);                                                                             \
    void name(const void *args) { name##_body(*(const Args *)args); }                                                  \
    static void name##_body(const Args a)
extern unsigned emulated_thread, emulated_block, emulated_blocks;
void emulated_sync(void);
#endif

// Checks when this is compiled that a struct has the size, and its last field the place, that `layout!` in the host's code checks
// of the host's own struct.
#include <stddef.h>
#ifdef __cplusplus
#define LAYOUT(Args, size, last, at) static_assert(sizeof(Args) == size && offsetof(Args, last) == at, "as on the host")
#else
#define LAYOUT(Args, size, last, at) _Static_assert(sizeof(Args) == size && offsetof(Args, last) == at, "as on the host")
#endif

// This thread's elements of 0..n over the whole grid.
#define EACH(i, n) (unsigned i = BLOCK * THREADS + THREAD; i < (n); i += BLOCKS * THREADS)
// This thread's elements of 0..n within its block.
#define OF_BLOCK(i, n) (unsigned i = THREAD; i < (n); i += THREADS)

// Neighbours that a thread takes at once, where `wide` says that it may.
#define GROUP 4
#define WIDTH(wide) ((wide) ? GROUP : 1)
// The bound is a constant, so that they stay in registers.
#define NEIGHBOURS(j, wide) (unsigned j = 0; j < GROUP; j++) if (j == 0 || (wide))

// The sum over the block's threads, known to all of them, always in the same order.
DEVICE double block_sum(double v) {
    SHARED double part[THREADS];
    part[THREAD] = v;
    SYNC();
    for (unsigned half = THREADS / 2; half > 0; half /= 2) {
        if (THREAD < half) part[THREAD] += part[THREAD + half];
        SYNC();
    }
    double s = part[0];
    SYNC();
    return s;
}

// Sums over many numbers are made by several blocks, each over a slice of them: a GPU has more multiprocessors than most layers
// have channels. Slice `slice` of sum `row` is partial[row * slices + slice]; slice_sums adds them in order.
DEVICE void put_partial(double *partial, unsigned slices, unsigned row, double v) {
    partial[row * slices + BLOCK % slices] = v;
}

// The sum of the slices of sum `row`, known to all threads of the block.
DEVICE double slices_sum(const double *partial, unsigned slices, unsigned row) {
    double sum = 0;
    for OF_BLOCK(s, slices) sum += partial[row * slices + s];
    return block_sum(sum);
}

// The part of slice BLOCK % slices in `n` things: from `first` to `end`.
typedef struct {
    unsigned first, end;
} Slice;

DEVICE Slice slice_of(unsigned n, unsigned slices) {
    unsigned each = (n + slices - 1) / slices, first = BLOCK % slices * each;
    Slice s = {first, first + each < n ? first + each : n};
    return s;
}

// This thread's elements of a slice.
#define OF_SLICE(k, s) (unsigned k = (s).first + THREAD; k < (s).end; k += THREADS)

// How a block's threads share out the rows of its slice: `lanes` neighbours take the columns (groups of channels) of a row, so
// many rows at once as there are threads for; the rest of them are not active.
typedef struct {
    unsigned first, end, columns, lanes, lane, step, active;
} OverRows;

DEVICE OverRows over_rows(unsigned rows, unsigned channels, unsigned slices, unsigned wide) {
    Slice s = slice_of(rows, slices);
    unsigned columns = channels / WIDTH(wide), lanes = columns < THREADS ? columns : THREADS, step = THREADS / lanes;
    OverRows t = {s.first + THREAD / lanes, s.end, columns, lanes, THREAD % lanes, step, THREAD / lanes < step};
    return t;
}

#define OF_ROWS(r, t) (unsigned r = (t).first; r < (t).end; r += (t).step)

// The sum of v over the threads of the same lane, in order; for the first `lanes` threads.
DEVICE double column_sum(double v, unsigned lanes) {
    SHARED double part[THREADS];
    part[THREAD] = v;
    SYNC();
    double s = 0;
    for (unsigned t = THREAD; t < THREADS / lanes * lanes; t += lanes) s += part[t];
    SYNC();
    return s;
}

// bf16 is stored as its sixteen bits.
DEVICE float of_bf16(unsigned short v) {
    union { unsigned u; float f; } b;
    b.u = (unsigned)v << 16;
    return b.f;
}

// To nearest, ties to even; a NaN stays one.
DEVICE unsigned short to_bf16(float v) {
    union { unsigned u; float f; } b;
    b.f = v;
    if (v != v) return 0x7fc0;
    return (unsigned short)((b.u + 0x7fff + ((b.u >> 16) & 1)) >> 16);
}
