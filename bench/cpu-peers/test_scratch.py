"""Nothing of a machine's paths reaches a report."""

import unittest
from pathlib import Path

from scratch import Scratch


class Redaction(unittest.TestCase):
    def test_paths_become_names(self) -> None:
        scratch = Scratch(Path("/data/somebody/scratch"))
        for text, expected in (
            ("serve /data/somebody/scratch/models/q4_1.gguf --port 1", "serve $SCRATCH/models/q4_1.gguf --port 1"),
            ("failed at /srv/agent/build/src/gguf.cpp:84", "failed at …/gguf.cpp:84"),
            ("http://127.0.0.1:80/v1/completions and 1/2/3", "http://127.0.0.1:80/v1/completions and 1/2/3"),
        ):
            self.assertEqual(scratch.redacted(text), expected)


if __name__ == "__main__":
    unittest.main()
