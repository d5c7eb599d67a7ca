"""`paft init DATA`: a first configuration that `paft plan` takes, and wordings to edit."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from paft_ray.cli import call
from paft_ray.config.errors import ConfigError, DataError
from paft_ray.config.loading import load_config
from paft_ray.pipeline import first_config as module
from paft_ray.pipeline.first_config import DEMO_MODEL, Start, first_config
from paft_ray.pipeline.first_look import Unknown
from paft_ray.pipeline.first_text import write_new
from paft_ray.pipeline.perform import open_context
from paft_ray.prompts.build import pool_without_work
from paft_ray.prompts.files import read_prompt_files
from paft_ray.prompts.stock import stock_templates
from paft_ray.prompts.template import clean
from paft_ray.tasks.guessing import Said

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and no model of the demo's."""
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(module, "DEMO_MODEL", "pkg:no_such_package/model.gguf")
    return folder


def rows(name: str, make: Callable[[int], dict[str, Any]], count: int = 60) -> str:
    Path(name).write_text("\n".join(json.dumps(make(number)) for number in range(count)))
    return name


def ticket(number: int) -> dict[str, Any]:
    team = ("billing", "technical problem")[number % 2]
    return {"id": number, "text": f"my order {number} never came", "team": team, "mood": team}


MANY = "text,label\n" + "".join(f"so {n},{'xy'[n % 2]}\n" for n in range(40))
CAME = "my order {} came"
KINDS: dict[str, tuple[Callable[[int], dict[str, Any]], str]] = {
    "labels": (lambda n: {"text": CAME.format(n), "label": ("good", "bad")[n % 2]}, "choices"),
    "yesno": (lambda n: {"question": f"is it {n}?", "answer": ("yes", "no")[n % 2]}, "yesno"),
    "numbers": (lambda n: {"text": CAME.format(n), "label": n % 2}, "task"),
    "text": (lambda n: {"question": f"what is {n}?", "answer": f"word {n}"}, "text"),
    "letters": (
        lambda n: {"question": f"is {n}?", "choices": [f"a {n}", "b"], "answer": "AB"[n % 2]},
        "letters",
    ),
    "nothing": (lambda n: {"a": f"x{n}", "b": f"y{n}"}, "task"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_can_be_planned_with_a_pool_of_its_wordings(
    kind: str, tiny_model: Path
) -> None:
    make, stock = KINDS[kind]
    data = rows("mine.jsonl", make)
    found = first_config(Start(data, model=str(tiny_model)))
    found.write()
    context = open_context(load_config("mine.yaml"), planning=True)
    written = read_prompt_files("mine-wordings.txt")
    assert [clean(text, escapes=True) for text in written] == list(found.wordings)
    assert found.wordings == tuple(stock_templates(f"stock:{stock}", context.task))
    pool = pool_without_work(context)
    assert pool is not None
    assert (len(pool.validation), len(pool.test)) == (4, 8)
    assert len(pool.train) >= 20
    assert context.config.task.max_length <= 512  # for which the model was made
    assert [variant.label for variant in context.config.variants] == ["single_prompt", "paft"]


@pytest.mark.parametrize(("count", "batch_size"), [(8, 4), (15, 7), (16, 8), (60, 8)])
def test_batch_is_no_larger_than_a_small_table_allows(
    count: int, batch_size: int, tiny_model: Path
) -> None:
    data = rows("mine.jsonl", ticket, count)
    found = first_config(Start(data, Said(answer="team"), model=str(tiny_model)))
    assert found.tree["train"]["batch_size"] == batch_size


@pytest.mark.usefixtures("warm_checks")
def test_plan_takes_the_file_and_a_second_init_overwrites_nothing(
    tiny_model: Path, in_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = rows("mine.jsonl", ticket)
    command = ["init", data, "--answer", "team", "--model", str(tiny_model)]
    assert call(command) == 0
    shown = capfd.readouterr().out
    for said in (
        "mine.jsonl: 60 rows, 4 columns",
        "team  labels  billing 30 (50%), technical problem 30 (50%)",
        "billing is the answer of 50% of the rows",
        "42 to train on, 6 to choose by, 12 to test with: few",
        "Say which team the text has: billing or technical problem. (--description)",
        "wrote mine-wordings.txt, 36 wordings to edit",
    ):
        assert said in shown
    assert "left for you" not in shown
    before = {path.name: path.read_bytes() for path in in_folder.iterdir()}
    assert call(["plan", "mine.yaml", "--json"]) == 0
    plan = json.loads(capfd.readouterr().out)
    assert plan["evaluation"] == {"models": 3, "prompts": 8, "examples": 12, "answers": 288}
    assert call(command) == 2
    assert "mine.yaml is there already and is never overwritten" in capfd.readouterr().err
    Path("mine.yaml").unlink()
    assert call(command) == 2
    assert "mine-wordings.txt is there already" in capfd.readouterr().err
    assert call([*command, "--config", "other.yaml"]) == 0
    now = {path.name: path.read_bytes() for path in in_folder.iterdir()}
    assert now.keys() == before.keys() - {"mine.yaml"} | {"other.yaml", "other-wordings.txt"}
    assert now["mine-wordings.txt"] == before["mine-wordings.txt"]
    assert (load_config("other.yaml").name, load_config("other.yaml").task.name) == (
        "other",
        "mine",
    )


def test_without_a_model_the_last_line_says_what_is_left_and_the_rest_is_complete(
    tiny_model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call(["init", rows("mine.jsonl", ticket), "--answer", "team"]) == 0
    out = capfd.readouterr().out
    assert out.splitlines()[-1].startswith("model.path is left for you: ")
    with pytest.raises(ConfigError, match=r"model\.path: None"):
        load_config("mine.yaml")
    assert load_config("mine.yaml", [f"model.path={tiny_model}"]).name == "mine"


def test_model_of_the_demo_is_taken_where_it_is_installed(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo = load_config(ROOT / "jobs/configs/demo.yaml")
    assert demo.model.path == DEMO_MODEL
    gguf = Path("demo.gguf")
    gguf.touch()
    monkeypatch.setattr(module, "DEMO_MODEL", str(gguf))
    assert module._known_model(lambda unknown: unknown.default) == str(gguf)


def test_hints_in_the_file_are_valid_once_their_mark_is_removed(tiny_model: Path) -> None:
    data = rows("mine.jsonl", ticket)
    found = first_config(Start(data, Said(answer="team"), str(tiny_model)))
    found.write()
    text = Path("mine.yaml").read_text()
    hinted = re.sub(r"^  # ", "  ", text, flags=re.MULTILINE)
    tree = yaml.safe_load(hinted)
    assert {"generation", "chat_template", "peft", "grade", "group", "workers"} <= {
        key for section in tree.values() if isinstance(section, dict) for key in section
    }
    tree["task"].pop("grade")  # of free texts alone
    tree["task"]["group"] = "id"
    assert load_config(tree) != load_config("mine.yaml")


def test_commands_in_the_head_are_of_the_real_grammar(tiny_model: Path) -> None:
    from paft_ray.cli.grammar import parse

    first_config(Start(rows("mine.jsonl", ticket), Said(answer="team"), str(tiny_model))).write()
    head = Path("mine.yaml").read_text().partition("\n\n")[0]
    commands = re.findall(r"paft ((?:plan|run) [^(\n]+)", head)
    assert len(commands) == 3
    for command in commands:
        assert parse(command.split()).config == "mine.yaml"


def test_person_is_asked_only_what_the_data_do_not_show(tiny_model: Path) -> None:
    asked: list[str] = []

    def ask(unknown: Unknown) -> str:
        asked.append(unknown.option)
        answers = {"--answer": "team", "--field": "text", "--choices": "0=bad,1=good"}
        if unknown.option == "--description":
            return "Say where the ticket goes."
        return answers.get(unknown.option, str(tiny_model))

    clear = rows("clear.jsonl", lambda n: {"text": f"my order {n} came", "label": "ab"[n % 2]})
    found = first_config(Start(clear), ask)
    assert asked == ["--description", "--model"]
    assert found.defaults == ()
    assert found.tree["task"]["description"] == "Say where the ticket goes."
    assert any("Say where the ticket goes." in text for text in found.wordings)
    asked.clear()
    more = rows("unclear.jsonl", lambda n: {**ticket(n), "subject": f"about order {n}"})
    found = first_config(Start(more, model=str(tiny_model)), ask)
    assert asked == ["--answer", "--field", "--description"]
    assert found.tree["task"]["fields"] == {"text": "text"}
    asked.clear()
    numbers = rows("numbers.jsonl", lambda n: {"text": f"my order {n} came", "label": n % 2})
    found = first_config(Start(numbers, model=str(tiny_model)), ask)
    assert asked == ["--choices", "--description"]
    assert found.tree["task"]["choices"] == ["bad", "good"]
    assert found.tree["task"]["labels"] == {"0": "bad", "1": "good"}


def test_defaults_are_listed_with_the_option_that_changes_them() -> None:
    more = rows("unclear.jsonl", lambda n: {**ticket(n), "subject": f"about order {n}"})
    found = first_config(Start(more))
    said = "\n".join(found.defaults)
    assert "the column with the right answer: mood (--answer)" in said
    assert "the columns that the model sees: text, subject (--field)" in said
    assert "--model" not in said


def test_terminal_asks_again_until_the_answer_can_be_used(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from paft_ray.cli.start import _ask
    from paft_ray.cli.streams import open_streams

    monkeypatch.setattr("sys.stdin", io.StringIO("mood\n team \n\n"))
    unknown = Unknown("--answer", "the column", "label", ("team", "label"))
    with open_streams(False) as streams:
        assert _ask(unknown, streams) == "team"
        assert _ask(unknown, streams) == "label"
    assert capfd.readouterr().out == (
        "the column [label]: one of team, label\nthe column [label]: the column [label]: "
    )


def test_overrides_come_before_what_is_taken(tiny_model: Path) -> None:
    data = rows("mine.jsonl", ticket)
    words = ("train.epochs=2", "evaluation.examples=3", "name=other", "seed=4")
    first_config(Start(data, Said(answer="team"), str(tiny_model), words)).write()
    config = load_config("mine.yaml")
    assert (config.train.epochs, config.train.steps) == (2, None)
    assert (config.evaluation.examples, config.name, config.seed) == (3, "other", 4)


def test_built_in_task_needs_no_look(tiny_model: Path) -> None:
    data = rows("sst.jsonl", lambda n: {"sentence": f"so {n}", "label": n % 2})
    first_config(Start(f"sst2={data}", model=str(tiny_model))).write()
    config = load_config("sst2.yaml")
    assert config.task.type == "builtin"
    assert "{sentence}" in read_prompt_files("sst2-wordings.txt")[0]


@pytest.mark.parametrize(
    ("text", "more", "said"),
    [
        ("", "", "there are no rows"),
        ("text,label\n", "", "there are no rows"),
        ("text\na b\nc d\n", "", "there is only text: add the other one"),
        ("text,label\na b,x\nc d,x\n", "", "the answer column label holds only the value 'x'"),
        ("text,label\na b,\nc d,\n", "--answer label", "the answer column label holds no value"),
        ("text,label\na b,x\nc d,x\n", "--choices x,y", "holds only the value 'x'"),
        ("text,label\na b,x\nc d,y\n", "--answer tone", "no column 'tone'"),
        ("text,label\na b,x\nc d,y\n", "", "2 examples leave the test split empty"),
        ("text,label\na b,x\nc d,y\n", "seed=many", "seed: 'many'"),
        (MANY, "--model /nowhere", "model.path: /nowhere"),
        (MANY, "model.path=/nowhere", "model.path: /nowhere"),
        (MANY, "train=null", "train: None is no section"),
        (MANY, "prompts.files=[mine.txt]", "prompts.files: paft init writes the wordings itself"),
        (MANY, "--description {x}_is_it_true?", "--description: of the"),
    ],
)
def test_what_cannot_be_used_exits_2_and_writes_nothing(
    text: str, more: str, said: str, in_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("mine.csv").write_text(text)
    assert call(["init", "mine.csv", *more.split()]) == 2
    out, err = capfd.readouterr()
    assert out == "" and said in err
    assert len(err.strip().splitlines()) <= 2
    assert [path.name for path in in_folder.iterdir()] == ["mine.csv"]


def test_file_that_cannot_be_written_leaves_none_behind(in_folder: Path) -> None:
    with pytest.raises(ConfigError, match="no/such/b cannot be written"):
        write_new({"a": "text", "no/such/b": "text"})
    assert list(in_folder.iterdir()) == []


def test_source_that_is_not_there_is_named() -> None:
    with pytest.raises(DataError, match=r"nothing\.csv: no such file"):
        first_config(Start("nothing.csv"))
