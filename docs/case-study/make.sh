#!/usr/bin/env bash
# Makes the worked example: llama.cpp's llama-server ("before") and powertrain serve ("after") under the same weights and load,
# in turns, on this machine. `make.sh` does all of it; a single step can be run alone:
#   make.sh run before 1     one run of one side        make.sh perplexity  and `questions`: quality of both
#   make.sh compare          verdicts from the runs     make.sh report      the case study from the files
#
# Needs: POWERTRAIN (a release build), LLAMA_BIN (folder of llama-server and llama-perplexity), MODEL (the GGUF file, which
# `powertrain pull` fetches), TEXT (a text for perplexity; WikiText-2's test).
set -euo pipefail
cd "$(dirname "$0")/../.."

powertrain=${POWERTRAIN:-target/release/powertrain}
llama=${LLAMA_BIN:?the folder of llama-server and llama-perplexity}
model=${MODEL:?the GGUF file}
text=${TEXT:-../shared/data/wikitext-2-raw/wiki.test.raw}
out=docs/case-study
results=$out/results
runs=${RUNS:-3}
clients=${CLIENTS:-1,4,8,16,32}
seconds=${SECONDS_PER_LEVEL:-20}
threads=${THREADS:-2}
windows=${WINDOWS:-8}
port=${PORT:-18311}
url=http://127.0.0.1:$port
server=

# Starts the server of a side and waits until it answers.
start() {
  local slots=${clients##*,}
  if [ "$1" = before ]; then
    "$llama/llama-server" -m "$model" --alias smollm2 --host 127.0.0.1 --port "$port" \
      -np "$slots" -c $((slots * 768)) -t "$threads" -tb "$threads" --cache-ram 0 >"$out/server.log" 2>&1 &
  else
    "$powertrain" serve "$model" --served-model-name smollm2 --port "$port" >"$out/server.log" 2>&1 &
  fi
  server=$!
  trap 'kill "$server" 2>/dev/null || true' EXIT
  for _ in $(seq 600); do
    if curl -sf "$url/health" >/dev/null; then return; fi
    kill -0 "$server" || { tail -5 "$out/server.log" >&2; exit 1; }
    sleep 0.1
  done
  echo "the server of $1 is not ready after 60 s" >&2
  exit 1
}

stop() {
  kill "$server" && wait "$server" || true
  trap - EXIT
  rm -f "$out/server.log"
}

# One run of a side. Connections are not kept: llama-server closes idle ones while a request is on its way.
run() {
  start "$1"
  "$powertrain" bench "$url" --config "$1" --concurrency "$clients" --duration "$seconds" --input-tokens 128 --max-tokens 64 \
    --ignore-eos --no-keep-alive --output "$results/$1/run-$2.json"
  # The most memory that the process has held, as the kernel counts it.
  awk -v side="$1" '/^VmHWM/ { printf "{\"format\": \"powertrain-memory/1\", \"side\": \"%s\", \"counter\": \"VmHWM\", \"peak_mib\": %.1f}\n", side, $2 / 1024 }' \
    "/proc/$server/status" >"$results/$1-memory-$2.json"
  stop
}

perplexity() {
  "$powertrain" eval perplexity --file "$text" --windows "$windows" --json "$model" >"$results/after-perplexity.json"
  # llama-perplexity prints its result; both count alike (crates/powertrain/src/perplexity.rs).
  "$llama/llama-perplexity" -m "$model" -f "$text" -c 512 --chunks "$windows" -t "$threads" 2>&1 |
    awk -v file="$(basename "$text")" -v windows="$windows" '/Final estimate: PPL =/ {
      sub(/.*PPL = /, "")
      printf "{\"format\": \"powertrain-eval/1\", \"measure\": \"perplexity\", \"tool\": \"llama-perplexity\", \"file\": \"%s\", \"context\": 512, \"windows\": %d, \"perplexity\": %s}\n", file, windows, $1
    }' >"$results/before-perplexity.json"
  test -s "$results/before-perplexity.json"
}

# Questions with exact answers, to the servers themselves.
questions() {
  for side in before after; do
    start "$side"
    "$powertrain" eval questions "$url" --json >"$results/$side-questions.json"
    stop
  done
}

compare() { "$powertrain" compare "$results/before" "$results/after" --json >"$results/comparison.json"; }

report() {
  "$powertrain" report "$out/scenario.toml" \
    --before "$results"/before/run-?.json "$results"/before-*.json --after "$results"/after/run-?.json "$results"/after-*.json \
    --comparison "$results/comparison.json" --out "$out"
}

mkdir -p "$results/before" "$results/after"
case ${1:-all} in
  all)
    # In turns, and each pair the other way round, so that a drift of the machine hits both sides.
    for number in $(seq "$runs"); do
      if [ $((number % 2)) = 1 ]; then run before "$number"; run after "$number"; else run after "$number"; run before "$number"; fi
    done
    perplexity
    questions
    compare
    report
    ;;
  run) run "$2" "$3" ;;
  perplexity) perplexity ;;
  questions) questions ;;
  compare) compare ;;
  report) report ;;
  *) echo "unknown step $1; see the top of this file" >&2; exit 2 ;;
esac
