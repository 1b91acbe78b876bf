#!/usr/bin/env bash
# Serves one model by several engines, one after another on the same GPU, and measures each with the same client.
#
#   bench/gpu/beside.sh OUT LEVELS NAME=COMMAND...
#
# LEVELS: CLIENTS:REQUESTS, each client sending its next when its last is done, or RATE/s:REQUESTS, sent by a Poisson process; with :TOKENS behind, of
# prompts so long, as "1:12 10:120 43/s:600 2.8/s:60:8000". A COMMAND starts a server on port 8000 that answers GET /health. Prompts are 512 random
# token ids, answers 128 tokens, greedy; every engine gets the same prompts. POWERTRAIN is the client's binary (default: the release build).
# OUT gets, for each engine: its log, seconds to /health, and each level's result and events. The table comes last.
set -u
out=$1 levels=$2
shift 2
root=$(cd "$(dirname "$0")/../.." && pwd)
client=${POWERTRAIN:-$root/target/release/powertrain}
# Whether a process runs: it is there, and more than its exit status.
runs() {
    state=$(cut -d' ' -f3 "/proc/$1/stat" 2>/dev/null) && [ "$state" != Z ]
}
mkdir -p "$out"
nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,power.limit --format=csv,noheader >"$out/machine.txt"
nvidia-smi --query-gpu=timestamp,clocks.sm,power.draw,temperature.gpu,clocks_event_reasons.active --format=csv,noheader -l 1 >"$out/gpu.csv" &
watcher=$!
for engine in "$@"; do
    name=${engine%%=*} command=${engine#*=}
    echo "$command" >"$out/$name.command"
    if curl -sf http://127.0.0.1:8000/health >/dev/null; then
        echo "port 8000 is taken: the server before did not end" >&2
        kill "$watcher"
        exit 1
    fi
    begin=$(date +%s%N)
    # A process group of its own, so that all of it can be ended.
    setsid sh -c "exec $command" >"$out/$name.log" 2>&1 &
    server=$!
    until curl -sf http://127.0.0.1:8000/health >/dev/null; do
        if ! runs "$server" || [ $((($(date +%s%N) - begin) / 1000000000)) -gt 240 ]; then break; fi
        sleep 0.05
    done
    echo "$name ready after $((($(date +%s%N) - begin) / 1000000)) ms" | tee "$out/$name.start"
    for level in $levels; do
        IFS=: read -r load requests tokens <<<"$level"
        tokens=${tokens:-512}
        case $load in
        */s) label=${load%/s}-per-second offered=(--request-rate "${load%/s}" --warmup 8 --seed "${load%%[./]*}") ;;
        *) label=$load offered=(--concurrency "$load" --warmup "$load" --seed "$load") ;;
        esac
        [ "$tokens" = 512 ] || label+=-$tokens
        "$client" bench http://127.0.0.1:8000 --endpoint completions --prompt-token-ids 100-30000 --input-tokens "$tokens" --max-tokens 128 \
            --ignore-eos --temperature 0 --num-requests "$requests" "${offered[@]}" -o "$out/$name-$label.json" >"$out/$name-$label.txt" 2>&1
        grep -E 'throughput  |while offered|TTFT  |TPOT  |ITL |CLIENT-LIMITED|error' "$out/$name-$label.txt" | sed "s/^/$name $label /" | cut -c1-140
    done
    kill -TERM -- "-$server" 2>/dev/null
    for _ in $(seq 30); do
        runs "$server" || break
        sleep 0.5
    done
    kill -KILL -- "-$server" 2>/dev/null
    for _ in $(seq 20); do
        runs "$server" || break
        sleep 0.5
    done
done
kill "$watcher"
