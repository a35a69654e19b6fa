#!/usr/bin/env bash
# A folder of stripped CUDA binaries for a machine that has a GPU and no compiler: dist-cuda.sh [FOLDER]
#
#   flow      the command line
#   tests     every test of the library that computes: FLOWS_NEED_CUDA=1 FLOWS_GOLDEN=./golden ./tests cuda
#   golden    the numbers that they compare with
#
# With nvcc on PATH the ordinary build serves; without one, build-cuda.sh beside this script brings the compiler.
# CUDA's own libraries (cuBLAS, cuRAND, cuDNN, NVRTC) are opened at their first use, so the binaries start anywhere.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-target/dist-cuda}
features=(--features experiments/cudnn)
build=(tools/build-cuda.sh)
target=target/cuda-${KERNELS:-lean}
"${build[@]}" build --release --workspace --locked "${features[@]}" --bin flow
tests=$("${build[@]}" test --release --workspace --locked "${features[@]}" --test all --no-run --message-format json |
    python3 -c '
import json, sys
for line in sys.stdin:
    m = json.loads(line)
    if m.get("executable") and m["target"]["name"] == "all":
        print(m["executable"])')
mkdir -p "$out"
cp "$target/release/flow" "$out/flow"
cp "$tests" "$out/tests"
strip "$out/flow" "$out/tests"
rm -rf "$out/golden" && cp -r flows/tests/golden "$out/golden" && rm -f "$out/golden/make.py"
# It starts where there is no GPU, and says so.
"$out/flow" list > /dev/null
du -sh "$out"
