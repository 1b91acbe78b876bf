/tmp/w/powertrain serve /tmp/models/B-qwen2.5-1.5b --load-format dummy --device cuda --port 8000 --max-model-len 8192 --no-enable-prefix-caching --max-num-seqs 256
