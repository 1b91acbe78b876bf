"""Perplexity as transformers computes it, the other side of `powertrain eval perplexity`.

    python perplexity_reference.py MODEL.gguf IDS_FILE [WINDOWS]

Weights are dequantised to f32 by transformers. IDS_FILE holds the text's token ids, `[1, 2, ...]`, as the `tokenize` example of
crates/text prints them: transformers' own conversion of a GGUF tokenizer loses SmolLM2's digit splitter. Windows of 512 tokens that
do not overlap; in each, tokens 257 to 511 (from 0) are scored. Prints, after each window, windows, tokens and the sum of negative
log-likelihoods. Needs torch, transformers, gguf, accelerate.
"""

import json
import pathlib
import sys

import torch
import transformers

CONTEXT = 512

path = pathlib.Path(sys.argv[1])
ids = json.loads(pathlib.Path(sys.argv[2]).read_text())
windows = min(len(ids) // CONTEXT, int(sys.argv[3]) if len(sys.argv) > 3 else len(ids))
model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
model.eval()
total = 0.0
for window in range(windows):
    tokens = torch.tensor([ids[window * CONTEXT : (window + 1) * CONTEXT]])
    with torch.inference_mode():
        logits = model(tokens).logits[0]
    half = CONTEXT // 2
    scores = torch.log_softmax(logits[half:-1].double(), dim=-1)
    total -= scores.gather(1, tokens[0, half + 1 :, None]).sum().item()
    scored = (window + 1) * (CONTEXT - half - 1)
    print(window + 1, scored, total, torch.tensor(total / scored).exp().item(), flush=True)
