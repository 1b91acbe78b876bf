"""Greedy texts of two servers with the same model, token by token.

    texts.py SUBJECT_URL REFERENCE_URL [--tokens 64] [--tie 0.3] [--out FILE]

The reference computes in f32, the subject rounds to bf16, so where the reference's best two tokens are nearly as likely either may come, and the texts
part for good. A text passes when it is the reference's to the end, or up to a token that the reference holds at most `tie` nats below its own.
0.3 nats are a tenth of the standard deviation of SmolLM2-135M's logits, the most by which bf16 moved one on text. The subject is asked twice, with log-probabilities and without: both texts must be the same. Python's standard library only. Ends with 1 if a text fails.
"""

import argparse
import json
import sys
import urllib.request

PROMPTS = [
    "Once upon a time there was a", "The capital of France is", "Water boils at", "def fibonacci(n):", "The three primary colours are",
    "In the year 1969, the first", "A recipe for pancakes: take two", "Dear Sir or Madam,", "The largest planet of the solar system is", "1, 1, 2, 3, 5, 8,",
    "The opposite of cold is", "She opened the door and saw", "Photosynthesis is the process by which", "To be, or not to be,", "The speed of light is about",
    "My favourite book is", "In machine learning, a neural network", "The Second World War ended in", "An apple a day keeps", "SELECT name FROM users WHERE",
]


def ask(url, body):
    request = urllib.request.Request(url + "/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)["choices"][0]


def greedy(url, prompt, tokens):
    """The text, and ids and log-probabilities of the best tokens at each place."""
    return ask(url, {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "logprobs": 5, "return_tokens_as_token_ids": True})


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("subject")
    arguments.add_argument("reference")
    arguments.add_argument("--tokens", type=int, default=64)
    arguments.add_argument("--tie", type=float, default=0.3)
    arguments.add_argument("--out")
    given = arguments.parse_args()
    found, failed = [], 0
    for prompt in PROMPTS:
        plain = ask(given.subject, {"prompt": prompt, "max_tokens": given.tokens, "temperature": 0, "ignore_eos": True})["text"]
        told = greedy(given.subject, prompt, given.tokens)
        subject, reference = told["logprobs"], greedy(given.reference, prompt, given.tokens)["logprobs"]
        ours, theirs = subject["tokens"], reference["tokens"]
        same = next((at for at, pair in enumerate(zip(ours, theirs)) if pair[0] != pair[1]), len(theirs))
        gap = None
        if same < len(theirs):
            best = reference["top_logprobs"][same]
            gap = max(best.values()) - best.get(ours[same], float("-inf"))
        # Asked for log-probabilities or not, the tokens are the same.
        passes = (gap is None or gap <= given.tie) and plain == told["text"]
        failed += not passes
        found.append({"prompt": prompt, "same": same, "of": len(theirs), "gap": gap, "passes": passes, "text": plain, "with_logprobs": told["text"]})
        print(f"{'ok    ' if passes else 'FAILED'} {same:>3} of {len(theirs)} tokens the reference's"
              + (f", then one {gap:.3f} nats below its best" if gap is not None else "") + f": {prompt!r}")
    whole = sum(one["gap"] is None for one in found)
    print(f"{whole} of {len(found)} texts the reference's to the end, {len(found) - whole - failed} parted at a near tie, {failed} FAILED")
    if given.out:
        with open(given.out, "w") as out:
            json.dump(found, out, indent=1)
    sys.exit(1 if failed else 0)


main()
