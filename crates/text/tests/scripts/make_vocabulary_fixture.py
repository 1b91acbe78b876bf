"""Writes a GGUF file that holds only the tokenizer of another: its metadata, no tensors.

    python make_vocabulary_fixture.py SmolLM2-135M-Instruct.Q4_1.gguf ../fixtures/smollm2_vocabulary.gguf

Needs the PyPI package gguf.
"""

import sys

import gguf

source = gguf.GGUFReader(sys.argv[1])
writer = gguf.GGUFWriter(sys.argv[2], "llama")
for key, field in source.fields.items():
    if not key.startswith("tokenizer."):
        continue
    if field.types[0] == gguf.GGUFValueType.ARRAY:
        writer.add_array(key, field.contents())
    else:
        writer.add_key_value(key, field.contents(), field.types[0])
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.close()
