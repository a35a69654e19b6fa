#!/usr/bin/env bash
# A folder of stripped CUDA binaries, 40 MB at most, for a machine that has a GPU and no compiler: dist-cuda.sh [FOLDER]
#
#   flow        the command line
#   tests       every test of the library that computes: FLOWS_NEED_CUDA=1 FLOWS_GOLDEN=./golden ./tests cuda
#   golden      the numbers that they compare with
#   bench       FLOWS_PEERS=./peers.py PYTHONPATH=./python ./bench --device cuda:0
#   python      normflows, the peer that few machines have; PyTorch and numpy have to be there
#   gpu-run.sh  tests, bench and training in that order
#   commit      what all of it was built from
#
# With nvcc on PATH the ordinary build serves; without one, build-cuda.sh beside this script brings the compiler.
# CUDA's own libraries (cuBLAS, cuRAND, cuDNN, NVRTC) are opened at their first use, so the binaries start anywhere.
#
# What makes it small: flow, tests and bench were 41.1 + 19.4 MB and one more in the profile `release`.
# - The profile `dist` (Cargo.toml) optimises each program as one piece: 26.9 + 15.1 + 14.3 MB. Compiled in parts, candle
#   held some kernels' PTX twice, and each program what it never calls.
# - build-cuda.sh packs candle's PTX, 5.4 MB in each, to 0.9; `dist` builds for size what no timed number depends on:
#   20.1 + 8.3 + 7.6 MB, and training a Glow on a CPU as fast as before.
set -euo pipefail
# Errors are tested for being one sentence.
unset RUST_BACKTRACE
cd "$(dirname "$0")/.."
out=${1:-target/dist-cuda}
most=40000000
fail() { echo "dist-cuda.sh: $*" >&2; exit 1; }
mkdir -p "$out"
rm -rf "$out"/{flow,tests,bench,golden,python,peers.py,gpu-run.sh,commit}
# By itself, `flow` is without what the tests alone need of shared dependencies.
build() { tools/build-cuda.sh build --profile dist --workspace --locked --features experiments/cudnn "$@" --message-format json-render-diagnostics; }
built=$(build --bin flow && build --test all --bench peers)
take() { # take TARGET AS: the executable that cargo says it made of the target
    local path
    path=$(python3 -c '
import json, sys
for line in sys.stdin:
    m = json.loads(line)
    if m.get("executable") and m["target"]["name"] == sys.argv[1]:
        print(m["executable"])' "$1" <<< "$built")
    strip -o "$out/$2" "$path"
}
take flow flow
take all tests
take peers bench
cp flows/benches/peers/peers.py tools/gpu-run.sh "$out/"
cp -r flows/tests/golden "$out/golden" && rm -f "$out/golden/make.py"
python3 -m pip install -q --no-deps --no-compile --disable-pip-version-check --root-user-action=ignore \
    --target "$out/python" "$(grep '^normflows==' flows/benches/peers/requirements.txt)"
commit=$(git rev-parse --short HEAD 2> /dev/null || echo unknown)
git diff --quiet HEAD 2> /dev/null || commit=$commit-dirty
echo "$commit" > "$out/commit"

# It starts where there is no GPU, and says in one sentence what is missing; no machine has this many.
"$out/flow" list > /dev/null
for program in "flow reproduce quickstart" bench; do
    said=$("$out"/$program --device cuda:999 2>&1) && fail "$program runs on a GPU that is not there"
    [ "$(wc -l <<< "$said")" = 1 ] && [[ $said = error:* ]] || fail "$program does not say in one sentence what is missing: $said"
done
bytes=$(find "$out" -type f -printf '%s\n' | awk '{ n += $1 } END { print n }')
ls -l "$out" | awk 'NR > 1 { print $5, $9 }'
echo "$out: $bytes bytes"
[ "$bytes" -le "$most" ] || fail "more than $most bytes"
