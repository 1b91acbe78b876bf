"""The GGUF's weights as a Hugging Face folder in bf16: dequantise_hf.py SOURCE.gguf FOLDER. For SmolLM2-135M only.

transformers' own conversion drops the "smollm" pre-tokenizer's digit splitting; the tokenizer is mended here.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

HEADS, KV_HEADS = 9, 3
NAMES = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def unpermuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undoes the interleaving that llama.cpp's converter gives to query and key rows."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def weights(reader: GGUFReader) -> dict[str, torch.Tensor]:
    found = {}
    for tensor in reader.tensors:
        shape = [int(size) for size in tensor.shape][::-1]
        values = dequantize(tensor.data, tensor.tensor_type).reshape(shape).astype(np.float32)
        parts = tensor.name.split(".")
        name = NAMES.get(tensor.name)
        if parts[0] == "blk":
            if parts[2] in ("attn_q", "attn_k"):
                values = unpermuted(values, HEADS if parts[2] == "attn_q" else KV_HEADS)
            name = f"model.layers.{parts[1]}.{LAYER_NAMES[parts[2]]}.weight"
        assert name is not None, f"unknown tensor {tensor.name}"
        found[name] = torch.from_numpy(np.ascontiguousarray(values))
    return found


def mend_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    digits = {"type": "Digits", "individual_digits": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, byte_level]}
    tokenizer["decoder"] = {**byte_level, "add_prefix_space": True}
    path.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in ("backend", "is_local", "local_files_only"):
        config.pop(key, None)
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 8192, "clean_up_tokenization_spaces": False}
    path.write_text(json.dumps(config, indent=1), encoding="utf-8")


def add_rope_theta(folder: Path) -> None:
    """mistral.rs reads it at the top level, where transformers 5 no longer writes it."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["rope_theta"] = 100000.0
    path.write_text(json.dumps(config, indent=1), encoding="utf-8")


def main() -> None:
    source, folder = Path(sys.argv[1]), Path(sys.argv[2])
    reader = GGUFReader(source)
    config = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=64,
        vocab_size=49152,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        dtype=torch.bfloat16,
    )
    model = LlamaForCausalLM(config)
    missing, unexpected = model.load_state_dict(weights(reader), strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    tokenizer.chat_template = reader.fields["tokenizer.chat_template"].contents()
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    mend_tokenizer(folder)
    add_rope_theta(folder)


main()
