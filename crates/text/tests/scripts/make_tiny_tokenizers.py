"""Trains tiny tokenizers on this repository's own sources and writes them, with ids made by their makers, for tests/tiny.rs.

    python make_tiny_tokenizers.py ../fixtures/tiny [LLAMA_TOKENIZE]

Byte-level BPE comes from the PyPI package tokenizers, as tokenizer.json and as a GGUF vocabulary with the `pre` of the same
rules; SentencePiece BPE from the package sentencepiece, as a GGUF vocabulary. With LLAMA_TOKENIZE the ids are checked against
llama.cpp's as well. Also needs the package gguf.
"""

import io
import json
import pathlib
import random
import subprocess
import sys
import tempfile

import gguf
import sentencepiece
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

OUTPUT = pathlib.Path(sys.argv[1])
LLAMA_TOKENIZE = sys.argv[2] if len(sys.argv) > 2 else None
CRATE = pathlib.Path(__file__).resolve().parents[2]
CORPUS = [line for path in sorted((CRATE / "src").glob("*.rs")) for line in path.read_text().splitlines(keepends=True)]
CORPUS += [f"In {y} there were {y * 7} of {y % 13}, it's {y}% we'll see.\n" for y in range(1900, 2100)]
CORPUS += ["Ünïcödé tëxt, naïve façade. 日本語 テスト 🙂🙃\n"] * 20

fixture = json.load(open(CRATE / "tests/fixtures/smollm2_tokens.json"))
TEXTS = [case["text"].replace("<|im_start|>", "<s>").replace("<|im_end|>", "</s>") for case in fixture]
TEXTS = [text for text in TEXTS if len(text) < 250][:90]
TEXTS += ["", "a", "▁", " ▁ x▁▁y", "<s>", "x<s>y</s> <unk>", "\n\n\n\n<pad>", "<0x41> <0x0A>", "  leading", "<turn>\n\n\n\n hi<turn>"]

SPLIT_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLIT_QWEN2 = SPLIT_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
SPLIT_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(pattern):
    return [
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]


BYTE_LEVEL = {
    "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "smollm": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "llama-bpe": split(SPLIT_LLAMA3),
    "qwen2": split(SPLIT_QWEN2),
    "tekken": split(SPLIT_TEKKEN),
}
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]


def vocabulary_writer(path, model, tokens, types):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    return writer


def close(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def byte_level(pre, rules):
    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=pre in ("llama-bpe", "tekken")))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(rules)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([tokenizers.AddedToken("<turn>", normalized=False)])
    bos = pre == "llama-bpe"
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    folder = OUTPUT / pre
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "unk_token": "<unk>"}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 3]}))
    tokens = [tokenizer.id_to_token(id) for id in range(tokenizer.get_vocab_size())]
    types = [3 if t in SPECIAL else 4 if t == "<turn>" else 1 for t in tokens]
    merges = [" ".join(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]
    writer = vocabulary_writer(folder / "vocabulary.gguf", "gpt2", tokens, types)
    writer.add_tokenizer_pre(pre)
    writer.add_token_merges(merges)
    writer.add_add_bos_token(bos)
    close(writer)
    tokenizer.encode_special_tokens = False
    parsed = [tokenizer.encode(text).ids for text in TEXTS]
    tokenizer.encode_special_tokens = True
    plain = [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]
    return parsed, plain


def sentence_piece(name, dummy_prefix, symbols):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 2),
        model_writer=model,
        model_type="bpe",
        vocab_size=900,
        byte_fallback=True,
        character_coverage=0.995,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        add_dummy_prefix=dummy_prefix,
        user_defined_symbols=symbols,
        pad_id=3,
        pad_piece="<pad>",
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    count = processor.vocab_size()
    tokens = [processor.id_to_piece(id) for id in range(count)]
    types = []
    for id in range(count):
        if processor.is_unknown(id):
            types.append(2)
        elif processor.is_control(id):
            types.append(3)
        elif processor.is_byte(id):
            types.append(6)
        else:
            types.append(4 if tokens[id] in symbols else 1)
    folder = OUTPUT / name
    folder.mkdir(parents=True, exist_ok=True)
    writer = vocabulary_writer(folder / "vocabulary.gguf", "llama", tokens, types)
    writer.add_token_scores([processor.get_score(id) for id in range(count)])
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(dummy_prefix)
    close(writer)
    plain = [processor.encode(text) if text else [] for text in TEXTS]
    return None, plain


def llama_cpp(name, text, parse_special):
    with tempfile.NamedTemporaryFile("w", newline="", encoding="utf-8", suffix=".txt") as file:
        file.write(text)
        file.flush()
        command = [LLAMA_TOKENIZE, "-m", str(OUTPUT / name / "vocabulary.gguf"), "-f", file.name, "--ids", "--log-disable"]
        if not parse_special:
            command += ["--no-parse-special", "--no-bos"]
        return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


outcome = {}
for name, make in {
    **{pre: lambda pre=pre, rules=rules: byte_level(pre, rules) for pre, rules in BYTE_LEVEL.items()},
    "llama2": lambda: sentence_piece("llama2", True, []),
    "gemma": lambda: sentence_piece("gemma", False, ["<turn>", "\n\n", "\n\n\n", "\n\n\n\n"]),
}.items():
    parsed, plain = make()
    if LLAMA_TOKENIZE:
        theirs = [llama_cpp(name, text, False) if text else [] for text in TEXTS]
        for text, ours, other in zip(TEXTS, plain, theirs):
            if ours != other:
                print(f"{name}: {text!r}\n  maker     {ours}\n  llama.cpp {other}")
        theirs = [llama_cpp(name, text, True) if text else None for text in TEXTS]
        if parsed:
            for text, ours, other in zip(TEXTS, parsed, theirs):
                if other is not None and ours != other:
                    print(f"{name}, special: {text!r}\n  maker     {ours}\n  llama.cpp {other}")
        else:
            parsed = theirs
    outcome[name] = {"parsed": parsed, "plain": plain}
json.dump({"texts": TEXTS, "tokenizers": outcome}, open(OUTPUT / "ids.json", "w"), separators=(",", ":"))
