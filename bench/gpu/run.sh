#!/usr/bin/env bash
# Checks and measures the CUDA engine on this machine in one go, and leaves report and raw data in one folder.
#
#   bench/gpu/run.sh OUT [MODEL.gguf]
#
# Builds first, unless CUDA_CHECK and POWERTRAIN name built binaries. With a model (SmolLM2-135M is meant): checked on the ids in MODEL.gguf.tokens if there is such a
# file, greedy texts and perplexity (of the file WIKITEXT, if there is one) against this binary on the CPU, faults under a serving process,
# and a minute of mixed load. STAGES picks some: products models f16 memcheck faults texts perplexity failure soak speed. Each stage has a limit; all
# of them take under 9 minutes on an H100 beside 16 cores. Ends with 1 if a stage failed; speed only measures.
set -u
out=$1 model=${2:-}
root=$(cd "$(dirname "$0")/../.." && pwd)
here=$root/bench/gpu
fixtures=$root/crates/model/tests/fixtures
stages=${STAGES:-products models f16 memcheck faults texts perplexity failure soak speed}
mkdir -p "$out"
out=$(cd "$out" && pwd)
if [ -z "${CUDA_CHECK:-}" ] || [ -z "${POWERTRAIN:-}" ]; then
    (cd "$root" && cargo build --release -p powertrain --features cuda && cargo build --release -p powertrain-cuda --features cuda --example cuda_check) || exit 1
    CUDA_CHECK=$root/target/release/examples/cuda_check
    POWERTRAIN=$root/target/release/powertrain
fi
export CUDA_CHECK POWERTRAIN
# Kernel choices are measured here, not taken from an earlier build's run.
POWERTRAIN_CACHE=$(mktemp -d)
export POWERTRAIN_CACHE
servers=()
end_servers() {
    [ ${#servers[@]} = 0 ] || kill -KILL "${servers[@]}" 2>/dev/null
    servers=()
}
trap 'end_servers; rm -rf "$POWERTRAIN_CACHE"' EXIT
nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,power.limit --format=csv >"$out/machine.txt"
report=$out/report.txt
: >"$report"
failed=0

# stage NAME SECONDS COMMAND...: its output goes to NAME.txt, its last line and its time to the report.
stage() {
    local name=$1 limit=$2 begin=$SECONDS code
    shift 2
    case " $stages " in *" $name "*) ;; *) return ;; esac
    timeout -k 5 "$limit" "$@" >"$out/$name.txt" 2>&1
    code=$?
    [ $code = 0 ] || failed=1
    printf '%-10s %s in %s s: %s\n' "$name" "$([ $code = 0 ] && echo ok || echo "FAILED ($code)")" $((SECONDS - begin)) \
        "$(tail -n 1 "$out/$name.txt" | cut -c1-160)" | tee -a "$report"
}

# serve NAME PORT FLAG...: returns when it is healthy.
serve() {
    local name=$1 port=$2
    shift 2
    "$POWERTRAIN" serve "$model" --port "$port" "$@" >"$out/$name.server.txt" 2>&1 &
    servers+=($!)
    until curl -sf "http://127.0.0.1:$port/health" >/dev/null; do
        kill -0 ${servers[-1]} 2>/dev/null || { tail -n 3 "$out/$name.server.txt"; return 1; }
        sleep 0.1
    done
}

texts() {
    # A prompt whose beginning is cached is computed in other pieces, which rounds otherwise.
    serve texts-gpu 8021 --device cuda --no-enable-prefix-caching && serve texts-cpu 8022 --device cpu --cpu-activations f32 --kv-cache-dtype f32 &&
        python3 "$here/texts.py" http://127.0.0.1:8021 http://127.0.0.1:8022 --out "$out/texts.json"
    local code=$?
    end_servers
    return $code
}

perplexity() {
    local windows=${WINDOWS:-24}
    for dtype in bfloat16 float16; do
        "$POWERTRAIN" eval perplexity --file "$WIKITEXT" --windows "$windows" "$model" --device cuda --dtype $dtype -o "$out/perplexity-$dtype.json" || return
    done
    "$POWERTRAIN" eval perplexity --file "$WIKITEXT" --windows "$windows" "$model" --device cpu --cpu-activations f32 --kv-cache-dtype f32 \
            -o "$out/perplexity-cpu.json" &&
        python3 - "$out" <<'END'
import json, sys
bf16, f16, cpu = (json.load(open(f"{sys.argv[1]}/perplexity-{name}.json")) for name in ("bfloat16", "float16", "cpu"))
assert bf16["tokens_scored"] == f16["tokens_scored"] == cpu["tokens_scored"] > 0
off = [gpu["perplexity"] / cpu["perplexity"] - 1 for gpu in (bf16, f16)]
print(f"CPU in f32 {cpu['perplexity']:.4f}, GPU in bf16 {bf16['perplexity']:.4f} ({off[0]:+.3%}), in f16 {f16['perplexity']:.4f} ({off[1]:+.3%}), {cpu['tokens_scored']} tokens; allowed 0.5 %")
sys.exit(max(map(abs, off)) > 0.005)
END
}

speed() {
    cd "$here" || return
    "$CUDA_CHECK" bench shapes/A shapes/B shapes/C | tee "$out/bench.txt"
    "$CUDA_CHECK" engine shapes/A shapes/B | tee "$out/engine.txt"
    "$CUDA_CHECK" profile shapes/A shapes/B shapes/C >"$out/profile.txt"
}
export -f texts perplexity speed serve end_servers
export out model here WIKITEXT

checkpoints=()
for config in "$fixtures"/*/config.json; do checkpoints+=("$(dirname "$config")"); done
stage products 60 "$CUDA_CHECK" products
stage models 150 "$CUDA_CHECK" models "${checkpoints[@]}" "$fixtures"/*.gguf ${model:+"$model"}
stage f16 90 "$CUDA_CHECK" f16 models "${checkpoints[@]}" "$fixtures"/*.gguf
stage memcheck 150 compute-sanitizer --tool memcheck --error-exitcode 3 "$CUDA_CHECK" models
stage faults 60 "$CUDA_CHECK" faults
if [ -n "$model" ]; then
    stage texts 90 bash -c 'servers=(); trap end_servers EXIT TERM; texts'
    [ -z "${WIKITEXT:-}" ] || stage perplexity 90 bash -c 'perplexity'
    stage failure 90 "$here/failure.sh" "$out/failure" "$model" --device cuda
    stage soak 120 "$here/soak.sh" "$out/soak" 2 25 "$model" --device cuda
fi
stage speed 240 bash -c 'speed'
[ $failed = 0 ] && echo "all passed" | tee -a "$report"
exit $failed
