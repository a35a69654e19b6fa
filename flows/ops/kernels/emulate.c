// The kernels on a processor without a GPU, for tests: a block's threads are coroutines that take turns from one
// synchronisation to the next, and blocks come one after another.
#define _XOPEN_SOURCE 700
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include "flows.cu"

unsigned emulated_thread, emulated_block, emulated_blocks;

#define STACK (128 * 1024)
static ucontext_t scheduler, threads[THREADS];
static char *stacks;
static int running[THREADS];
static void (*kernel)(const void *);
static const void *arguments;

void emulated_sync(void) { swapcontext(&threads[emulated_thread], &scheduler); }

static void thread(void) {
    kernel(arguments);
    running[emulated_thread] = 0;
}

#define TYPED(name, type) {#name "_" #type, name##_##type}
#define NETWORK(type)                                                                                                  \
    TYPED(to_last, type), TYPED(from_last, type), TYPED(net_act, type), TYPED(net_act_back, type),                     \
        TYPED(batch_sum, type), TYPED(moments, type), TYPED(moments_end, type), TYPED(norm, type),                     \
        TYPED(norm_back_sums, type), TYPED(norm_back, type), TYPED(weight_norm, type), TYPED(weight_norm_back, type)
#define LAYERS(type)                                                                                                   \
    NETWORK(type), TYPED(act_norm, type), TYPED(act_norm_back, type), TYPED(slice_sums, type),                         \
        TYPED(mix_moments, type), TYPED(sum_vectors, type), TYPED(scaled_sum, type), TYPED(coupling, type),            \
        TYPED(coupling_back, type), TYPED(take_part, type), TYPED(add_part, type), TYPED(squeeze, type),               \
        TYPED(channel_mix, type), TYPED(channel_outer, type), TYPED(plu, type), TYPED(plu_back, type),                 \
        TYPED(plu_inverse, type), TYPED(invert, type), TYPED(signed_input, type), TYPED(signed_input_back, type),      \
        TYPED(square_sums, type), TYPED(clip, type), TYPED(optimise, type)
static const struct {
    const char *name;
    void (*kernel)(const void *);
} kernels[] = {LAYERS(f32), LAYERS(f64), NETWORK(bf16), {"batch", batch}, {"advance", advance},
               {"random_numbers", random_numbers}, {"put", put}};

// Runs the kernel `name` on `blocks` blocks; 1 if there is none, 2 without memory. Not for two callers at once.
int flows_emulate(const char *name, unsigned blocks, const void *args) {
    kernel = 0;
    for (unsigned i = 0; i < sizeof kernels / sizeof *kernels; i++) {
        if (!strcmp(kernels[i].name, name)) kernel = kernels[i].kernel;
    }
    if (!kernel) return 1;
    if (!stacks && !(stacks = malloc((size_t)THREADS * STACK))) return 2;
    arguments = args;
    emulated_blocks = blocks;
    for (emulated_block = 0; emulated_block < blocks; emulated_block++) {
        volatile int left = THREADS;
        for (unsigned t = 0; t < THREADS; t++) {
            getcontext(&threads[t]);
            threads[t].uc_stack.ss_sp = stacks + (size_t)t * STACK;
            threads[t].uc_stack.ss_size = STACK;
            threads[t].uc_link = &scheduler;
            makecontext(&threads[t], thread, 0);
            running[t] = 1;
        }
        while (left > 0) {
            left = 0;
            for (unsigned t = 0; t < THREADS; t++) {
                if (!running[t]) continue;
                emulated_thread = t;
                swapcontext(&scheduler, &threads[t]);
                left += running[t];
            }
        }
    }
    return 0;
}
