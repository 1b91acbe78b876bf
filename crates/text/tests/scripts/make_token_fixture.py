"""Writes texts and the ids that llama.cpp's llama-tokenize makes of them, for tests/llama_cpp.rs.

    python make_token_fixture.py LLAMA_TOKENIZE MODEL.gguf ../fixtures/smollm2_tokens.json [COUNT [SEED]]

The texts are random, by the seed, but for a list of hard ones at the beginning.
"""

import json
import random
import subprocess
import sys
import tempfile

LLAMA_TOKENIZE, MODEL, OUTPUT = sys.argv[1:4]
COUNT = int(sys.argv[4]) if len(sys.argv) > 4 else 250
SEED = int(sys.argv[5]) if len(sys.argv) > 5 else 1

HARD = [
    "Hello, world!",
    " ",
    "  ",
    "\n",
    "\n\n\n   \n",
    "\t\tx\t",
    " a  b   c    d     ",
    "1234567890 3.14159 1,000,000 0x7f 2024-03-07T09:05:00Z ½ ٣٤٥ 一二三 Ⅷ ²",
    "it's don't WE'LL I'VE 'tis ''s 'S ’s",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>",
    " <|im_end|> x<|endoftext|>y <|im_start| im_end|> <reponame>",
    "<|im_start|><|im_start|>\n<|im_end|><|endoftext|><file_sep>",
    "naïve façade Zürich Ærøskøbing Straße ñandú",
    "e\u0301 a\u0308 \u0301 न\u093fमस्ते สวัสดี 안녕하세요 こんにちは 你好，世界！ Привет мир שלום مرحبا",
    "🙂🙃 👨‍👩‍👧‍👦 🏳️‍🌈 🇨🇭 ☃ ✌🏽",
    "\u00a0\u2003\u3000\u200b\ufeff\u2028\u2029\u0085\u1680x",
    "fn main() {\n    println!(\"{:?}\", vec![1, 2, 3]);\n}\n",
    "def f(x):\n\treturn x**2  # comment\n\n\nclass A:\n    pass\n",
    "SELECT * FROM t WHERE a<=10 AND b!='x';--",
    "https://example.com/a?b=c&d=%20#frag user@example.com",
    "a" * 3000,
    "ab" * 1500,
    " " * 700,
    "\n" * 300,
    "=" * 777 + "-" * 333,
    "9" * 500,
    "日本" * 400,
    "".join(map(chr, range(1, 128))),
    "".join(map(chr, range(128, 1024))),
    "\U0001d54f\U00020000\U0010ffff\ue000\u0378",
    "\x01\x02\x7f\x1b[0m",
]

CHARACTERS = [
    lambda r: chr(r.randrange(32, 127)),
    lambda r: r.choice(" \t\n\r  \u00a0\u3000\u2009"),
    lambda r: r.choice("0123456789"),
    lambda r: r.choice("'\"`’.,;:!?-_/\\|()[]{}<>@#$%^&*+=~"),
    lambda r: chr(r.randrange(0xA1, 0x250)),
    lambda r: chr(r.choice([r.randrange(0x370, 0x600), r.randrange(0x900, 0x1000), r.randrange(0x3040, 0x9FFF)])),
    lambda r: chr(r.randrange(0x1F300, 0x1FAFF)),
    lambda r: chr(r.choice([x for x in [r.randrange(1, 0x110000)] if not 0xD800 <= x < 0xE000] or [0x41])),
    lambda r: r.choice(["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_", "'s", "'ll", "\u0301", "\u200d"]),
    lambda r: r.choice(["the ", " of", "ing", " token", "Hello", "def ", "return", "  ", "\n\n", "://", " 20", "ized"]),
]


def text(r):
    kinds = r.sample(CHARACTERS, r.randrange(1, 5))
    return "".join(r.choice(kinds)(r) for _ in range(r.randrange(1, 120)))


def ids(text, parse_special):
    with tempfile.NamedTemporaryFile("w", newline="", encoding="utf-8", suffix=".txt") as file:
        file.write(text)
        file.flush()
        command = [LLAMA_TOKENIZE, "-m", MODEL, "-f", file.name, "--ids", "--log-disable"]
        if not parse_special:
            command.append("--no-parse-special")
        return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


r = random.Random(SEED)
texts = HARD + [text(r) for _ in range(max(0, COUNT - len(HARD)))]
with open(OUTPUT, "w") as file:
    file.write("[\n")
    for index, text in enumerate(texts):
        plain, parsed = ids(text, False), ids(text, True)
        case = {"text": text, "ids": parsed} if parsed == plain else {"text": text, "ids": parsed, "ids_without_special": plain}
        file.write(json.dumps(case, separators=(",", ":")) + (",\n" if index + 1 < len(texts) else "\n"))
    file.write("]\n")
