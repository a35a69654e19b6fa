# Every command a person needs, each one line over cargo. `just` lists them.

_default:
    @just --list

# Train, evaluate, sample and print the row of a recipe: `just reproduce realnvp-cifar --data DIR`
reproduce recipe *args:
    cargo run --release -- reproduce {{recipe}} {{args}}

# All tests that need no GPU
test:
    cargo test --workspace

# Tests of the GPU's code path without a GPU: the kernels compiled as C, alone, in whole models, and in training
test-emulated:
    cargo test --workspace --features experiments/emulate --lib
    cargo test --workspace --features experiments/emulate --test all emulated

# Tests of processes that train together, by OpenMPI's mpirun
test-ranks:
    cargo test --workspace --features experiments/mpi --test ranks

# The tests that compute, on the first GPU, one by one (the precision of products is a switch of the process); fails where there is none
test-cuda:
    FLOWS_NEED_CUDA=1 cargo test --release --workspace --features experiments/cudnn --test all cuda -- --test-threads 1

# Training, evaluation, sampling and their memory on a GPU beside PyTorch, eager and compiled: `just bench-cuda --tf32`
bench-cuda *args:
    cargo bench --workspace --features experiments/cudnn --bench peers -- --device cuda:0 {{args}}

# A folder of stripped CUDA binaries, 40 MB at most, for a machine without a compiler; gpu-run.sh in it is what to run there
dist-cuda *args:
    tools/dist-cuda.sh {{args}}

# What is checked before anything lands
ci:
    bash .ci/run

# Benchmarks: the parts of a training step, then whole steps beside PyTorch (FLOWS_PYTHON: see flows/benches/peers/requirements.txt)
bench *args:
    CANDLE_NUM_THREADS=1 cargo bench --workspace --bench parts
    cargo bench --workspace --bench peers -- {{args}}

# All runs against the papers
table *args:
    cargo run --release -- table {{args}}

# A run as one HTML file
report *args:
    cargo run --release -- report {{args}}

# A run out to a Jupyter notebook
notebook *args:
    cargo run --release --bin notebooks-export -- {{args}}
