#!/usr/bin/env bash
# Fuzzes every reader, SECONDS_EACH each (default 100: twelve minutes for the seven), from the committed files as seeds.
# Needs nightly Rust and cargo-fuzz (cargo install cargo-fuzz); not part of .ci/run.
#   fuzz/run.sh [SECONDS_EACH] [TARGET ..]
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:-100}
shift || true
targets=("$@")
[ $# -gt 0 ] || targets=(config weights idx cifar npy checkpoint codec)

seeds() {
  mkdir -p "corpus/$1"
  case $1 in
    config)
      for f in ../flows/tests/golden/*/config.json ../weights/*/config.json; do cp "$f" "corpus/config/$(basename "$(dirname "$f")")"; done
      echo '{"metadata":{"total_size":8},"weight_map":{"a":"model-00001-of-00002.safetensors"}}' > corpus/config/index ;;
    weights)
      cp ../flows/tests/golden/nice_zca/model.safetensors corpus/weights/nice_zca
      printf '\70\0\0\0\0\0\0\0{"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}  \0\0\0\0\0\0\0\0' > corpus/weights/small ;;
    idx)
      printf '\0\0\10\3\0\0\0\2\0\0\0\1\0\0\0\2abcd' > corpus/idx/images
      printf '\0\0\10\1\0\0\0\2\1\2' > corpus/idx/labels
      printf '\24\0\0\10\3\0\0\0\2\0\0\0\1\0\0\0\2abcd\0\0\10\1\0\0\0\2\1\2' > corpus/idx/pair ;;
    cifar)
      head -c 3073 /dev/zero > corpus/cifar/batch
      folder=$(mktemp -d)
      for i in 1 2 3 4 5; do head -c 3073 /dev/zero > "$folder/data_batch_$i.bin"; done
      head -c 3073 /dev/zero > "$folder/test_batch.bin"
      tar -C "$folder" -cf corpus/cifar/archive . && tar -C "$folder" -czf corpus/cifar/packed .
      rm -r "$folder" ;;
    npy)
      printf '\223NUMPY\1\0\71\0{"descr": "|u1", "fortran_order": False, "shape": (2,3)}\nabcdef' > corpus/npy/bytes
      printf '\223NUMPY\1\0\71\0{"descr": "<f4", "fortran_order": False, "shape": (1,1)}\nabcd' > corpus/npy/reals ;;
    codec)
      printf '\0\0\1' > corpus/codec/magic
      printf '\140\0\1' > corpus/codec/stream ;;
    checkpoint)
      for f in ../experiments/tests/import/*_reversed.pth ../experiments/tests/import/normflows*.pth; do
        cp "$f" corpus/checkpoint/
        # The pickle alone, too: it is the archive's first entry.
        unzip -p "$f" '*/data.pkl' > "corpus/checkpoint/$(basename "$f").pkl" 2> /dev/null || true
      done ;;
  esac
}

for target in "${targets[@]}"; do
  seeds "$target"
  # A reader that takes 256 MB at once, or 1 GB in all, for files below a megabyte is a finding.
  cargo +nightly fuzz run "$target" -- -max_total_time="$seconds" -malloc_limit_mb=256 -rss_limit_mb=1024 -max_len=1048576 \
    -print_final_stats=1
done
# What the targets that load whole folders leave in memory.
rm -rf /dev/shm/flows-fuzz-*
