#!/usr/bin/env bash
# Kills the device under a serving process in three ways and says what clients, /health and the supervisor see.
#
#   bench/gpu/failure.sh OUT MODEL [FLAG of serve...]
#
# The driver's answers are faked by bench/gpu/fault.c (FAULT_SO: where it is compiled already). POWERTRAIN is the server's binary. For each fault:
# whether the running request heard the reason, what /health said first, how many milliseconds later the process was gone, with which code.
set -u
out=$1
shift
root=$(cd "$(dirname "$0")/../.." && pwd)
powertrain=${POWERTRAIN:-$root/target/release/powertrain}
mkdir -p "$out"
out=$(cd "$out" && pwd)
library=${FAULT_SO:-$out/fault.so}
[ -f "$library" ] || gcc -shared -fPIC -O2 -o "$library" "$root/bench/gpu/fault.c" -ldl || exit 1
port=8012 failed=0
url=http://127.0.0.1:$port
for fault in 700 999 hang; do
    rm -f "$out/fault"
    LD_PRELOAD=$library FAULT_FILE=$out/fault "$powertrain" serve "$@" --port $port --step-timeout 2 >"$out/$fault.txt" 2>"$out/$fault.log" &
    server=$!
    until curl -sf $url/health >/dev/null; do
        kill -0 $server 2>/dev/null || { echo "FAILED $fault: the server did not start"; tail -n 3 "$out/$fault.log"; exit 1; }
        sleep 0.05
    done
    curl -sN $url/v1/completions -H 'content-type: application/json' \
        -d '{"prompt": "Once", "max_tokens": 7000, "ignore_eos": true, "stream": true}' >"$out/$fault.stream" 2>/dev/null &
    client=$!
    until [ "$(grep -c data "$out/$fault.stream")" -gt 20 ]; do sleep 0.02; done
    echo "$fault" >"$out/fault.new" && mv "$out/fault.new" "$out/fault"
    begin=$(date +%s%N) health=
    while kill -0 $server 2>/dev/null; do
        if [ -z "$health" ]; then
            answer=$(curl -s -m 1 -w ' %{http_code}' $url/health)
            case $answer in *\ 503) health="$answer after $((($(date +%s%N) - begin) / 1000000)) ms" ;; esac
        fi
        [ $(($(date +%s%N) - begin)) -gt 30000000000 ] && { kill -KILL $server; echo "FAILED $fault: alive after 30 s"; }
        sleep 0.02
    done
    wait $server
    code=$?
    took=$((($(date +%s%N) - begin) / 1000000))
    wait $client
    heard=$(grep -o '"message":"[^"]*"' "$out/$fault.stream" | head -n 1)
    echo "$fault: code $code after $took ms; /health: $health; the request heard: $heard"
    if [ "$code" != 1 ] || [ -z "$health" ] || [ -z "$heard" ]; then failed=1; echo "FAILED $fault"; fi
done
rm -f "$out/fault"
exit $failed
