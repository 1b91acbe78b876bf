"""What users of the official client rely on. One function a run: suite.py NAME ADDRESS PROCESS_ID."""

import asyncio
import json
import math
import os
import random
import signal
import sys
import urllib.error
import urllib.request

import openai

NAME, ADDRESS, PROCESS_ID = sys.argv[1], sys.argv[2], int(sys.argv[3])
KEY = "test-key"
MODEL = "smollm2"
# No retries: a failure must be seen.
client = openai.OpenAI(base_url=f"{ADDRESS}/v1", api_key=KEY, max_retries=0, timeout=300)


def user(text):
    return [{"role": "user", "content": text}]


def get(path):
    request = urllib.request.Request(ADDRESS + path, headers={"Authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(request) as answer:
        return answer.read().decode()


def post(path, body):
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(ADDRESS + path, body, headers)) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def greedy(text, tokens=16, **more):
    return client.chat.completions.create(model=MODEL, messages=user(text), temperature=0, max_tokens=tokens, **more)


def text_of(answer):
    return answer.choices[0].message.content


def refused(kind, call):
    try:
        call()
    except kind as error:
        assert error.body["message"], error
        return error
    raise AssertionError(f"{kind.__name__} was expected")


def assert_serves():
    assert greedy("Say yes.", 4).usage.completion_tokens > 0


def chat():
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "system", "content": "You answer in one word."}] + user("What is the capital of France?"),
        temperature=0,
        max_completion_tokens=32,
    )
    assert "Paris" in text_of(answer), answer
    assert answer.id.startswith("chatcmpl-") and answer.object == "chat.completion" and answer.model == MODEL
    assert answer.choices[0].finish_reason in ("stop", "length") and answer.choices[0].message.role == "assistant"
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens and usage.completion_tokens > 0
    # The same again comes from the prefix cache, and is the same.
    first, again = greedy("Tell me about the sea in a few words.", 24), greedy("Tell me about the sea in a few words.", 24)
    assert text_of(first) == text_of(again)
    assert again.usage.prompt_tokens_details.cached_tokens >= 16, again.usage


def completions():
    text = client.completions.create(model=MODEL, prompt="1, 2, 3, 4,", temperature=0, max_tokens=8)
    assert text.id.startswith("cmpl-") and text.choices[0].text.strip().startswith("5"), text
    ids = post("/tokenize", json.dumps({"model": MODEL, "prompt": "1, 2, 3, 4,"}).encode())[1]["tokens"]
    by_ids = client.completions.create(model=MODEL, prompt=ids, temperature=0, max_tokens=8)
    assert by_ids.choices[0].text == text.choices[0].text and by_ids.usage.prompt_tokens == len(ids)
    many = client.completions.create(model=MODEL, prompt=["1, 2, 3, 4,", "a b c d e"], temperature=0, max_tokens=8)
    assert many.choices[0].text == text.choices[0].text and len(many.choices) == 2
    echoed = client.completions.create(model=MODEL, prompt="1, 2, 3, 4,", temperature=0, max_tokens=8, echo=True, logprobs=1)
    assert echoed.choices[0].text == "1, 2, 3, 4," + text.choices[0].text
    logprobs = echoed.choices[0].logprobs
    assert logprobs.token_logprobs[0] is None and all(value <= 0 for value in logprobs.token_logprobs[1:])
    assert "".join(logprobs.tokens).endswith(echoed.choices[0].text)


def streaming():
    whole = greedy("Name three colours.", 24)
    with client.chat.completions.create(
        model=MODEL, messages=user("Name three colours."), temperature=0, max_tokens=24, stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == text_of(whole)
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    plain = client.completions.create(model=MODEL, prompt="1, 2, 3,", temperature=0, max_tokens=8, stream=True)
    streamed = "".join(chunk.choices[0].text for chunk in plain)
    assert streamed == client.completions.create(model=MODEL, prompt="1, 2, 3,", temperature=0, max_tokens=8).choices[0].text


def logprobs():
    answer = greedy("Say hello.", 8, logprobs=True, top_logprobs=5)
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    for token in content:
        assert len(token.top_logprobs) == 5
        # Greedy takes the best; the five best are in order and no more than all.
        assert token.logprob == token.top_logprobs[0].logprob
        values = [top.logprob for top in token.top_logprobs]
        assert values == sorted(values, reverse=True) and sum(map(math.exp, values)) < 1.001
    text = b"".join(bytes(token.bytes) for token in content).decode()
    assert text.startswith(text_of(answer)), (text, text_of(answer))


def several():
    three = client.chat.completions.create(
        model=MODEL, messages=user("Write a short sentence."), temperature=1, seed=5, n=3, max_tokens=16
    )
    assert [choice.index for choice in three.choices] == [0, 1, 2]
    for choice in three.choices:
        alone = client.chat.completions.create(
            model=MODEL, messages=user("Write a short sentence."), temperature=1, seed=5 + choice.index, max_tokens=16
        )
        assert text_of(alone) == choice.message.content
    assert three.usage.prompt_tokens == alone.usage.prompt_tokens


def stop():
    whole = text_of(greedy("Count from one to ten.", 48))
    word = whole.split()[4]
    cut = greedy("Count from one to ten.", 48, stop=[word, "never there"])
    assert text_of(cut) == whole[: whole.index(word)], (whole, cut)
    assert cut.choices[0].finish_reason == "stop" and cut.choices[0].stop_reason == word
    free = greedy("Say yes.", 64, extra_body={"ignore_eos": True})
    assert free.usage.completion_tokens == 64 and free.choices[0].finish_reason == "length"


def seed():
    def draw(seed):
        return text_of(client.chat.completions.create(
            model=MODEL, messages=user("Invent a name."), temperature=1.5, seed=seed, max_tokens=24
        ))
    assert draw(1) == draw(1) and len({draw(seed) for seed in range(4)}) > 1


def errors():
    create = client.chat.completions.create
    error = refused(openai.BadRequestError, lambda: create(model=MODEL, messages=user("x"), temperature=-1, max_tokens=-5))
    assert error.body["message"] == "max_tokens: -5 is below 1; temperature: -1 is below 0" and error.param == "max_tokens"
    assert_serves()
    error = refused(openai.NotFoundError, lambda: create(model="gpt-4", messages=user("x")))
    assert error.code == "model_not_found"
    assert_serves()
    error = refused(openai.BadRequestError, lambda: create(model=MODEL, messages=user("word " * 3000)))
    assert error.code == "context_length_exceeded" and "2048" in error.body["message"]
    assert_serves()
    error = refused(openai.APIStatusError, lambda: create(model=MODEL, messages=user("x" * (10 << 20))))
    assert error.status_code == 413
    assert_serves()
    refused(openai.AuthenticationError, lambda: client.with_options(api_key="wrong").models.list())
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    refused(openai.BadRequestError, lambda: create(model=MODEL, messages=user("x"), tools=[tool], tool_choice="required"))
    schema = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}
    refused(openai.BadRequestError, lambda: create(model=MODEL, messages=user("x"), response_format=schema))
    random_bytes = random.Random(3)
    for body in [b"", b"garbage", b"[]", b"{\"messages\":", random_bytes.randbytes(4096)]:
        status, answer = post("/v1/chat/completions", body)
        assert status == 400 and answer["error"]["message"], answer
    assert_serves()


def crowd():
    """A hundred streams, thirty of which leave: the others say what they say alone, and nothing is left behind."""
    chosen = int(os.environ.get("SEED", "7"))
    print(f"SEED={chosen}", flush=True)
    dice = random.Random(chosen)
    prompts = [f"Tell me a fact about the number {number}." for number in range(8)]
    alone = {prompt: text_of(greedy(prompt, 16)) for prompt in prompts}
    plans = [(dice.choice(prompts), dice.randrange(1, 12) if index < 30 else None) for index in range(100)]
    dice.shuffle(plans)

    async def one(crowd_client, prompt, leaves_after):
        stream = await crowd_client.chat.completions.create(
            model=MODEL, messages=user(prompt), temperature=0, max_tokens=16, stream=True
        )
        text, chunks = "", 0
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
            chunks += 1
            if chunks == leaves_after:
                await stream.close()
                return
        assert text == alone[prompt], (prompt, text, alone[prompt])

    async def everyone():
        async with openai.AsyncOpenAI(base_url=f"{ADDRESS}/v1", api_key=KEY, max_retries=0, timeout=600) as crowd_client:
            await asyncio.gather(*(one(crowd_client, *plan) for plan in plans))

    asyncio.run(everyone())
    while True:
        now = json.loads(get("/v1/engine"))["now"]
        if now["requests_running"] == now["requests_waiting"] == 0:
            break
    assert now["kv_blocks_used"] == 0, now
    usage = next(line for line in get("/metrics").splitlines() if line.startswith("vllm:kv_cache_usage_perc{"))
    assert float(usage.split()[-1]) == 0, usage
    assert_serves()


def full_queue():
    """One runs, one waits, the third is told when to come back."""
    create = lambda: client.chat.completions.create(
        model=MODEL, messages=user("Go on."), max_tokens=1500, stream=True, extra_body={"ignore_eos": True}
    )
    # A stream answers once its request is accepted.
    running, waiting = create(), create()
    error = refused(openai.RateLimitError, create)
    assert int(error.response.headers["retry-after"]) >= 1 and "--max-queue" in error.body["message"]
    running.close()
    waiting.close()
    while json.loads(get("/v1/engine"))["now"]["requests_running"]:
        pass
    assert_serves()


def drain():
    """After SIGTERM what runs is finished, and nothing new is taken."""
    whole = text_of(greedy("Tell me a long story.", 200, extra_body={"ignore_eos": True}))
    stream = client.chat.completions.create(
        model=MODEL, messages=user("Tell me a long story."), temperature=0, max_tokens=200, stream=True,
        extra_body={"ignore_eos": True},
    )
    text = ""
    for chunk in stream:
        if not text and chunk.choices[0].delta.content:
            os.kill(PROCESS_ID, signal.SIGTERM)
            while is_ready():
                pass
            refused(openai.InternalServerError, lambda: greedy("Too late?"))
        text += chunk.choices[0].delta.content or ""
    assert text == whole


def cut_short():
    """Without time to finish a stream ends with an error, not in silence."""
    stream = client.chat.completions.create(
        model=MODEL, messages=user("Tell me a long story."), max_tokens=1500, stream=True, extra_body={"ignore_eos": True}
    )
    seen = 0

    def read():
        nonlocal seen
        for chunk in stream:
            if seen == 1:
                os.kill(PROCESS_ID, signal.SIGTERM)
            seen += bool(chunk.choices[0].delta.content)

    error = None
    try:
        read()
    except openai.APIError as raised:
        error = raised
    assert error is not None and error.code == "shutting_down" and seen > 0, error


def is_ready():
    try:
        urllib.request.urlopen(ADDRESS + "/ready")
        return True
    except urllib.error.HTTPError as error:
        assert error.code == 503
        return False


globals()[NAME]()
print(f"{NAME}: passed", flush=True)
