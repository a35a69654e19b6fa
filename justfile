# Every command a person needs, each one line over cargo. `just` lists them.

_default:
    @just --list

# Train, evaluate, sample and print the row of a recipe: `just reproduce realnvp-cifar --data DIR`
reproduce recipe *args:
    cargo run --release -- reproduce {{recipe}} {{args}}

# Everything the tests check
test:
    cargo test --workspace

# What is checked before anything lands
ci:
    bash .ci/run

# What a step is made of, then whole steps beside PyTorch (FLOWS_PYTHON: see flows/benches/requirements.txt)
bench *args:
    CANDLE_NUM_THREADS=1 cargo bench --workspace --bench parts
    cargo bench --workspace --bench peers -- {{args}}

# All runs against the papers
table *args:
    cargo run --release -- table {{args}}
