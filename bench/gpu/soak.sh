#!/usr/bin/env bash
# Serves a model and loads it with everything at once, in pieces: lengths, sampling parameters, streams, clients that leave, deadlines, bad requests.
# After each piece the server must hold no block, have grown in no memory, and give the same greedy text as at first.
#
#   bench/gpu/soak.sh OUT PIECES SECONDS MODEL [FLAG of serve...]
#
# POWERTRAIN is the server's binary (default: the release build), GPU the device whose memory is watched (default 0; empty: none), CLIENTS
# how many there are (default 24). OUT gets the server's log, soak.txt and soak.json. Ends with 1 if anything was not as it must be.
set -u
out=$1 pieces=$2 seconds=$3
shift 3
root=$(cd "$(dirname "$0")/../.." && pwd)
port=${PORT:-8011}
gpu=${GPU-0}
mkdir -p "$out"
"${POWERTRAIN:-$root/target/release/powertrain}" serve "$@" --port "$port" >"$out/server.txt" 2>"$out/server.log" &
server=$!
trap 'kill -KILL $server 2>/dev/null' EXIT
until curl -sf "http://127.0.0.1:$port/health" >/dev/null; do
    if ! kill -0 $server 2>/dev/null; then
        echo "the server ended before it served:" >&2
        tail -n 5 "$out/server.log" >&2
        exit 1
    fi
    sleep 0.1
done
python3 "$root/bench/gpu/soak.py" "http://127.0.0.1:$port" --pid $server --pieces "$pieces" --seconds "$seconds" --clients "${CLIENTS:-24}" \
    ${gpu:+--gpu "$gpu"} --out "$out/soak.json" | tee "$out/soak.txt"
found=${PIPESTATUS[0]}
kill -TERM $server
wait $server
ended=$?
trap - EXIT
echo "the server ended with code $ended" | tee -a "$out/soak.txt"
[ "$found" = 0 ] && [ "$ended" = 0 ]
