"""Every answer of an odd endpoint ends as the user of an LLM would want it."""

from pathlib import Path

import pytest
from input_rows import RAW_CONTROL, Row, read_rows
from odd_endpoint import OddServer, odd_server
from test_inputs import LONGEST_S

from factories import reviews_task
from paft_ray.config import CustomTaskConfig, GenerationConfig
from paft_ray.config.errors import LLMError
from paft_ray.prompts.generate.llm import open_llm
from paft_ray.prompts.generate.requests import RequestBook
from paft_ray.prompts.generate.results import Generated, parse_unit
from paft_ray.prompts.generate.units import answers_of
from paft_ray.prompts.pool import Rejected
from paft_ray.storage.paths import Storage
from paft_ray.tasks import Task, load_task

KEY_ENV, KEY = "PAFT_ODD_KEY", "sk-planted-0123456789"
LONGEST_ERROR = 600
ROWS = [row for row in read_rows() if row.section == "endpoints"]


def ask(row: Row, server: OddServer, task: Task, storage: Storage) -> tuple[str | None, str]:
    """The candidate of one request, and what is said where there is none."""
    url = "http://127.0.0.1:1/v1" if row.answer.get("nobody") else server.url
    llm = {
        "type": "openai", "base_url": url, "model": "m", "api_key_env": KEY_ENV,
        "max_attempts": 2, "timeout_s": 10, "max_tokens": 64, **row.llm,
    }  # fmt: skip
    generation = {"llms": [llm], "per_llm": 1, "strategies": ["zero_shot"]}
    book = RequestBook(task, GenerationConfig.model_validate(generation), 0, ("odd",))
    [unit] = book.units(0, 1)
    try:
        for group in open_llm(book.config.llms[0], storage).complete(book.requests(unit)):
            answers_of(book, unit, storage).add(group)
    except LLMError as error:
        return None, str(error)
    [found] = parse_unit(Generated(book, storage, {}), unit)
    if isinstance(found, Rejected):
        return None, f"{found.reason} {found.detail}"
    return found.text, ""


@pytest.mark.timeout(LONGEST_S, func_only=True)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_answer_of_an_endpoint_ends_as_its_user_wants(
    row: Row, review_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_ENV, KEY)
    task = load_task(CustomTaskConfig.model_validate(reviews_task(review_file)), 0)
    with odd_server(row.answer) as server:
        text, error = ask(row, server, task, Storage.open(str(tmp_path)))
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
    assert not faults, f"{faults}\n{error[:500]}"
