#!/bin/bash
# Spike one, first half: cells compiled by rustc alone against one prebuilt dynamic library.
# Run from the repository root: spikes/instant_cell/link.sh [repetitions]
set -euo pipefail
repetitions=${1:-20}
target=${CARGO_TARGET_DIR:-$PWD/target}/release
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT

now() { date +%s.%N; }
since() { echo "$(now) - $1" | bc; }
median() { sort -n | awk '{v[NR]=$1} END {printf "%.3f", v[int(NR/2)+1]}'; }

cargo build --release --lib 2>&1 | tail -1
start=$(now)
cargo rustc --release --lib --crate-type dylib --message-format=json-render-diagnostics -- -C prefer-dynamic >"$work/artifacts"
echo "| dynamic library, after a normal release build | $(since "$start") |"
compiled=$(grep -c '"fresh":false' "$work/artifacts" || true)
echo "| crates compiled for it | $compiled |"
echo "| its size, MB | $(($(stat -c %s "$target/libcluescope.so") / 1000000)) |"

# The rlibs of the same build, by crate name.
externs=(--extern "cluescope=$target/libcluescope.so" -L "dependency=$target/deps" -C rpath)
for name in candle_core candle_nn polars plotters tokenizers serde_json; do
  file=$(grep -o "\"[^\"]*/lib$name-[0-9a-f]*\.rlib\"" "$work/artifacts" | head -1 | tr -d '"')
  externs+=(--extern "$name=$file")
done
cell() { rustc --edition 2024 --crate-type cdylib --crate-name "$1" -C prefer-dynamic "$work/$1.rs" -o "$work/lib$1.so" "${externs[@]}" "${@:2}"; }

sign='#[unsafe(no_mangle)] pub extern "C" fn run_user_code_0(store: *mut u8) -> *mut u8'
cat >"$work/trivial.rs" <<<"$sign { println!(\"{}\", 1 + 1); store }"
cat >"$work/frame.rs" <<<"use polars::prelude::*; $sign { let f = df!(\"a\" => [1, 2, 3], \"b\" => [0.5, 1.5, 2.5]).unwrap(); println!(\"{f}\"); store }"
cat >"$work/tensor.rs" <<<"use candle_core::{Device, Tensor}; $sign { let t = Tensor::arange(0f32, 12.0, &Device::Cpu).unwrap().reshape((3, 4)).unwrap(); println!(\"{}\", t.matmul(&t.t().unwrap()).unwrap()); store }"
cat >"$work/process.rs" <<<'fn main() { cluescope::kernel::child::run() }'
rustc --edition 2024 -C prefer-dynamic "$work/process.rs" -o "$work/process" "${externs[@]}"

echo "| process of cells, size in bytes | $(stat -c %s "$work/process") |"
for name in trivial frame tensor; do
  for _ in $(seq "$repetitions"); do s=$(now); cell $name; since "$s"; done | median | sed "s/^/| $name: compile and link, seconds | /; s/$/ |\n/"
  for _ in $(seq "$repetitions"); do s=$(now); echo "LOAD_AND_RUN $work/lib$name.so run_user_code_0" | "$work/process" >"$work/out"; since "$s"; done | median | sed "s/^/| $name: new process, load and run, seconds | /; s/$/ |\n/"
  grep -q EVCXR_EXECUTION_COMPLETE "$work/out"
done

# The types of a cell's variables, from one type check.
cat >"$work/types.rs" <<'RUST'
use polars::prelude::*; use candle_core::{Device, Tensor};
#[diagnostic::on_unimplemented(message = "type {Self}")] trait Named {}
fn named<T: Named>(_: T) {}
fn cell() -> Result<(), Box<dyn std::error::Error>> {
    let frame = df!("a" => [1, 2, 3])?; let column = frame.column("a")?.i32()?.clone();
    let rows = Tensor::arange(0f32, 4.0, &Device::Cpu)?.reshape((2, 2))?.to_vec2::<f32>()?;
    named(frame); named(column); named(rows); Ok(())
}
RUST
check() { RUSTC_BOOTSTRAP=1 rustc -Ztrim-diagnostic-paths=no -Zwrite-long-types-to-disk=no --edition 2024 --crate-type lib --emit metadata "$work/types.rs" -o "$work/types.rmeta" "${externs[@]}" 2>"$work/said" || true; }
for _ in $(seq "$repetitions"); do s=$(now); check; since "$s"; done | median | sed "s/^/| types of three variables, seconds | /; s/$/ |\n/"
grep -o 'type .*' "$work/said" | sed 's/^/    /'

# Two at once.
s=$(now); cell frame & cell tensor & wait; echo "| two cells of two sessions at once, seconds | $(since "$s") |"
