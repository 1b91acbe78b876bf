"""What users of the official `openai` client do, against a server whose address is the first argument and whose key is `right`."""

import sys

import openai

BASE = sys.argv[1]
client = openai.OpenAI(base_url=BASE, api_key="right", max_retries=0)
MODEL = client.models.list().data[0].id
QUESTION = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]


def chat(**options):
    return client.chat.completions.create(**{"model": MODEL, "messages": QUESTION, "temperature": 0, **options})


def expect(error, call):
    try:
        call()
    except error as caught:
        body = caught.body
        assert isinstance(body, dict) and body["message"] and body["type"], body
        return body
    raise AssertionError(f"{error.__name__} was expected")


def test_chat():
    answer = chat(max_tokens=24)
    choice = answer.choices[0]
    assert "Paris" in choice.message.content, choice
    assert choice.message.role == "assistant" and choice.finish_reason == "stop", choice
    usage = answer.usage
    assert usage.prompt_tokens > 10 and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens, usage
    assert answer.model == MODEL and answer.object == "chat.completion"


def test_length():
    answer = chat(max_tokens=3)
    assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 3


def test_streaming():
    whole = chat(max_tokens=24).choices[0].message.content
    chunks = list(chat(max_tokens=24, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole, (text, whole)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 0
    assert len({chunk.id for chunk in chunks}) == 1


def test_logprobs():
    answer = chat(max_tokens=8, logprobs=True, top_logprobs=3)
    entries = answer.choices[0].logprobs.content
    assert len(entries) == answer.usage.completion_tokens
    for entry in entries:
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 3
        # Greedy: the token is the most probable one.
        assert entry.top_logprobs[0].logprob == entry.logprob, entry
        assert bytes(entry.bytes).decode() == entry.token, entry


def test_n_and_seed():
    options = {"max_tokens": 12, "temperature": 1.0, "n": 3, "seed": 7}
    first = [choice.message.content for choice in chat(**options).choices]
    second = [choice.message.content for choice in chat(**options).choices]
    assert len(first) == 3 and first == second, (first, second)
    assert len(set(first)) > 1, "the choices of one request differ"
    other = [choice.message.content for choice in chat(**{**options, "seed": 8}).choices]
    assert other != first


def test_stop():
    answer = chat(max_tokens=24, stop=[" Paris"])
    assert "Paris" not in answer.choices[0].message.content and answer.choices[0].finish_reason == "stop"


def test_completions():
    options = {"model": MODEL, "max_tokens": 6, "temperature": 0}
    one = client.completions.create(prompt="The capital of France is", **options)
    assert one.choices[0].text and one.usage.completion_tokens <= 6
    batch = client.completions.create(prompt=["The capital of France is", "Once upon a time"], **options)
    assert [choice.index for choice in batch.choices] == [0, 1]
    assert batch.choices[0].text == one.choices[0].text, "a batch changes nothing"
    echoed = client.completions.create(prompt="The capital of France is", echo=True, logprobs=1, **options).choices[0]
    assert echoed.text == "The capital of France is" + one.choices[0].text
    assert echoed.logprobs.token_logprobs[0] is None and echoed.logprobs.token_logprobs[1] <= 0


def test_errors():
    body = expect(openai.BadRequestError, lambda: chat(max_tokens=-1))
    assert "max_tokens" in body["message"], body
    body = expect(openai.BadRequestError, lambda: chat(messages=[{"role": "user", "content": "word " * 3000}]))
    assert "1024" in body["message"], body
    expect(openai.NotFoundError, lambda: chat(model="no-such-model"))
    wrong = openai.OpenAI(base_url=BASE, api_key="wrong", max_retries=0)
    expect(openai.AuthenticationError, lambda: wrong.models.list())
    # And the next request is served.
    assert chat(max_tokens=2).usage.completion_tokens == 2


for name, test in list(globals().items()):
    if name.startswith("test_"):
        test()
        print(name, "ok", flush=True)
