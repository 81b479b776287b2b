#!/bin/bash
# Spike one, second half: both kernels over the Jupyter protocol, same cells, one run.
# From the repository root: spikes/instant_cell/run.sh [--stock]
# With --stock it installs evcxr_jupyter 0.22.0 below target/ and measures it too: 10 minutes for
# the build and about 20 for its :dep cell on two idle cores.
set -euo pipefail
cargo build --release --features kernel --example instant_cell
program=${CARGO_TARGET_DIR:-target}/release/examples/instant_cell
if [ "${1:-}" = --stock ]; then
  root=${CARGO_TARGET_DIR:-target}/stock
  # The type inference of stock evcxr needs the standard library's source.
  rustup component add rust-src
  [ -x "$root/bin/evcxr_jupyter" ] || cargo install --locked evcxr_jupyter --version 0.22.0 --root "$root"
  exec "$program" "$root/bin/evcxr_jupyter"
fi
exec "$program"
