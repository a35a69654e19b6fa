#!/usr/bin/env bash
# What a GPU is asked, in the order of what matters: are the numbers right, are they fast, what do they learn.
# Run it in a folder that dist-cuda.sh made (it is in there): gpu-run.sh OUT DATA
#
#   OUT       where results go            DATA   MNIST and CIFAR-10, as `flow --data` takes them
#   DEVICE    cuda:0; `cpu` tries the script where there is no GPU
#   MINUTES   whole minutes of training, for each of the two models (default 6); tests take up to 5 minutes, the bench up to 8
#   PYTHON    a Python with PyTorch, for the bench and for CUDA's libraries (default python3)
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$(mkdir -p "$1" && cd "$1" && pwd)
data=$2
device=${DEVICE:-cuda:0} minutes=${MINUTES:-6} python=${PYTHON:-python3}
# PyTorch's wheels bring CUDA's libraries.
wheels=$("$python" -c 'import os, nvidia; print(list(nvidia.__path__)[0])' 2> /dev/null) &&
    export LD_LIBRARY_PATH=$wheels/cu13/lib:$wheels/cudnn/lib:${LD_LIBRARY_PATH:-}
# Without a GPU the twins on the CPU stand in for those that need one.
half=cuda need=FLOWS_NEED_CUDA=1
[ "$device" = cpu ] && half=cpu need=FLOWS_ON_CPU=1
failed=0
step() { # step NAME SECONDS command...
    local name=$1 limit=$2 start=$SECONDS
    shift 2
    timeout "$limit" "$@" > "$out/$name.txt" 2>&1
    local rc=$?
    echo "$name: exit $rc after $((SECONDS - start)) s: $(tail -n 1 "$out/$name.txt" | cut -c 1-200)"
    [ $rc = 0 ] || failed=1
}
step tests 300 env "$need" FLOWS_GOLDEN="$here/golden" "$here/tests" "$half"
step bench 480 env FLOWS_PEERS="$here/peers.py" FLOWS_PYTHON="$python" "$here/bench" \
    --device "$device" --rounds "${ROUNDS:-5}" --seconds "${BENCH_SECONDS:-0.5}" --out "$out/bench.json" ${CASES:+--cases "$CASES"}
for recipe in nice-mnist realnvp-cifar; do
    # A run that its clock ends validates and evaluates after that: as long again, at most.
    step "$recipe" $((minutes * 120 + 60)) "$here/flow" reproduce "$recipe" --data "$data" --device "$device" \
        --set "train.minutes=$minutes" --out "$out/$recipe"
done
exit $failed
