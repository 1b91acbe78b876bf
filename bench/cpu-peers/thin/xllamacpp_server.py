"""The server inside xllamacpp's wheel: xllamacpp_server.py PORT MODEL THREADS SEQUENCES CONTEXT_TOKENS."""

import sys
import threading

import xllamacpp


def main() -> None:
    port, model, threads, sequences, context = int(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:6])
    parameters = xllamacpp.CommonParams()
    parameters.model.path = model
    parameters.port = port
    parameters.n_parallel = sequences
    parameters.n_ctx = context
    parameters.cpuparams.n_threads = threads
    parameters.cpuparams_batch.n_threads = threads
    parameters.cache_ram_mib = 0
    server = xllamacpp.Server(parameters)
    print(server.listening_address, flush=True)
    threading.Event().wait()


main()
