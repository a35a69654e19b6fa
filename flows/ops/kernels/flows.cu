// Every kernel of the library, for each type that it computes in: ops/kernels launches them by name.
#include "portable.h"

#define LOAD(v) (v)
#define STORE(v) (v)

#define NAME(n) n##_f32
#define T float
#define R float
#define FN(fn) fn##f
#include "network.h"
#include "layers.h"
#include "update.h"
#undef LOAD
#undef STORE
#undef NAME
#undef T

// Activations between the convolutions of a network, in half the memory; parameters and arithmetic stay f32.
#define LOAD(v) of_bf16(v)
#define STORE(v) to_bf16(v)
#define NAME(n) n##_bf16
#define T unsigned short
#include "network.h"
#undef LOAD
#undef STORE
#undef NAME
#undef T
#undef R
#undef FN

#define LOAD(v) (v)
#define STORE(v) (v)
#define NAME(n) n##_f64
#define T double
#define R double
#define FN(fn) fn
#include "network.h"
#include "layers.h"
#include "update.h"

#include "batch.h"
