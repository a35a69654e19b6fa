#!/usr/bin/env bash
# A folder of stripped CUDA binaries for a machine that has a GPU and no compiler: dist-cuda.sh [FOLDER]
#
#   flow      the command line
#   tests     every test of the library that computes: FLOWS_NEED_CUDA=1 FLOWS_GOLDEN=./golden ./tests cuda
#   golden    the numbers that they compare with
#   gpu-run.sh  tests, bench and training in that order
#   bench     FLOWS_PEERS=./peers.py ./bench --device cuda:0
#
# With nvcc on PATH the ordinary build serves; without one, build-cuda.sh beside this script brings the compiler.
# CUDA's own libraries (cuBLAS, cuRAND, cuDNN, NVRTC) are opened at their first use, so the binaries start anywhere.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-target/dist-cuda}
features=(--features experiments/cudnn)
target=target/cuda-${KERNELS:-lean}
# The path of the executable that cargo says it made of the target named $1.
executable() {
    python3 -c '
import json, sys
for line in sys.stdin:
    m = json.loads(line)
    if m.get("executable") and m["target"]["name"] == sys.argv[1]:
        print(m["executable"])' "$1"
}
tools/build-cuda.sh build --release --workspace --locked "${features[@]}" --bin flow
tests=$(tools/build-cuda.sh test --release --workspace --locked "${features[@]}" --test all --no-run \
    --message-format json | executable all)
bench=$(tools/build-cuda.sh bench --workspace --locked "${features[@]}" --bench peers --no-run \
    --message-format json | executable peers)
mkdir -p "$out"
cp "$target/release/flow" "$out/flow"
cp "$tests" "$out/tests"
cp "$bench" "$out/bench"
strip "$out/flow" "$out/tests" "$out/bench"
cp flows/benches/peers.py tools/gpu-run.sh "$out/"
rm -rf "$out/golden" && cp -r flows/tests/golden "$out/golden" && rm -f "$out/golden/make.py"
# It starts where there is no GPU, and says so.
"$out/flow" list > /dev/null
du -sh "$out"
