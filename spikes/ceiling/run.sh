#!/bin/bash
# What this machine can multiply: builds both halves of gemm, runs them and PyTorch in turn, prints Markdown tables.
#
#   PYTHON=python3 ROUNDS=3 spikes/ceiling/run.sh [section…] > table.md
#
# PYTHON needs torch. MEASURE may name a command to run each measurement under (say "nice -n -5"). Lines of each process
# gather under RESULTS (default: results/ beside this script), so an interrupted run goes on where it stopped.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3} rounds=${ROUNDS:-3} measure=${MEASURE:-} results=${RESULTS:-$here/results}
target=${CARGO_TARGET_DIR:-$here/target}
sections=("$@")
[ $# -gt 0 ] || sections=(peak linear few attention widen bits)
"$python" -c 'import torch' || { echo "run.sh: $python has no torch; set PYTHON" >&2; exit 1; }
mkdir -p "$results"
cd "$here"
for half in avx2 avx512; do
    features=(); [ $half = avx2 ] || features=(--features avx512)
    cargo build --release -j1 --target-dir "$target" "${features[@]}" >&2
    cp "$target/release/ceiling" "$target/ceiling-$half"
done
# one FILE COMMAND…: runs COMMAND unless FILE is there already.
one() {
    local file=$results/$1; shift
    # shellcheck disable=SC2086
    [ -s "$file" ] || { $measure "$@" > "$file.part"; mv "$file.part" "$file"; }
}
for round in $(seq "$rounds"); do
    for threads in 1 2; do
        export RAYON_NUM_THREADS=$threads OMP_NUM_THREADS=$threads MKL_NUM_THREADS=$threads
        for section in "${sections[@]}"; do
            # Bits do not change from round to round.
            [ "$section" != bits ] || [ "$round$threads" = 12 ] || continue
            one "$section-avx512-$threads-$round.tsv" "$target/ceiling-avx512" "$section"
            case $section in
                peak | bits) ;;
                widen) ;;
                *) one "$section-torch-$threads-$round.tsv" "$python" "$here/torch_side.py" "$section" ;;
            esac
            case $section in linear | bits) one "$section-avx2-$threads-$round.tsv" "$target/ceiling-avx2" "$section" ;; esac
        done
    done
done
"$python" table.py "$results"/*.tsv
