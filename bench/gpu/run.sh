#!/bin/sh
# Checks and measures the CUDA executor on this machine, and leaves everything in one folder.
#
#   bench/gpu/run.sh OUT [MODEL.gguf...]
#
# Builds first unless CUDA_CHECK names a built `cuda_check`. A model MODEL.gguf is checked on the ids in MODEL.gguf.tokens if there is
# such a file. About 6 minutes on an H100.
set -eu
out=$1
shift
root=$(cd "$(dirname "$0")/../.." && pwd)
fixtures=$root/crates/model/tests/fixtures
if [ -z "${CUDA_CHECK:-}" ]; then
    (cd "$root" && cargo build --release -p powertrain-cuda --features cuda --example cuda_check)
    CUDA_CHECK=$root/target/release/examples/cuda_check
fi
mkdir -p "$out"
nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,power.limit --format=csv >"$out/machine.txt"
"$CUDA_CHECK" products >"$out/products.txt"
models=
for config in "$fixtures"/*/config.json; do models="$models $(dirname "$config")"; done
# The fixtures' names hold no spaces.
# shellcheck disable=SC2086
"$CUDA_CHECK" models $models "$fixtures"/*.gguf "$@" >"$out/models.txt"
cd "$root/bench/gpu"
"$CUDA_CHECK" bench shapes/A shapes/B shapes/C >"$out/bench.txt"
"$CUDA_CHECK" engine shapes/A shapes/B >"$out/engine.txt"
"$CUDA_CHECK" profile shapes/A shapes/B shapes/C >"$out/profile.txt"
tail -n 1 "$out"/products.txt "$out"/models.txt "$out"/bench.txt "$out"/engine.txt "$out"/profile.txt
