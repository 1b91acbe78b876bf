#!/usr/bin/env python3
"""vLLM without HTTP, on the shapes and lengths that `cuda_check bench` and `cuda_check engine` use.

    vllm_offline.py MODEL [--requests N] [--out FILE]

MODEL: a folder with config and tokenizer; weights are random (--load-format dummy). Prints one JSON line a result: seconds from start to
ready, then for each (batch, prompt, output) the median, least and greatest milliseconds of `LLM.generate`, then the output tokens per
second of N requests of 512 prompt and 256 output tokens given at once.
Decode per token is (time of 128 output tokens - time of 1) / 127: the prompt is taken off.
"""

import argparse
import json
import os
import statistics
import sys
import time

BEGIN = time.time()
LATENCIES = [(1, 32, 128), (1, 32, 1), (256, 32, 128), (256, 32, 1), (1, 1024, 1), (1, 4096, 1), (8, 1024, 1)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-num-seqs", type=int, default=0)
    parser.add_argument("--out")
    arguments = parser.parse_args()
    out = open(arguments.out, "a", encoding="utf-8") if arguments.out else None

    def put(**result):
        line = json.dumps(result)
        print("RESULT", line, flush=True)
        if out:
            out.write(line + "\n")
            out.flush()

    os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
    import numpy
    import vllm
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    settings = {"max_num_seqs": arguments.max_num_seqs} if arguments.max_num_seqs else {}
    engine = LLM(model=arguments.model, load_format="dummy", max_model_len=8192, enable_prefix_caching=False, seed=0, **settings)
    put(kind="start", version=vllm.__version__, seconds=round(time.time() - BEGIN, 2), command=" ".join(sys.argv))
    with open(os.path.join(arguments.model, "config.json"), encoding="utf-8") as file:
        vocabulary = json.load(file)["vocab_size"]
    random = numpy.random.default_rng(1)

    def prompts(count, length):
        return [TokensPrompt(prompt_token_ids=ids) for ids in random.integers(100, min(30000, vocabulary), size=(count, length)).tolist()]

    def generate(count, length, tokens):
        batch = prompts(count, length)
        parameters = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=tokens)
        begin = time.perf_counter()
        answers = engine.generate(batch, sampling_params=parameters, use_tqdm=False)
        seconds = time.perf_counter() - begin
        assert all(len(answer.outputs[0].token_ids) == tokens for answer in answers)
        return seconds

    medians = {}
    for batch, length, tokens in LATENCIES:
        for _ in range(2):
            generate(batch, length, tokens)
        times = [1e3 * generate(batch, length, tokens) for _ in range(arguments.rounds)]
        medians[batch, length, tokens] = statistics.median(times)
        put(kind="latency", batch=batch, prompt=length, output=tokens, ms=round(statistics.median(times), 3), least=round(min(times), 3),
            greatest=round(max(times), 3), rounds=len(times))
    for batch in (1, 256):
        step = (medians[batch, 32, 128] - medians[batch, 32, 1]) / 127
        put(kind="decode", batch=batch, ms_per_step=round(step, 4), tokens_per_s=round(batch / step * 1e3, 1),
            ms_per_token_whole=round(medians[batch, 32, 128] / 128, 4), tokens_per_s_whole=round(batch * 128 / medians[batch, 32, 128] * 1e3, 1))
    seconds = generate(arguments.requests, 512, 256)
    put(kind="throughput", requests=arguments.requests, prompt=512, output=256, seconds=round(seconds, 3),
        output_tokens_per_s=round(arguments.requests * 256 / seconds, 1))


if __name__ == "__main__":
    main()
