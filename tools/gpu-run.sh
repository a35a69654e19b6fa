#!/usr/bin/env bash
# What a GPU is asked, in the order of what matters: are the numbers right, are they fast, what do they learn.
# Run it in a folder that dist-cuda.sh made (it is in there): gpu-run.sh OUT DATA [STEP...]
#
#   STEP      in this order unless some are named, the riskiest assumption first, each at most LIMIT minutes:
#             launch      the libraries open, and one kernel runs
#             update      a launch with 28 kB of arguments
#             golden      cuDNN's gradients in f64 and f32, against known numbers
#             record      a training step is recorded as a graph and replayed
#             precision   tf32 and bf16
#             tests       all tests
#             bench       speed beside PyTorch
#             twice       two runs of 40 updates give the same file
#             RECIPE      training, evaluation and samples; at the end of the list that is taken where none is named: nice-mnist,
#                         realnvp-cifar
#   OUT       where results go: what a step prints (STEP.txt), bench.json, a run's folder (nice-mnist/, realnvp-cifar/)
#   DATA      MNIST and CIFAR-10, as `flow --data` takes them
#   DEVICE    cuda:0; `cpu` tries the script where there is no GPU
#   MINUTES   for everything (24); recipes share what is left evenly. A run is resumed by the same command
#   LIMIT     minutes for one step (9)
#   TRAIN     more of every training's arguments, such as `--set train.precision=bf16`
#   PYTHON    a Python with PyTorch, for the bench and for CUDA's libraries (python3)
#   PRECISION of the bench: --tf32 (the default), --bf16, or empty
#   BENCH     more of the bench's arguments, such as `--cases glow_L3_K32_512@64 --rounds 3`
#
# OUT/pieces is the same in files of at most 15 MB, for machines that send no larger ones: results.tgz (all but weights) and
# RECIPE.safetensors.00, .01, ... (`cat` them together). It is made anew every minute, so a stop at any
# moment loses a minute of it, and of the training what came after the last checkpoint.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ $# -ge 2 ] || { sed -n '2,4p' "$0" >&2; exit 2; }
out=$(mkdir -p "$1/pieces" && cd "$1" && pwd) data=$2
shift 2
[ $# -gt 0 ] || set -- launch update golden record precision tests bench twice nice-mnist realnvp-cifar
device=${DEVICE:-cuda:0} python=${PYTHON:-python3} end=$(awk "BEGIN { print int(60 * ${MINUTES:-24}) }")
most=$((60 * ${LIMIT:-9}))
export FLOWS_PEERS=$here/peers.py FLOWS_PYTHON=$python FLOWS_GOLDEN=$here/golden PYTHONPATH=$here/python
FLOWS_COMMIT=$(cat "$here/commit")
export FLOWS_COMMIT
# Kernels are compiled for the GPU at their first use; later processes read them there.
export CUDA_CACHE_PATH=${CUDA_CACHE_PATH:-$here/.cuda-cache}
# PyTorch's wheels bring CUDA's libraries.
wheels=$("$python" -c 'import os, nvidia; print(list(nvidia.__path__)[0])' 2> /dev/null) &&
    export LD_LIBRARY_PATH=$wheels/cu13/lib:$wheels/cudnn/lib:${LD_LIBRARY_PATH:-}
# Without a GPU the twins on the CPU stand in for those that need one, and there is no TF32.
half=cuda other=cpu precision=${PRECISION---tf32}
if [ "$device" = cpu ]; then half=cpu other=cuda precision=${PRECISION-}; else export FLOWS_NEED_CUDA=1; fi

pack() {
    local pieces=$out/pieces new=$out/pieces/.results.$BASHPID run model
    # Files that are being written come with what they have.
    tar -C "$out" --exclude=./pieces --exclude='*.safetensors' --exclude='*.tmp*' -czf "$new" . 2> /dev/null
    mv "$new" "$pieces/results.tgz"
    for model in "$out"/*/model.safetensors; do
        [ -e "$model" ] || continue
        run=$(basename "$(dirname "$model")")
        # `.RUN` has the time of the weights that are there whole; a run replaces its file, so what is read stays as it is.
        [ "$model" -nt "$pieces/.$run" ] || continue
        rm -f "$pieces/.$run" "$pieces/$run.safetensors."*
        touch -r "$model" "$pieces/.$run.new"
        split -d -b 15000000 "$model" "$pieces/$run.safetensors." && mv "$pieces/.$run.new" "$pieces/.$run"
    done
}
failed=0
step() { # step NAME SECONDS command...
    local name=$1 limit=$2 start=$SECONDS rc=0 packer
    shift 2
    [ "$limit" -gt 0 ] || { echo "$name: no time is left"; failed=1; return; }
    (while sleep 60; do pack; done) > /dev/null 2>&1 &
    packer=$!
    # A run that is told to end keeps what it has; what does not listen is ended half a minute later.
    timeout -k 30 "$limit" "$@" > "$out/$name.txt" 2>&1 || rc=$?
    kill "$packer" 2> /dev/null
    wait "$packer" 2> /dev/null
    # What the packer was at may go on for a moment, into files that are no longer there.
    rm -f "$out/pieces/.results."*
    pack
    echo "$name: exit $rc after $((SECONDS - start)) s: $(grep . "$out/$name.txt" | tail -n 1 | cut -c 1-200)"
    [ $rc = 0 ] || failed=1
}
least() { echo $(($1 < $2 ? $1 : $2)); }
twice() {
    local run
    for run in first second; do
        "$here/flow" train quickstart --device "$device" --out "$out/twice/$run" --set train.updates=40 \
            --set train.validate_every=20 --set "train.schedule={kind='constant'}" || return
    done
    cmp "$out/twice/first/model.safetensors" "$out/twice/second/model.safetensors" && echo "both runs gave the same file"
}
# For `timeout`, which runs programs only.
export here out device
export -f twice
while [ $# -gt 0 ]; do
    name=$1 left=$((end - SECONDS))
    shift
    left=$(least $most $left)
    case $name in
    launch) step launch "$left" "$here/tests" --exact "gpu::batches_are_the_examples_in_order_with_noise_within_the_bin::$half" ;;
    update) step update "$left" "$here/tests" --exact "gpu::kernels_take_the_same_steps::$half" ;;
    golden) step golden "$left" "$here/tests" golden --skip "$other" --test-threads 1 ;;
    record) step record "$left" "$here/tests" --exact "gpu::a_recorded_step_is_the_step::$half" ;;
    precision) step precision "$left" "$here/tests" --exact "gpu::reduced_precision_costs_likelihood_and_not_invertibility::$half" ;;
    tests) step tests "$left" "$here/tests" "$half" --test-threads 1 ;;
    twice) step twice "$left" bash -c twice ;;
    bench)
        # shellcheck disable=SC2086
        step bench "$left" "$here/bench" --device "$device" $precision --rounds 5 --seconds 0.5 \
            --out "$out/bench.json" ${BENCH:-}
        ;;
    *)
        # What comes after the first recipe are recipes.
        left=$(least $most $(((end - SECONDS) / ($# + 1))))
        # A fifth, 90 s at most, is for starting, the last validation, the test images and the pictures.
        minutes=$(awk "BEGIN { print ($left - $(least 90 $((left / 5)))) / 60 }")
        # shellcheck disable=SC2086
        step "$name" "$left" "$here/flow" reproduce "$name" --data "$data" --device "$device" \
            --set "train.minutes=$minutes" --out "$out/$name" ${TRAIN:-}
        ;;
    esac
done
exit $failed
