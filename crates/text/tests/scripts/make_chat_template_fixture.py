"""Renders chat templates with transformers and writes what came out, for tests/chat_templates.rs.

    python make_chat_template_fixture.py ../fixtures/chat_templates ../fixtures/chat_templates.json

Any folder of .jinja files will do as the first argument; render_cases (examples/) compares the outcome. Needs the PyPI
package transformers.
"""

import copy
import datetime
import json
import pathlib
import sys

from transformers.utils import chat_template_utils


class FixedDatetime(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2026, 3, 7, 9, 5, 0)


chat_template_utils.datetime = FixedDatetime

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather at a place, \"now\" & <here>.",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "Straße or city"},
                "days": {"type": "integer", "enum": [1, 2, 3], "default": 1},
                "unit": {"type": ["string", "null"]},
            },
            "required": ["place"],
        },
    },
}
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {"type": "object", "properties": {"b": {"type": "number"}, "a": {"type": "number"}}, "required": []},
    },
}


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def system(text):
    return {"role": "system", "content": text}


def call(name, arguments, id="call00001"):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def result(text, name="get_weather", id="call00001"):
    return {"role": "tool", "name": name, "tool_call_id": id, "content": text}


TURNS = [user("Hi! <b>&amp; \u00e9\U0001f642"), assistant("  Hello.\n"), user("Tell me\nmore  ")]
TOOL_TURNS = [
    user("Weather in Bern?"),
    assistant("", tool_calls=[call("get_weather", {"place": "Bern", "days": 2})]),
    result('{"sky": "blue", "t": 21.5}'),
]
CHATS = {
    "user": dict(messages=[user("Hello")]),
    "user_prompted": dict(messages=[user("Hello")], add_generation_prompt=True),
    "system": dict(messages=[system("Be  brief. "), user("Hello")], add_generation_prompt=True),
    "turns": dict(messages=TURNS, add_generation_prompt=True),
    "turns_unprompted": dict(messages=[system("S"), *TURNS]),
    "answered": dict(messages=[user("1+1?"), assistant("2")]),
    "empty": dict(messages=[], add_generation_prompt=True),
    "two_users": dict(messages=[user("a"), user("b")], add_generation_prompt=True),
    "late_system": dict(messages=[user("a"), assistant("b"), system("c"), user("d")], add_generation_prompt=True),
    "odd_role": dict(messages=[{"role": "oracle", "content": "?"}]),
    "parts": dict(messages=[user([{"type": "text", "text": "one"}, {"type": "text", "text": " two"}])], ),
    "tools": dict(messages=[system("S"), user("Weather in Bern?")], tools=[WEATHER, ADD], add_generation_prompt=True),
    "tools_no_system": dict(messages=[user("Weather in Bern?")], tools=[WEATHER], add_generation_prompt=True),
    "tool_turns": dict(messages=TOOL_TURNS, tools=[WEATHER], add_generation_prompt=True),
    "tool_turns_answered": dict(
        messages=[*TOOL_TURNS, assistant("Blue sky."), user("And 1.5+2?")], tools=[WEATHER, ADD], add_generation_prompt=True
    ),
    "two_calls": dict(
        messages=[
            user("Both"),
            assistant("Sure.", tool_calls=[call("get_weather", {"place": "Bern"}, "abcdefgh1"), call("add", {"a": 1, "b": 2.5}, "abcdefgh2")]),
            result("x", "get_weather", "abcdefgh1"),
            result("3.5", "add", "abcdefgh2"),
        ],
        tools=[WEATHER, ADD],
        add_generation_prompt=True,
    ),
    "thought": dict(
        messages=[user("Q"), assistant("<think>\nhm\n</think>\n\nA"), user("Q2"), assistant("B", reasoning_content="well\n")],
    ),
    "thought_prompted": dict(
        messages=[user("Q"), assistant("<think>\nhm\n</think>\n\nA"), user("Q2")], add_generation_prompt=True
    ),
    "no_thinking": dict(messages=[user("Q")], add_generation_prompt=True, variables={"enable_thinking": False}),
    "thinking": dict(messages=[user("Q")], add_generation_prompt=True, variables={"enable_thinking": True, "thinking": True}),
    "continue": dict(messages=[user("Count"), assistant("one, two,")], continue_final_message=True),
    "continue_spaced": dict(messages=[user("Count"), assistant(" one, two, ")], continue_final_message=True),
    "documents": dict(messages=[user("Q")], documents=[{"title": "T", "text": "body"}], add_generation_prompt=True),
}


def prepared(template, messages):
    """Messages as the server hands them to a template, by the kind of content it reads."""
    messages = copy.deepcopy(messages)
    for message in messages:
        content = message["content"]
        if template == "parts_only" and isinstance(content, str):
            message["content"] = [{"type": "text", "text": content}]
        elif not template.startswith("parts") and isinstance(content, list):
            message["content"] = "\n".join(part["text"] for part in content)
    return messages


SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}

cases = []
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.jinja")):
    template = path.read_text(encoding="utf-8")
    for name, chat in CHATS.items():
        case = {"template": path.stem, "chat": name, **copy.deepcopy(chat)}
        try:
            rendered, _ = chat_template_utils.render_jinja_template(
                conversations=[prepared(path.stem, case["messages"])],
                tools=case.get("tools"),
                documents=case.get("documents"),
                chat_template=template,
                continue_final_message=case.get("continue_final_message", False),
                add_generation_prompt=case.get("add_generation_prompt", False),
                **SPECIAL_TOKENS,
                **case.get("variables", {}),
            )
            case["expected"] = rendered[0]
        except Exception as error:
            case["error"] = str(error)
        cases.append(case)
json.dump({"special_tokens": SPECIAL_TOKENS, "cases": cases}, open(sys.argv[2], "w"), ensure_ascii=False, indent=0)
rendered = sum("expected" in case for case in cases)
print(f"{len(cases)} cases, {rendered} rendered")
