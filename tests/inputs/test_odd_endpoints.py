"""Every answer of an odd endpoint ends as the user of an LLM would want it."""

import time

import pytest
from input_rows import RAW_CONTROL, Row, read_rows
from odd_endpoint import OddServer, odd_server
from test_inputs import LONGEST_S, parameters

from paft_ray.config import OpenAILLM
from paft_ray.config.errors import LLMError
from paft_ray.prompts.generate.llm import open_llm
from paft_ray.prompts.generate.requests import Request
from paft_ray.storage.paths import Storage

KEY_ENV, KEY = "PAFT_ODD_KEY", "sk-planted-0123456789"
LONGEST_ERROR = 600
ROWS = [row for row in read_rows() if row.section == "endpoints"]


def ask(row: Row, server: OddServer) -> tuple[str | None, str]:
    """The text that the endpoint wrote for one request, and what is said where there is none."""
    url = "http://127.0.0.1:1/v1" if row.answer.get("nobody") else server.url
    llm = {
        "type": "openai", "base_url": url, "model": "m", "api_key_env": KEY_ENV,
        "max_attempts": 2, "timeout_s": 10, "max_tokens": 64, **row.llm,
    }  # fmt: skip
    request = Request(
        id="0" * 16, llm=0, strategy="zero_shot", messages=(("user", "Write a prompt."),),
        temperature=0.7, top_p=1.0, seed=1, max_tokens=64,
    )  # fmt: skip
    try:
        client = open_llm(OpenAILLM.model_validate(llm), Storage.open("nowhere"))
        [[completion]] = client.complete([request])
    except LLMError as error:
        return None, str(error)
    return completion.text, completion.error or ""


@pytest.mark.timeout(LONGEST_S, func_only=True)
@pytest.mark.parametrize("row", parameters(ROWS))
def test_answer_of_an_endpoint_ends_as_its_user_wants(
    row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_ENV, KEY)
    started = time.monotonic()
    with odd_server(row.answer) as server:
        text, error = ask(row, server)
    faults = []
    if row.want == "accepted" and text != row.holds[0]:
        faults.append(f"the text is {text!r}")
    if row.want == "failed" and text is not None:
        faults.append(f"the text {text[:60]!r} was taken")
    faults += [f"does not say {word!r}" for word in row.words if word not in error]
    faults += [f"shows {word!r}" for word in (KEY, *row.never) if word in error]
    if RAW_CONTROL.search(error) or "\n" in error or len(error) > LONGEST_ERROR:
        faults.append("no plain line")
    if server.elsewhere:
        faults.append(f"followed to {server.elsewhere}")
    if row.calls not in (None, len(server.requests)):
        faults.append(f"{len(server.requests)} requests, not {row.calls}")
    assert not faults, f"{faults}\n{error[:500]}\n{time.monotonic() - started:.1f} s"
