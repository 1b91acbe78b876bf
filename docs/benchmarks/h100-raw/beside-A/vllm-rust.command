env VLLM_USE_RUST_FRONTEND=1 python3 -m vllm.entrypoints.cli.main serve /tmp/w/models/A-llama3.1-8b --load-format dummy --max-model-len 8192 --no-enable-prefix-caching --port 8000 --host 127.0.0.1
