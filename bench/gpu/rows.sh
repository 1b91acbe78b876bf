#!/usr/bin/env bash
# The rows of docs/benchmarks/h100.md beside vLLM: units that can be split over several calls on one machine.
#
#   bench/gpu/rows.sh OUT SECONDS UNIT...
#
# Units: A-serve B-serve B-python C-serve (over HTTP, ours first, then vLLM; B and C behind vLLM's Rust front end, B-python behind the other),
# A-again B-again (ours alone at the levels that are closest), bench engine profile (ours without HTTP), A-offline B-offline C-offline (vLLM without
# HTTP). MODELS: a folder with A*, B* and C*, each with config and tokenizer. POWERTRAIN and CUDA_CHECK: built binaries. vLLM is
# what python3 imports. No unit begins with less than 30 of SECONDS left, and none takes more than is left; OUT.tgz has what there is after each of them.
set -u
out=$1 limit=$2
shift 2
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
: "${MODELS:?a folder with the three shapes}"
export POWERTRAIN=${POWERTRAIN:-$root/target/release/powertrain}
check=${CUDA_CHECK:-$root/target/release/examples/cuda_check}
mkdir -p "$out"
out=$(cd "$out" && pwd)
few="1:16 10:160 50:600 100:1000 256:1792"

shape() { # shape LETTER: its folder of models
    for folder in "$MODELS/$1"*; do [ -d "$folder" ] && echo "$folder"; done | head -n 1
}
ours() {
    echo "$POWERTRAIN serve $(shape "$1") --load-format dummy --device cuda --port 8000 --max-model-len 8192 --no-enable-prefix-caching --max-num-seqs 256"
}
vllm() {
    # Under the name that ours has, so that results are of the same work.
    echo "python3 -m vllm.entrypoints.cli.main serve $(shape "$1") --served-model-name $(basename "$(shape "$1")") --load-format dummy --max-model-len 8192 --no-enable-prefix-caching --port 8000 --host 127.0.0.1"
}
rust() {
    echo "env VLLM_USE_RUST_FRONTEND=1 $(vllm "$1")"
}
unit() { # unit NAME COMMAND...
    local name=$1 begin=$SECONDS left=$((limit - SECONDS - 10)) code
    shift
    if [ "$left" -lt 20 ]; then
        echo "$name: left out, $left s are left"
        return
    fi
    timeout -k 8 "$left" "$@" >"$out/$name.txt" 2>&1
    code=$?
    echo "$name: code $code after $((SECONDS - begin)) s"
    grep -aE '^(RESULT|ours|vllm|#|decode|prefill)|clients,' "$out/$name.txt" | cut -c1-170
    tar -C "$(dirname "$out")" -czf "$out.tgz.new" "$(basename "$out")" && mv "$out.tgz.new" "$out.tgz"
}
for name in "$@"; do
    letter=${name%%-*}
    case $name in
    [ABC]-*) [ -n "$(shape "$letter")" ] || { echo "$name: $MODELS has no $letter*"; exit 1; } ;;
    esac
    case $name in
    A-serve) unit "$name" "$here/beside.sh" "$out/beside-A" "1:8 10:80 50:300 100:400 256:768" "ours=$(ours A)" "vllm=$(vllm A)" ;;
    [BC]-serve) unit "$name" "$here/beside.sh" "$out/beside-$letter" "$few" "ours=$(ours "$letter")" "vllm-rust=$(rust "$letter")" ;;
    B-python) unit "$name" "$here/beside.sh" "$out/beside-B-python" "$few" "vllm=$(vllm B)" ;;
    A-again) unit "$name" "$here/beside.sh" "$out/beside-A-again" "50:300 100:400" "ours=$(ours A)" ;;
    B-again) unit "$name" "$here/beside.sh" "$out/beside-B-again" "50:600 256:1792" "ours=$(ours B)" ;;
    bench | profile) unit "$name" "$check" "$name" "$here"/shapes/[ABC] ;;
    engine) unit "$name" "$check" "$name" "$here"/shapes/[AB] ;;
    A-offline) unit "$name" python3 "$here/vllm_offline.py" "$(shape A)" --requests 1000 --rounds 3 --out "$out/$name.jsonl" ;;
    [BC]-offline) unit "$name" python3 "$here/vllm_offline.py" "$(shape "$letter")" --requests 2000 --rounds 3 --out "$out/$name.jsonl" ;;
    *)
        echo "no unit $name" >&2
        exit 1
        ;;
    esac
done
