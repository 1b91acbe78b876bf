/tmp/w/powertrain serve /tmp/models/A-llama3.1-8b --load-format dummy --device cuda --port 8000 --max-model-len 8192 --no-enable-prefix-caching --max-num-seqs 256
