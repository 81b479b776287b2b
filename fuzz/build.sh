#!/bin/sh
# Builds the fuzz targets with the stable compiler. cargo-fuzz wants nightly flags for the coverage that libFuzzer goes by; the passes
# themselves are in every compiler. They go into this project's crates alone.
#
#   fuzz/build.sh                                            (CARGO_TARGET_DIR and arguments for cargo build as usual)
#   mkdir -p corpus/gguf && fuzz/target/release/gguf corpus/gguf fuzz/seeds/gguf -max_total_time=60
set -eu
if [ -z "${CLUESCOPE_FUZZ_WRAPPER:-}" ]; then
    wrapper=$(cd "$(dirname "$0")" && pwd)/build.sh
    cd "$(dirname "$0")"
    CLUESCOPE_FUZZ_WRAPPER=1 RUSTC_WRAPPER=$wrapper exec cargo build --release --bins "$@"
fi
# Called by cargo: the compiler and its arguments.
rustc=$1
shift
case " $* " in
*" --crate-name cluescope "* | *" fuzz_targets/"*)
    set -- "$@" -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
        -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing -Cdebug-assertions -Coverflow-checks
    ;;
esac
exec "$rustc" "$@"
