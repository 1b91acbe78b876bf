#!/usr/bin/env bash
# Checks and measures the CUDA engine on this machine in one go, and leaves report and raw data in one folder.
#
#   bench/gpu/run.sh OUT [MODEL.gguf]
#
# Builds first, unless CUDA_CHECK and POWERTRAIN name built binaries. With a model (SmolLM2-135M is meant): its logits on a text against the
# reference, greedy texts and perplexity (of the file WIKITEXT, if there is one) against this binary on the CPU, both again of the same model
# stored in f16 (f16.py, which needs numpy), faults under a serving process, and a minute of mixed load.
# STAGES picks some, in this order: products models f16 memcheck damaged deterministic texts perplexity f16model faults failure soak speed. Those up to f16model run
# beside each other, which changes no result but their times; the others alone. Each stage has a limit, and all it started ends with it.
# report.txt has a line for each, also when this script is ended by a signal. Ends with 1 if a stage failed; speed only measures. Its last part, the profile
# of steps, ends when SECONDS_MAX (530: nine minutes) are over, and what it has by then is kept.
set -u
out=$1 model=${2:-}
root=$(cd "$(dirname "$0")/../.." && pwd)
here=$root/bench/gpu
fixtures=$root/crates/model/tests/fixtures
WIKITEXT=${WIKITEXT:-}
stages=
for name in products models f16 memcheck damaged deterministic texts perplexity f16model faults failure soak speed; do
    case " ${STAGES:-$name} " in *" $name "*) ;; *) continue ;; esac
    case $name in texts | f16model | failure | soak) [ -n "$model" ] || continue ;; perplexity) [ -n "$model" ] && [ -n "$WIKITEXT" ] || continue ;; esac
    stages+=" $name "
done
[ -n "$stages" ] || { echo "no stage to run: STAGES is '${STAGES-}', the model '$model', WIKITEXT '$WIKITEXT'" >&2; exit 1; }
mkdir -p "$out"
out=$(cd "$out" && pwd)
if [ -z "${CUDA_CHECK:-}" ] || [ -z "${POWERTRAIN:-}" ]; then
    (cd "$root" && cargo build --release -p powertrain --features cuda && cargo build --release -p powertrain-cuda --features cuda --example cuda_check) || exit 1
    CUDA_CHECK=$root/target/release/examples/cuda_check
    POWERTRAIN=$root/target/release/powertrain
fi
report=$out/report.txt
: >"$report"
rm -f "$out"/perplexity-*.json
temporary=$(mktemp -d)
running='' shells=()

# Ends the stage that runs in this shell, and the shells that run others.
stop() {
    [ -z "$running" ] || kill -KILL -- "-$running"
    [ ${#shells[@]} = 0 ] || { kill "${shells[@]}"; wait "${shells[@]}"; }
} 2>/dev/null

# Puts the report in order and ends with what it says.
conclude() {
    local name lines failed=0
    trap '' TERM INT HUP
    stop
    rm -rf "$temporary"
    lines=$(cat "$report")
    for name in $stages; do
        grep "^$name " <<<"$lines" || printf '%-13s FAILED: ended before it was done\n' "$name"
    done >"$report"
    grep -Eqv '^[a-z0-9]+ +ok in ' "$report" && failed=1
    [ $failed = 0 ] && echo "all passed, $SECONDS s in all" | tee -a "$report"
    exit $failed
}
trap conclude EXIT
trap exit TERM INT HUP
nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,power.limit --format=csv >"$out/machine.txt"

# stage NAME SECONDS COMMAND...: its output goes to NAME.txt, its last line and its time to the report.
stage() {
    local name=$1 limit=$2 begin=$SECONDS code
    shift 2
    case $stages in *" $name "*) ;; *) return ;; esac
    # Kernel choices are measured by each stage itself, not taken from an earlier build's run or from one that was slowed by its neighbours.
    POWERTRAIN_CACHE=$temporary/$name timeout -k 5 "$limit" "$@" >"$out/$name.txt" 2>&1 &
    running=$!
    wait "$running"
    code=$?
    # timeout leads a process group: whatever the stage left behind.
    kill -KILL -- "-$running" 2>/dev/null
    running=
    printf '%-13s %s in %s s: %s\n' "$name" "$([ $code = 0 ] && echo ok || echo "FAILED ($code)")" $((SECONDS - begin)) \
        "$(tail -n 1 "$out/$name.txt" | cut -c1-160)" | tee -a "$report"
}

# beside COMMAND...: runs it in a shell of its own.
beside() {
    alone "$@" &
    shells+=($!)
}
alone() {
    shells=()
    trap 'stop; exit' TERM
    "$@"
}

speed() {
    cd "$here" && set -o pipefail || return
    local code=0
    "$CUDA_CHECK" bench shapes/A shapes/B shapes/C | tee "$out/bench.txt" || code=1
    "$CUDA_CHECK" engine shapes/A shapes/B | tee "$out/engine.txt" || code=1
    "$CUDA_CHECK" gated >"$out/gated.txt" || code=1
    local left=$((deadline - $(date +%s)))
    [ $left -gt 0 ] || { echo "profile: no time was left for it" | tee "$out/profile.txt"; return $code; }
    timeout --foreground -k 5 $left "$CUDA_CHECK" profile shapes/A shapes/B shapes/C >"$out/profile.txt"
    case $? in 0) ;; 124 | 137) echo "profile: cut off after $left s" | tee -a "$out/profile.txt" ;; *) code=1 ;; esac
    return $code
}

# What most of the processors' time goes to: one after another.
products_and_f16() {
    stage products 150 "$CUDA_CHECK" products
    stage f16 250 bash -c '"$CUDA_CHECK" f16 products && "$CUDA_CHECK" f16 models "$@"' f16 "${checkpoints[@]}"
}

against_the_cpu_and_damaged() {
    for name in texts perplexity f16model; do
        stage $name 150 "$here/against_cpu.sh" $name "$out" "$model"
    done
    stage deterministic 150 "$CUDA_CHECK" deterministic
    stage damaged 120 bash -c '"$CUDA_CHECK" damaged && "$CUDA_CHECK" f16 damaged'
}

# What a stage leaves in the folder for temporary files goes with it.
export CUDA_CHECK POWERTRAIN WIKITEXT out here TMPDIR=$temporary PYTHONUNBUFFERED=1
export deadline=$(($(date +%s) - SECONDS + ${SECONDS_MAX:-530}))
export -f speed
checkpoints=("$fixtures"/*.gguf)
for config in "$fixtures"/*/config.json; do checkpoints+=("$(dirname "$config")"); done
memcheck='compute-sanitizer --tool memcheck --error-exitcode 3 "$CUDA_CHECK"'
beside stage memcheck 250 bash -c "$memcheck f16 models 'only:llama, head 128' only:qwen2 && $memcheck models"
beside products_and_f16
beside stage models 200 "$CUDA_CHECK" models "${checkpoints[@]}" ${model:+"$model"}
beside against_the_cpu_and_damaged
wait "${shells[@]}"
shells=()
stage faults 60 "$CUDA_CHECK" faults
stage failure 90 "$here/failure.sh" "$out/failure" "$model" --device cuda --kv-cache-memory 4GiB
stage soak 120 "$here/soak.sh" "$out/soak" 2 25 "$model" --device cuda --kv-cache-memory 4GiB
stage speed 270 bash -c speed
