"""transformers' generate behind HTTP, in static batches: transformers_server.py PORT MODEL THREADS SEQUENCES.

Whoever waits when a batch ends makes up the next one; transformers has no continuous batching in `generate`.
"""

import queue
import sys

import torch
from connection import Detokenizer, Request, listen
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation.streamers import BaseStreamer


class Streams(BaseStreamer):
    """Hands each step's tokens to their requests."""

    def __init__(self, requests: list[Request], detokenizers: list[Detokenizer]) -> None:
        self._rows = list(zip(requests, detokenizers, strict=True))
        self._prompt_is_next = True

    def put(self, value: torch.Tensor) -> None:
        if self._prompt_is_next:
            self._prompt_is_next = False
            return
        for (request, detokenizer), token in zip(self._rows, value.reshape(-1).tolist(), strict=True):
            if request.completion_tokens < request.max_tokens:
                request.send(detokenizer.push([token]), 1)

    def end(self) -> None:
        for request, _ in self._rows:
            request.finish()


def main() -> None:
    port, model_path, threads, sequences = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(model_path, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.bfloat16).eval()
    tokenizer.pad_token_id = tokenizer.pad_token_id or 0
    model.generation_config.eos_token_id = None
    waiting: queue.SimpleQueue[Request] = queue.SimpleQueue()
    listen(port, waiting.put)
    while True:
        batch = [waiting.get()]
        while len(batch) < sequences and not waiting.empty():
            batch.append(waiting.get())
        inputs = tokenizer([request.prompt for request in batch], return_tensors="pt", padding=True, add_special_tokens=False)
        for request, mask in zip(batch, inputs["attention_mask"], strict=True):
            request.prompt_tokens = int(mask.sum())
        streams = Streams(batch, [Detokenizer(tokenizer.decode) for _ in batch])
        with torch.inference_mode():
            model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=max(request.max_tokens for request in batch),
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
                streamer=streams,
            )


main()
