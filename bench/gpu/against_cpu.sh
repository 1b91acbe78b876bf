#!/usr/bin/env bash
# A model on the GPU against the same model on the CPU in f32.
#
#   bench/gpu/against_cpu.sh texts|perplexity|f16model OUT MODEL.gguf
#
# texts: greedy texts over HTTP (texts.py). perplexity: in bf16 and in f16, of the first WINDOWS (default: 24) windows of the file WIKITEXT, within
# 0.5 %. f16model: the model is stored anew in f16 (f16.py, which needs numpy), must then be computed in f16 without being told to, and both are compared
# again, perplexity with that of MODEL.gguf on the CPU, which OUT may have already. POWERTRAIN is the binary (default: the release build). Raw data
# goes to OUT, what was found to the last line. Ends with 1 if anything was not as it must be.
set -u
check=$1 model=$3
here=$(cd "$(dirname "$0")" && pwd)
powertrain=${POWERTRAIN:-$here/../../target/release/powertrain}
mkdir -p "$2"
out=$(cd "$2" && pwd)
gpu=http://127.0.0.1:8021 cpu=http://127.0.0.1:8022
# So little that others have room on the device.
on_gpu=(--device cuda --kv-cache-memory 4GiB)
# Half the cores: threads that wait for each other are slow where others hold their cores.
on_cpu=(--device cpu --threads $((($(nproc) + 1) / 2)) --cpu-activations f32 --kv-cache-dtype f32)
servers=() temporary=$(mktemp -d)
trap '[ ${#servers[@]} = 0 ] || { kill -KILL "${servers[@]}"; wait "${servers[@]}"; } 2>/dev/null; rm -rf "$temporary"' EXIT

# serve URL NAME FILE FLAG...: returns when it is healthy.
serve() {
    local url=$1 name=$2
    shift 2
    "$powertrain" serve "$@" --port "${url##*:}" >"$out/$name.server.txt" 2>&1 &
    servers+=($!)
    until curl -sf "$url/health" >/dev/null; do
        kill -0 "${servers[-1]}" 2>/dev/null || { tail -n 3 "$out/$name.server.txt"; return 1; }
        sleep 0.1
    done
}

# serve_both NAME FILE; what the GPU's server says of itself goes to NAME.engine.json.
serve_both() {
    # A prompt whose beginning is cached is computed in other pieces, which rounds otherwise.
    serve $gpu "$1-gpu" "$2" "${on_gpu[@]}" --no-enable-prefix-caching && serve $cpu "$1-cpu" "$2" "${on_cpu[@]}" &&
        curl -sf $gpu/v1/engine -o "$out/$1.engine.json"
}

# perplexity_of NAME FILE FLAG...
perplexity_of() {
    local name=$1
    shift
    "$powertrain" eval perplexity --file "${WIKITEXT:?names no text}" --windows "${WINDOWS:-24}" "$@" -o "$out/perplexity-$name.json"
}

# compare_perplexities NAME...: with the CPU's, which is computed if it was not yet.
compare_perplexities() {
    [ -s "$out/perplexity-cpu.json" ] || perplexity_of cpu "$model" "${on_cpu[@]}" || return
    python3 - "$out" "$@" <<'END'
import json, sys
out, *names = sys.argv[1:]
cpu, *found = (json.load(open(f"{out}/perplexity-{name}.json")) for name in ["cpu", *names])
assert all(one["tokens_scored"] == cpu["tokens_scored"] > 0 for one in found)
off = [one["perplexity"] / cpu["perplexity"] - 1 for one in found]
words = "".join(f", GPU {name} {one['perplexity']:.4f} ({by:+.3%})" for name, one, by in zip(names, found, off))
print(f"CPU in f32 {cpu['perplexity']:.4f}{words}, {cpu['tokens_scored']} tokens; allowed 0.5 %")
sys.exit(not all(abs(by) <= 0.005 for by in off))
END
}

case $check in
texts)
    serve_both texts "$model" && python3 "$here/texts.py" $gpu $cpu --out "$out/texts.json"
    ;;
perplexity)
    for dtype in bfloat16 float16; do perplexity_of $dtype "$model" "${on_gpu[@]}" --dtype $dtype || exit; done
    compare_perplexities bfloat16 float16
    ;;
f16model)
    file=$temporary/f16.gguf
    python3 "$here/f16.py" "$model" "$file" && serve_both f16model "$file" && python3 - "$out/f16model.engine.json" <<'END' || exit
import json, sys
engine = json.load(open(sys.argv[1]))
says = {name: engine[name] for name in ("dtype", "kv_cache_dtype", "device")}
print(says)
if not (says["dtype"].startswith("F16") and says["kv_cache_dtype"] == "f16" and "f16" in says["device"].split(", ")):
    sys.exit(f"a model stored in f16 is not computed in f16: {says}")
END
    # f16 rounds to three bits more than bf16, so texts part at closer ties.
    python3 "$here/texts.py" $gpu $cpu --tokens 32 --tie 0.1 --out "$out/f16model.json" || exit
    [ -n "${WIKITEXT:-}" ] || { echo "computed in f16, texts as on the CPU; no perplexity without WIKITEXT"; exit; }
    perplexity_of f16model "$file" "${on_gpu[@]}" && compare_perplexities f16model
    ;;
*)
    echo "texts, perplexity or f16model, not '$check'" >&2
    exit 1
    ;;
esac
