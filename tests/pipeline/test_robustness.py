"""`paft robustness MODEL DATA`: a first look without a configuration."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from openai_server import Body, Reply, Server, TinyServer, listing, reply, said

from paft_ray.cli import call
from paft_ray.config.errors import ConfigError
from paft_ray.config.loading import load_config
from paft_ray.pipeline.behind_url import BehindUrl
from paft_ray.pipeline.listing import list_runs
from paft_ray.pipeline.question import Question, ask
from paft_ray.prompts.generate.endpoint import EndpointLLM
from paft_ray.storage.paths import Storage
from paft_ray.tasks.guessing import Said

CHECKS = pytest.mark.usefixtures("warm_checks")


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and no MLflow of the environment's."""
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(EndpointLLM, "_pause_s", 0.01)
    return folder


@pytest.fixture
def asked(tiny_model: Path, review_file: Path) -> Question:
    return Question(str(tiny_model), str(review_file))


def rows(path: Path, **columns: list[Any]) -> str:
    lines = [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return str(path)


def test_configuration_trains_nothing_and_asks_with_the_stock(asked: Question) -> None:
    config = ask(asked).config
    assert config.variants == ()
    assert config.prompts.files == ("stock:choices",)
    assert config.evaluation.estimate is not None
    assert config.tracking.type == "none"
    assert config.task.overlong == "trim"
    assert config.task.max_length <= 512  # for which the model was made
    assert config.name.endswith("-reviews")


def test_overrides_come_before_guesses(asked: Question, tmp_path: Path) -> None:
    files = str(tmp_path / "mine.txt")
    more = (f"prompts.files=[{files}]", "evaluation.examples=7", "evaluation.estimate=null")
    found = ask(Question(asked.model, asked.data, overrides=(*more, "name=mine", "seed=3")))
    assert found.config.prompts.files == (files,)
    assert (found.config.evaluation.examples, found.config.evaluation.estimate) == (7, None)
    assert (found.config.name, found.config.seed) == ("mine", 3)
    assert not any("stock" in note for note in found.notes)


def test_mlflow_that_the_environment_names_is_used(
    asked: Question, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///some.db")
    assert ask(asked).config.tracking.type == "mlflow"


@pytest.mark.parametrize(
    ("data", "name"),
    [("sst2", "sst2"), ("sst2=local", "sst2"), ("gsm8k", "gsm8k"), ("hellaswag=x/y", "hellaswag")],
)
def test_built_in_tasks_are_named_alone_or_with_their_place(
    data: str, name: str, asked: Question
) -> None:
    """Each is asked with the wordings that come for it."""
    config = ask(Question(asked.model, data)).config
    assert config.task.type == "builtin"
    assert config.prompts.files == (f"stock:{name}",)
    assert config.task.path == (data.partition("=")[2] or None)
    with pytest.raises(ConfigError, match=r"sst2 is a built-in task.*leave out --answer"):
        ask(Question(asked.model, "sst2=local", Said(answer="label")))


@pytest.mark.parametrize(
    ("question", "answers", "said", "kind"),
    [
        ("question", ["yes", "no"], {}, "yesno"),
        ("question", ["42", "7"], {"choices": ("42", "7"), "description": "Say a number."}, "task"),
        ("question", ["a", "b"], {}, "choices"),
        ("text", ["a", "b"], {"description": "Say a or b."}, "task"),
    ],
)
def test_wordings_suit_the_answers(
    question: str, answers: list[str], said: dict[str, Any], kind: str, asked: Question,
    tmp_path: Path,
) -> None:  # fmt: skip
    texts = [f"is it {n}?" for n in range(40)]
    data = rows(tmp_path / "rows.jsonl", **{question: texts}, answer=answers * 20)
    found = ask(Question(asked.model, data, Said(**said)))
    assert found.config.prompts.files == (f"stock:{kind}",)


@pytest.mark.parametrize("answers", [["yes", "no"], ["0", "1"], [f"word {n}" for n in range(40)]])
def test_job_that_no_column_names_is_asked_for(
    answers: list[str], asked: Question, tmp_path: Path
) -> None:
    texts = [f"the text {n}" for n in range(40)]
    column = (answers * 20)[:40]
    data = rows(tmp_path / "rows.jsonl", text=texts, answer=column)
    with pytest.raises(ConfigError, match="--description"):
        ask(Question(asked.model, data))


def test_adapter_is_measured_beside_its_base_model(
    asked: Question, tiny_model: Path, tmp_path: Path
) -> None:
    from safetensors.numpy import save_file

    folder = tmp_path / "tuned/adapter"
    folder.mkdir(parents=True)
    save_file({}, folder / "adapter_model.safetensors")
    settings = folder / "adapter_config.json"
    settings.write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(tiny_model)})
    )
    found = ask(Question(str(folder), asked.data))
    config = found.config
    assert config.model.path == str(tiny_model)
    assert [subject.type for subject in config.evaluation.subjects] == ["adapter"]
    assert any("was trained on are not left out" in note for note in found.notes)
    assert config.name == "robustness-tuned-reviews"
    settings.write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(ConfigError, match=r"give model.path=MODEL"):
        ask(Question(str(folder), asked.data))
    again = ask(Question(str(folder), asked.data, overrides=(f"model.path={tiny_model}",)))
    assert again.config.model.path == str(tiny_model)


def test_llm_writes_more_prompts(asked: Question, tmp_path: Path) -> None:
    path = tmp_path / "llm.yaml"
    path.write_text("{type: openai, base_url: 'http://localhost:1/v1', model: big}")
    more = ("prompts.generation.per_llm=50",)
    prompts = ask(Question(asked.model, asked.data, llm=str(path), overrides=more)).config.prompts
    assert prompts.files == ("stock:choices",)
    assert prompts.generation is not None
    assert (prompts.generation.per_llm, prompts.generation.llms[0].label) == (50, "big")
    path.write_text("{llms: [{type: fake}], form: instruction}")
    generation = ask(Question(asked.model, asked.data, llm=str(path))).config.prompts.generation
    assert generation is not None
    assert generation.form == "instruction"


def only(*paths: str) -> Callable[[str, Body, int], Reply]:
    """A server that takes requests at some paths, and gives no log-probabilities."""

    def answer(path: str, body: Body, attempt: int) -> Reply:
        if path not in paths:
            return reply(404, {"error": {"message": "no such path"}})
        written = {"text": "two", "finish_reason": "stop"}
        return (
            said("two")
            if path.endswith("chat/completions")
            else reply(
                200, {"choices": [written], "usage": {"prompt_tokens": 4, "completion_tokens": 1}}
            )
        )

    return answer


CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


@pytest.mark.parametrize(
    ("paths", "api", "found"),
    [
        ([CHAT], None, "chat"), ([CHAT, COMPLETIONS], None, "chat"),
        ([COMPLETIONS], None, "completions"), ([CHAT, COMPLETIONS], "completions", "completions"),
    ],
)  # fmt: skip
def test_model_behind_a_url_is_asked_in_a_way_that_its_server_takes(
    paths: list[str], api: Any, found: str, asked: Question
) -> None:
    with Server(only(*paths)).running() as server:
        answer = ask(Question(server.url, asked.data, behind=BehindUrl(api=api)))
    [subject] = answer.tree["evaluation"]["subjects"]
    assert (subject["model"], subject["api"], subject["choices_by"]) == ("m", found, "text")
    assert not answer.config.has_base and "model" not in answer.tree
    assert answer.config.name == "robustness-m-reviews"
    assert f"model: m, the only one at {server.url}" in answer.notes
    assert f"api: {found}, without" in answer.notes[1]
    assert all(body["model"] == "m" for _, body in server.calls)


def refused(path: str, body: Body, attempt: int) -> Reply:
    return reply(401, {"error": {"message": "no key"}})


ONE = listing("m")


@pytest.mark.parametrize(
    ("answer", "models", "behind", "said"),
    [
        (refused, refused("", {}, 0), {}, r"HTTP 401: no key.*--api-key-env"),
        (refused, ONE, {}, r"m at http.* HTTP 401: no key.*--api-key-env"),
        (refused, listing("a", "b"), {}, r"has a, b: name one by --endpoint-model"),
        (refused, listing("a", "b", "a"), {}, r"has a, b: name one by --endpoint-model"),
        (refused, listing(), {}, r"lists no model: name one by --endpoint-model"),
        (refused, reply(404, b""), {}, r"HTTP 404.*--endpoint-model"),
        (refused, reply(200, b"<html>"), {}, r"not JSON; see to the URL"),
        (only(COMPLETIONS), ONE, {"api": "chat"}, r"m at http.* HTTP 404"),
        (only(CHAT), ONE, {"api_key_env": "PAFT_NO_SUCH_KEY"}, r"PAFT_NO_SUCH_KEY is not set"),
        (
            only(CHAT),
            ONE,
            {"api_key_env": "sk-secret"},
            r"^(?!.*secret)--api-key-env: takes the name",
        ),
    ],
)
def test_server_that_cannot_be_used_is_refused_with_the_remedy(
    answer: Callable[[str, Body, int], Reply], models: Reply, behind: dict[str, Any], said: str,
    asked: Question,
) -> None:  # fmt: skip
    with (
        Server(answer, models).running() as server,
        pytest.raises(ConfigError, match=said) as error,
    ):
        ask(Question(server.url, asked.data, behind=BehindUrl(**behind)))
    assert "\n" not in str(error.value)


def once_busy(status: int, at: str) -> Callable[[str, Body, int], Reply]:
    """A server that takes chats and texts without log-probabilities, but is busy at one path."""
    takes = only(CHAT, COMPLETIONS)

    def answer(path: str, body: Body, attempt: int) -> Reply:
        busy = reply(status, {"error": {"message": "not now"}})
        return busy if path == at else takes(path, body, attempt)

    return answer


@pytest.mark.parametrize("at", [COMPLETIONS, CHAT])
@pytest.mark.parametrize(
    ("status", "said"),
    [
        (500, "HTTP 500: not now; .*when the server is ready"),
        (503, "HTTP 503: not now; .*when the server is ready"),
        (429, "HTTP 429: not now; .*when the server is ready"),
        (401, "HTTP 401: not now: check the key"),
        (403, "HTTP 403: not now: check what the key may do"),
    ],
)
def test_server_that_is_not_ready_does_not_decide_what_is_measured(
    status: int, said: str, at: str, asked: Question
) -> None:
    with (
        Server(once_busy(status, at), ONE).running() as server,
        pytest.raises(ConfigError, match=said) as error,
    ):
        ask(Question(server.url, asked.data))
    assert "\n" not in str(error.value)


def test_server_that_does_not_answer_in_time_does_not_decide_what_is_measured(
    asked: Question, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paft_ray.pipeline.behind_url._TIMEOUT_S", 0.2)
    release = threading.Event()

    def answer(path: str, body: Body, attempt: int) -> Reply:
        if path == COMPLETIONS:
            release.wait(30)
        return only(CHAT)(path, body, attempt)

    with Server(answer, ONE).running() as server:
        # nobody reads the late answer
        monkeypatch.setattr(server._server, "handle_error", lambda *_: None)
        try:
            with pytest.raises(ConfigError, match=r"no answer within .* when the server is ready"):
                ask(Question(server.url, asked.data))
        finally:
            release.set()


@pytest.mark.parametrize("status", [400, 404, 405, 422, 501])
def test_way_that_a_server_clearly_does_not_take_is_followed_by_the_next_one(
    status: int, asked: Question
) -> None:
    with Server(once_busy(status, COMPLETIONS), ONE).running() as server:
        answer = ask(Question(server.url, asked.data))
    assert answer.tree["evaluation"]["subjects"][0]["api"] == "chat"


def test_model_that_a_server_lists_twice_behind_a_url_in_capitals_is_one(asked: Question) -> None:
    with Server(only(CHAT), listing("m", "m")).running() as server:
        answer = ask(Question(server.url.replace("http", "HTTP", 1), asked.data))
    [subject] = answer.tree["evaluation"]["subjects"]
    assert (subject["model"], subject["base_url"]) == ("m", server.url)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster", "warm_checks")
def test_model_behind_a_url_is_measured_alone(
    asked: Question, in_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluation.examples=10", "prompts.split.test=4", "storage=first"]
    with TinyServer(Path(asked.model)).running() as server:
        assert call(["robustness", server.url, asked.data, *words]) == 0
        sent = len(server.calls)
        assert call(["plan", "robustness.yaml", "--json"]) == 0
        out, err = capfd.readouterr()
        shown, _, planned = out.strip().rpartition("\n")
        assert "api: completions, which gives log-probabilities" in shown + err
        assert "prompts (4 x 10 examples)" in shown and "base model" not in shown
        assert "All models are behind endpoints" in shown
        plan = json.loads(planned)
        assert plan["evaluation"]["models"] == 1
        assert plan["endpoints"][0]["to_send"] == plan["endpoints"][0]["requests"] - (sent - 1)
        assert not {"model", "sizes", "arithmetic"} & {k for k, v in plan.items() if v}
        assert call(["evaluate", "robustness.yaml"]) == 0
        assert len(server.calls) == sent  # nothing is paid twice
        assert call(["export", "robustness.yaml", "--lm-eval"]) == 2
    assert "all models here are behind endpoints" in capfd.readouterr().err
    [run] = list_runs(Storage.open("first")).data["runs"]
    assert (run["state"], run["model"], run["main"]) == ("complete", "m", "endpoint")
    assert "model" not in yaml.safe_load(Path("robustness.yaml").read_text())


@CHECKS
@pytest.mark.parametrize(
    ("model", "data", "more", "said"),
    [
        ("http://localhost:1/v1", "sst2", [], "http://localhost:1/v1: APIConnectionError; see to"),
        ("http://u:secret@localhost:1/v1", "sst2", [], "what looks like a secret and is not shown"),
        ("MODEL", "DATA", ["--api", "chat"], "--api: "),
        ("/nowhere", "DATA", [], "model.path: /nowhere"),
        ("MODEL", "/nowhere.jsonl", [], "/nowhere.jsonl: no such file"),
        ("MODEL", "DATA", ["--answer", "mood"], "no column 'mood'; its columns are review, label"),
        ("MODEL", "DATA", ["evaluation.exmaples=3"], "did you mean 'examples'"),
        ("MODEL", "DATA", ["--llm", "none.yaml"], "none.yaml: no such file"),
        ("MODEL", "DATA", ["--config", "no/such/folder.yaml"], "no/such/folder.yaml cannot be"),
    ],
)
def test_what_cannot_be_used_exits_2_and_writes_nothing(
    model: str, data: str, more: list[str], said: str, asked: Question, in_folder: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    known = {"MODEL": asked.model, "DATA": asked.data}
    assert call(["robustness", known.get(model, model), known.get(data, data), *more]) == 2
    err = capfd.readouterr().err
    assert said in err
    assert len(err.strip().splitlines()) <= 2
    assert list(in_folder.iterdir()) == []


def test_printed_configuration_is_the_one_that_is_used(
    asked: Question, in_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call(["robustness", asked.model, asked.data, "seed=4", "--print-config"]) == 0
    shown = yaml.safe_load(capfd.readouterr().out)
    assert "train" not in shown
    found = ask(Question(asked.model, asked.data, overrides=("seed=4",)))
    assert load_config(shown) == found.config
    assert list(in_folder.iterdir()) == []


@CHECKS
def test_another_configuration_is_not_overwritten_unless_told_to(
    asked: Question, in_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = in_folder / "robustness.yaml"
    path.write_text("name: mine\n")
    assert call(["robustness", asked.model, asked.data]) == 2
    assert "robustness.yaml holds another configuration" in capfd.readouterr().err
    assert path.read_text() == "name: mine\n"
    found = ask(asked)
    found.write(str(path))
    found.refuse_other(str(path))
    assert load_config(path) == found.config


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster", "warm_checks")
def test_first_look_can_be_repeated_to_the_digit(
    asked: Question, in_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluation.examples=10", "prompts.split.test=4", "storage=first"]
    command = ["robustness", asked.model, asked.data, *words]
    assert call(command) == 0
    said = capfd.readouterr().out
    worst, best = (f"probably the {which} prompt:" for which in ("worst", "best"))
    for part in ("prompts (4 x 10 examples)", worst, best, "report.html"):
        assert part in said
    assert said.splitlines()[-1].endswith(
        "`paft evaluate robustness.yaml` repeats this to the digit"
    )
    assert "training" not in said.partition("prompts (4")[2]
    assert call([*command, "--json"]) == 0
    out, err = capfd.readouterr()
    assert "nothing to do" in err
    assert json.loads(out)["config"] == "robustness.yaml"
    assert call(["evaluate", "robustness.yaml", "storage=second"]) == 0
    [one, other] = [
        pq.read_table(next(Path(storage).glob("runs/*/scores.parquet")))
        for storage in ("first", "second")
    ]
    assert one.equals(other)
    changed = [*command, "evaluation.examples=8"]
    assert call(changed) == 2
    assert "holds another configuration" in capfd.readouterr().err
    assert call([*changed, "--overwrite"]) == 0
    assert "prompts (4 x 8 examples)" in capfd.readouterr().out
    assert load_config("robustness.yaml").evaluation.examples == 8
