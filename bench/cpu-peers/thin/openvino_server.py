"""OpenVINO GenAI's continuous batching behind HTTP: openvino_server.py PORT MODEL THREADS SEQUENCES KV_CACHE_GIB."""

import queue
import sys

import openvino_genai as genai
from connection import Detokenizer, Request, listen


def main() -> None:
    port, model, threads, sequences, cache_gib = int(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:6])
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = cache_gib
    scheduler.max_num_seqs = sequences
    scheduler.max_num_batched_tokens = 2048
    scheduler.dynamic_split_fuse = True
    scheduler.enable_prefix_caching = False
    pipeline = genai.ContinuousBatchingPipeline(model, scheduler, "CPU", {"INFERENCE_NUM_THREADS": threads})
    tokenizer = pipeline.get_tokenizer()
    waiting: queue.SimpleQueue[Request] = queue.SimpleQueue()
    listen(port, waiting.put)

    number = 0
    running: dict[int, tuple[genai.GenerationHandle, Request, Detokenizer]] = {}
    while True:
        while not running or not waiting.empty():
            request = waiting.get()
            config = genai.GenerationConfig()
            config.max_new_tokens = request.max_tokens
            config.do_sample = False
            config.ignore_eos = request.ignore_eos
            ids = tokenizer.encode(request.prompt, add_special_tokens=False).input_ids
            request.prompt_tokens = ids.shape[1]
            number += 1
            handle = pipeline.add_request(number, ids, config)
            running[number] = (handle, request, Detokenizer(tokenizer.decode))
        if pipeline.has_non_finished_requests():
            pipeline.step()
        for key, (handle, request, detokenizer) in list(running.items()):
            while handle.can_read():
                new = [token for output in handle.read().values() for token in output.generated_ids]
                request.send(detokenizer.push(new), len(new))
            if handle.get_status() != genai.GenerationStatus.RUNNING and not handle.can_read():
                request.finish()
                del running[key]


main()
