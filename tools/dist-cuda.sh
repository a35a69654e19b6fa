#!/usr/bin/env bash
# Stripped CUDA binaries for a machine that has a GPU and no compiler, as FOLDER and as FOLDER.tar.xz, 40 MB at most:
# dist-cuda.sh [FOLDER]
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
# CUDA's own libraries (cuBLAS, cuRAND, cuDNN, NCCL, NVRTC) are opened at their first use, so the binaries start anywhere.
set -euo pipefail
# Errors are tested for being one sentence.
unset RUST_BACKTRACE
cd "$(dirname "$0")/.."
out=${1:-target/dist-cuda}
most=40000000
fail() { echo "dist-cuda.sh: $*" >&2; exit 1; }
mkdir -p "$out"
rm -rf "$out"/{flow,tests,bench,golden,python,peers.py,models.py,gpu-run.sh,commit}
built=$(tools/build-cuda.sh build --release --workspace --locked --features experiments/cudnn,flows/nccl \
    --bin flow --test all --bench peers --message-format json-render-diagnostics)
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
cp flows/benches/peers/{peers,models}.py tools/gpu-run.sh "$out/"
cp -r flows/tests/golden "$out/golden" && rm -f "$out"/golden/*.py
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
ls -l "$out" | awk 'NR > 1 { print $5, $9 }'
tar -C "$(dirname "$out")" -c "$(basename "$out")" | xz -T0 > "$out.tar.xz"
bytes=$(wc -c < "$out.tar.xz")
echo "$out.tar.xz: $bytes bytes"
[ "$bytes" -le "$most" ] || fail "more than $most bytes"
