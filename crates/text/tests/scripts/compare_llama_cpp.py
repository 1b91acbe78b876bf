"""Compares our ids with llama.cpp's over a whole file and over every code point, for one GGUF model.

    python compare_llama_cpp.py LLAMA_TOKENIZE MODEL.gguf TEXT_FILE

Run it in the workspace's root; it builds and runs crates/text/examples/tokenize.rs. Ends with 1 if any id differs.
"""

import json
import subprocess
import sys
import tempfile
import unicodedata

LLAMA_TOKENIZE, MODEL, TEXT_FILE = sys.argv[1:]
OURS = ["cargo", "run", "--quiet", "--release", "-p", "powertrain-text", "--example", "tokenize", "--"]


def compare(name, path):
    theirs = subprocess.run([LLAMA_TOKENIZE, "-m", MODEL, "-f", path, "--ids", "--log-disable"], capture_output=True, check=True)
    ours = subprocess.run([*OURS, MODEL, path], capture_output=True, check=True)
    theirs, measured, ours = json.loads(theirs.stdout), ours.stderr.decode(), json.loads(ours.stdout)
    first = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
    same = ours == theirs
    print(f"{name}: {len(theirs)} ids, {'equal' if same else f'first difference at id {first}: {ours[first:first + 8]} here, {theirs[first:first + 8]} there'}")
    print(measured, end="")
    return same


# llama.cpp's tables are Unicode 15's and ours 16's: a code point new in 16 may be cut differently.
ASSIGNED = [chr(c) for c in range(1, 0x110000) if unicodedata.category(chr(c)) not in ("Cn", "Cs")]

same = compare(TEXT_FILE, TEXT_FILE)
for name, joint in [("every code point", "{}"), ("every code point between letters", "a{}b"), ("every code point after a space", " {}1")]:
    with tempfile.NamedTemporaryFile("w", newline="", encoding="utf-8", suffix=".txt") as file:
        file.write("\n".join(joint.format(c) for c in ASSIGNED))
        file.flush()
        same &= compare(name, file.name)
sys.exit(0 if same else 1)
