"""What is stored is found by later versions: what every field does to every identity.

`fixtures/stored_run/identities.json` holds the identities of the first version that kept them, and
`fixtures/first_fields.json` the fields that it had. Neither may change. Rules that changed since
have moved some identities; the others are held to the letter, and those that moved still tell apart
what they told apart. Those of `fixtures/stored_run_2` are held to the letter, all of them.
"""

import functools
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from make_stored_run import changes, identities_of, write_variations
from pydantic import Field, create_model

from paft_ray.config import (
    Config,
    CustomTaskConfig,
    FakeLLM,
    GenerationConfig,
    OpenAILLM,
    PromptsConfig,
    TrainConfig,
    TransformersLLM,
    TuningConfig,
    VLLMEngine,
    loading,
)
from paft_ray.config.affects import PROMPT_RULES, RULES, affecting, result_fields, take
from paft_ray.config.base import Section, affects
from paft_ray.config.evaluation import EvaluationConfig
from paft_ray.config.loading import load_config, load_recorded
from paft_ray.config.model import ModelConfig

FIXTURES = Path(__file__).parents[1] / "fixtures"
STORED = FIXTURES / "stored_run"
FIRST = json.loads((STORED / "identities.json").read_text(encoding="utf-8"))
MANY = yaml.safe_load((STORED / "many.yaml").read_text(encoding="utf-8"))
MANY["task"]["answer_end"] = "ignored"  # what the first version did with choices
MOVED_BY_RULES = {"task", "pool", "training", "scores", "run", "search"}
"""Identities that hold the task's examples, since the rule that splits them changed
 (`RULES["examples"]`; that of a pool does where prompts are probed on training examples), and
those of scores."""
MOVED_SINCE = {("model.quantization=nf4",): {"pool", "scores", "run", "search"}}
"""Overrides to what they name anew: 4 bits hold where a model is probed and scored too, and the
pool is in the identities of run and search."""
SECOND_RULES = {"lint": 2, "parse": 2, "escapes": 1}
"""`PROMPT_RULES` of the second version."""
FIELDS = json.loads((FIXTURES / "first_fields.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module", autouse=True)
def inputs(tmp_path_factory: pytest.TempPathFactory):
    """The working directory holds what the stored configurations name."""
    folder = tmp_path_factory.mktemp("stored") / "copy"
    shutil.copytree(STORED, folder)
    write_variations(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for rule in PROMPT_RULES:  # the rules of the first version
            patch.setitem(PROMPT_RULES, rule, 1)  # pyright: ignore[reportArgumentType]
        unchanged()
        yield


@functools.cache
def unchanged() -> dict[str, Any]:
    """The identities of `many.yaml` today."""
    return identities_of(load_config(MANY))


def moved(config: Config) -> set[str]:
    """Which identities differ from those of `many.yaml`."""
    return {k for k, v in identities_of(config).items() if v != unchanged()[k]}


def held(found: Mapping[str, Any]) -> dict[str, Any]:
    """Identities that no rule has moved."""
    return {k: v for k, v in found.items() if k not in MOVED_BY_RULES}


def test_every_identity_is_that_of_the_first_version_unless_a_rule_moved_it() -> None:
    assert {k for k, v in unchanged().items() if v != FIRST["unchanged"][k]} == MOVED_BY_RULES
    assert [change["overrides"] for change in FIRST["changes"]] == changes()
    for change in FIRST["changes"]:
        free = ["task.answer_end=scored"] * ("task.choices=null" in change["overrides"])
        found = identities_of(load_config(MANY, [*change["overrides"], *free]))
        first = FIRST["unchanged"] | change["identities"]
        if "task.test_path=null" not in change["overrides"]:  # else test examples are split off
            assert held(found) == held(first), change["overrides"]
        also = MOVED_SINCE.get(tuple(change["overrides"]), set())
        assert {k for k in found if found[k] != unchanged()[k]} == also | set(change["identities"])


def test_every_identity_is_that_of_the_second_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(FIXTURES / "stored_run_2", folder)
    write_variations(folder)
    monkeypatch.chdir(folder)
    for rule, number in SECOND_RULES.items():
        monkeypatch.setitem(PROMPT_RULES, rule, number)  # pyright: ignore[reportArgumentType]
    stored = json.loads((folder / "identities.json").read_text(encoding="utf-8"))
    for change in [{"overrides": [], "identities": {}}, *stored["changes"]]:
        found = identities_of(load_config("many.yaml", change["overrides"]))
        also = MOVED_SINCE.get(tuple(change["overrides"]), set())
        expected = stored["unchanged"] | change["identities"]
        moved_since = {k for k in also if found[k] != expected[k]}
        assert moved_since == also
        assert found == expected | {k: found[k] for k in also}, change["overrides"]


def declared() -> dict[str, dict[str, str]]:
    """What the fields of every section affect that are in identities whatever their value."""
    found, todo = {}, [Section]
    while todo:
        section = todo.pop()
        todo += section.__subclasses__()
        if section.__module__.startswith("paft_ray."):
            found[section.__name__] = {
                field: " ".join(sorted(note.targets)) or "nothing"
                for field, note in section.declared.items()
                if note.neutral is ...
            }
    return {name: fields for name, fields in sorted(found.items()) if fields}


def test_fields_of_the_first_version_affect_what_they_did_and_others_have_a_neutral_value() -> None:
    assert declared() == FIELDS, (
        "a field that is added to a section needs affects(..., neutral=VALUE), else what is stored "
        "is not found; only fields of a new section are added to first_fields.json"
    )


def test_neutral_values_are_defaults() -> None:
    """So that configurations without the field, recorded ones too, mean what they meant.

    `load_recorded` fills in those that depend on their section.
    """
    todo: list[type[Section]] = [Section]
    while todo:
        section = todo.pop()
        todo += section.__subclasses__()
        for name, note in section.declared.items():
            if note.neutral is not ... and not callable(note.neutral):
                assert section.model_fields[name].get_default() == note.neutral, (section, name)


def test_field_that_does_not_say_what_it_affects_cannot_be_defined() -> None:
    with pytest.raises(TypeError, match=r"Silent\.steps does not say what it affects"):

        class Silent(Section):
            steps: int = 1


def extended(section: type[Any], **fields: Any) -> type[Any]:
    return create_model(section.__name__, __base__=section, **fields)


def llms_of(new: Callable[[type[Section]], Any]) -> type[Config]:
    entry = Annotated[
        new(OpenAILLM) | FakeLLM | TransformersLLM | VLLMEngine, Field(discriminator="type")
    ]
    generation = extended(GenerationConfig, llms=(tuple[entry, ...], ...))
    return extended(Config, prompts=(extended(PromptsConfig, generation=(generation, ...)), ...))


PLACES: Mapping[str, tuple[str, Callable[[Callable[[type[Section]], Any]], type[Config]]]] = {
    "root": ("", lambda new: new(Config)),
    "task": ("task.", lambda new: extended(Config, task=(new(CustomTaskConfig), ...))),
    "prompts": ("prompts.", lambda new: extended(Config, prompts=(new(PromptsConfig), ...))),
    "llm": ("prompts.generation.llms.1.", llms_of),
    "generation": (
        "prompts.generation.",
        lambda new: extended(
            Config,
            prompts=(extended(PromptsConfig, generation=(new(GenerationConfig), ...)), ...),
        ),
    ),
    "model": ("model.", lambda new: extended(Config, model=(new(ModelConfig), ...))),
    "train": ("train.", lambda new: extended(Config, train=(new(TrainConfig), ...))),
    "evaluation": (
        "evaluation.",
        lambda new: extended(Config, evaluation=(new(EvaluationConfig), ...)),
    ),
    "tuning": (
        "tuning.",
        lambda new: extended(
            Config, tuning=(Annotated[new(TuningConfig) | None, affects("search")], None)
        ),
    ),
}
OWN = {"pool": "pool", "weights": "training", "scores": "scores"}
"""Which identity a field moves that affects something; those of a run and a search come to it."""


@pytest.fixture
def with_new_field(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Config]:
    """`many.yaml` in a version that has another field somewhere, with a value."""

    def build(place: str, value: int, *targets: Any) -> Config:
        path, version = PLACES[place]
        field = (Annotated[int, affects(*targets, neutral=0)], 0)
        newer = version(lambda section: extended(section, dummy=field))
        monkeypatch.setattr(loading, "Config", newer)
        return load_config(MANY, [f"{path}dummy={value}"] if value else [])

    return build


@pytest.mark.parametrize("place", PLACES)
def test_stored_is_found_where_a_new_field_means_what_earlier_versions_did(
    place: str, with_new_field: Callable[..., Config]
) -> None:
    targets = ("pool", "answers", "weights", "scores", "run", "search")
    assert identities_of(with_new_field(place, 0, *targets)) == unchanged()


@pytest.mark.parametrize("place", [place for place in PLACES if place not in ("llm", "tuning")])
@pytest.mark.parametrize("target", OWN)
def test_new_field_with_a_value_moves_what_it_affects(
    place: str, target: Any, with_new_field: Callable[..., Config]
) -> None:
    found = moved(with_new_field(place, 1, target))
    assert {OWN[target], "run", "search"} <= found
    if place != "task":  # whose identity is in all that is made from its examples
        assert found == {OWN[target], "run", "search"}


def test_new_field_of_an_author_moves_its_answers_and_the_pool(
    with_new_field: Callable[..., Config],
) -> None:
    found = moved(with_new_field("llm", 1, "pool", "answers"))
    assert found == {"answers", "requests", "pool", "run", "search"}


def test_new_field_of_decoding_moves_the_requests_and_the_pool(
    with_new_field: Callable[..., Config],
) -> None:
    found = moved(with_new_field("generation", 1, "pool", "answers"))
    assert found == {"requests", "pool", "run", "search"}


def test_new_field_of_a_search_moves_the_search_alone(
    with_new_field: Callable[..., Config],
) -> None:
    assert moved(with_new_field("tuning", 1, "search")) == {"searched", "search"}


@pytest.mark.parametrize("place", PLACES)
def test_new_field_that_affects_nothing_moves_nothing(
    place: str, with_new_field: Callable[..., Config]
) -> None:
    found = moved(with_new_field(place, 1, "nothing"))
    assert found == set()


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ("pool", {"pool", "run", "search"}),
        ("examples", {"task", "pool", "training", "run", "search"}),
        ("weights", {"training", "run", "search"}),
        ("scores", {"scores", "run", "search"}),
        ("answers", {"answers", "requests", "pool", "run", "search"}),
    ],
)
def test_rule_of_another_version_moves_what_it_affects(
    target: Any, found: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RULES, target, RULES[target] + 1)  # pyright: ignore[reportArgumentType]
    assert moved(load_config(MANY)) == found


@pytest.mark.parametrize("rule", ["lint", "parse"])
def test_rule_of_prompts_moves_the_pool_of_an_llm_s_answers(
    rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PROMPT_RULES, rule, 2)  # pyright: ignore[reportArgumentType]
    assert moved(load_config(MANY)) == {"pool", "run", "search"}


def test_change_of_a_new_field_is_named_when_the_run_is_refused(
    with_new_field: Callable[..., Config],
) -> None:
    old, new = (with_new_field("train", value, "weights") for value in (0, 1))
    assert "dummy" not in result_fields(old)["train"]
    assert result_fields(new)["train"]["dummy"] == 1


def test_scored_ends_of_choices_move_all_that_is_trained_and_scored() -> None:
    found = moved(load_config(MANY, ["task.answer_end=scored"]))
    assert found == {"task", "training", "scores", "pool", "run", "search"}  # its pool is probed


FREE = {**MANY, "task": {**MANY["task"], "choices": None, "answer_end": "scored"}}


def test_free_text_keeps_its_weights() -> None:
    assert "answer_end" not in affecting(load_config(FREE), "weights")["task"]


@pytest.mark.parametrize(("tree", "end"), [(MANY, "ignored"), (FREE, "scored")])
def test_recorded_configuration_without_an_end_means_what_it_did(
    tree: dict[str, Any], end: str
) -> None:
    task = {key: value for key, value in tree["task"].items() if key != "answer_end"}
    assert load_recorded({**tree, "task": task}).task.answer_end == end
    assert load_recorded({**tree, "task": {**task, "answer_end": "scored"}}).task == (
        load_config({**tree, "task": task}).task
    )


def test_taken_fields_leave_no_empty_section() -> None:
    tree = {"a": {"b": {"c": 1}}, "d": {"e": 2, "f": 3}}
    assert take(tree, "d.e", "a.b.c") == ([2, 1], {"d": {"f": 3}})
    assert tree == {"a": {"b": {"c": 1}}, "d": {"e": 2, "f": 3}}
