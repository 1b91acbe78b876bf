"""mistral.rs behind HTTP: mistralrs_server.py PORT MODEL_FOLDER SEQUENCES TEMPLATE_FILE.

Only its chat requests stream, so prompts go through a chat template that is nothing but the message.
"""

import sys
import threading

from connection import Request, listen
from mistralrs import Architecture, ChatCompletionRequest, Runner, Which

PROMPT_ONLY = "{{ messages[0]['content'] }}"


def main() -> None:
    port, model, sequences, template = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
    with open(template, "w", encoding="utf-8") as file:
        file.write(PROMPT_ONLY)
    runner = Runner(
        which=Which.Plain(model_id=model, arch=Architecture.Llama),
        max_seqs=sequences,
        prefix_cache_n=0,
        token_source="none",
        jinja_explicit=template,
    )

    # Two requests handed over at once end with "Already borrowed".
    handing_over = threading.Lock()

    def answer(request: Request) -> None:
        try:
            question = ChatCompletionRequest(
                model="default",
                messages=[{"role": "user", "content": request.prompt}],
                max_tokens=request.max_tokens,
                temperature=0.0,
                ignore_eos=request.ignore_eos,
                stream=True,
            )
            with handing_over:
                chunks = runner.send_chat_completion_request(question)
            for chunk in chunks:
                text = chunk.choices[0].delta.content or ""
                request.send(text, 1 if text else 0)
                usage = getattr(chunk, "usage", None)
                if usage is not None:
                    request.prompt_tokens, request.completion_tokens = usage.prompt_tokens, usage.completion_tokens
            request.finish()
        except Exception as error:  # the engine's word on it is the result
            request.fail(f"{type(error).__name__}: {error}")

    def submit(request: Request) -> None:
        threading.Thread(target=answer, args=(request,), daemon=True).start()

    listen(port, submit)
    threading.Event().wait()


main()
