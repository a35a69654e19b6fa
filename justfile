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

# Images/s of a training step of each part and model
bench *args:
    cargo bench --workspace --bench step -- {{args}}

# All runs against the papers
table *args:
    cargo run --release -- table {{args}}
