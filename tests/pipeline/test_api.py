"""Python: names that a person finds, and results to compute with; nothing here starts Ray."""

import pkgutil
import pydoc
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import paft_ray
from paft_ray.config.errors import ConfigError, PoolError, TemplateError

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a finished run, which is the working directory; whoever asks for Ray fails."""
    folder = tmp_path / "copy"
    shutil.copytree(FIXTURES / "stored_run_2", folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("RAY_ADDRESS", "nowhere")
    return folder


def test_public_names_are_found_and_no_folder_of_the_package_takes_their_place() -> None:
    assert set(paft_ray.__all__) <= set(dir(paft_ray))
    assert not any(name.startswith("_") and not name.endswith("__") for name in dir(paft_ray))
    folders = {module.name for module in pkgutil.iter_modules(paft_ray.__path__)}
    assert not folders & set(paft_ray.__all__)
    told = pydoc.plain(pydoc.render_doc(paft_ray))
    assert [name for name in paft_ray.__all__ if name not in told] == ["__version__"]
    assert f"VERSION\n    {paft_ray.__version__}" in told
    assert paft_ray.__version__ == version("paft_ray")
    with pytest.raises(AttributeError, match="rnu"):
        paft_ray.rnu  # noqa: B018


def test_importing_the_package_imports_neither_ray_nor_torch() -> None:
    program = (
        "import sys, paft_ray; paft_ray.run, paft_ray.prompt_dataset, paft_ray.load_config; "
        "print(sorted({'ray', 'torch', 'transformers', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_path_a_dict_and_a_loaded_configuration_are_the_same(stored: Path) -> None:
    config = paft_ray.load_config("from-files.yaml")
    results = [paft_ray.run(source) for source in ("from-files.yaml", Path("from-files.yaml"))]
    results += [paft_ray.run(config), paft_ray.run(config.model_dump(mode="json"))]
    assert all(result.data == results[0].data for result in results)
    for source in ("from-files.yaml", config):
        with pytest.raises(ConfigError, match="learning_rate"):
            paft_ray.run(source, overrides=["train.learning_rate=0.1"])
    with pytest.raises(ConfigError, match="give a list"):
        paft_ray.run(config, overrides="seed=2")


def test_script_whose_output_goes_to_a_file_says_what_is_done(
    stored: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    paft_ray.run("from-files.yaml")
    assert capfd.readouterr().err == "run from-files is complete, nothing to do\n"
    assert (stored / "storage/runs/from-files/log.txt").exists()  # what libraries print


def test_wrong_kind_of_argument_is_named(stored: Path) -> None:
    wrong: Any = ["train.steps=10"]
    with pytest.raises(ConfigError, match=r'options: .*overrides=\["train.steps=10"\]'):
        paft_ray.run("from-files.yaml", wrong)
    wrong = {"train.steps": 10}
    with pytest.raises(ConfigError, match="a mapping: give a list"):
        paft_ray.run("from-files.yaml", overrides=wrong)
    wrong = {"answer": "label"}
    with pytest.raises(ConfigError, match=r"columns: give paft_ray.Said"):
        paft_ray.robustness("model", "rows.csv", columns=wrong)


def test_results_of_a_run_are_tables_and_a_plot(stored: Path) -> None:
    result = paft_ray.run("from-files.yaml")
    summary = result.summary["models"]
    assert list(result.table.index) == list(summary)
    for label, row in result.table.iterrows():
        assert row["mean"] == pytest.approx(100 * summary[label]["mean"])
        low, high = summary[label]["intervals"]["mean"]
        assert (row["mean_low"], row["mean_high"]) == pytest.approx((100 * low, 100 * high))
    right = result.scores[result.scores["split"] == "test"].groupby("variant")["correct"].mean()
    assert (100 * right).to_dict() == pytest.approx(result.table["mean"].to_dict())
    known = set(result.prompts["prompt_id"]), set(result.examples["example_id"])
    assert set(result.scores["prompt_id"]) <= known[0]
    assert set(result.scores["example_id"]) <= known[1]
    assert result.plot()._repr_png_().startswith(b"\x89PNG")
    page = result._repr_html_()
    assert 'href="storage/runs/from-files/report.html"' in page
    assert f"{100 * summary['paft']['mean']:.1f}" in page
    assert repr(result) == result.text


def test_results_of_a_search_are_those_of_its_finalists(stored: Path) -> None:
    result = paft_ray.tune("searched.yaml")
    assert "trials" in result.data
    assert list(result.table.index) == list(result.data["summary"]["models"])
    assert "finalist" in result._repr_html_()


def test_pool_shows_prompts_and_an_example_under_them(stored: Path) -> None:
    result = paft_ray.build_prompt_pool("from-files.yaml")
    pool = result.pool
    some = pool.sample(3)
    assert some == pool.sample(3) == pool.sample(4)[:3]
    assert len({prompt.id for prompt in some}) == 3
    assert all(prompt in pool.train for prompt in some)
    review = "a fine {film} &c"
    texts = pool.render({"review": review}, 3)
    assert texts == tuple(prompt.text.replace("{review}", review) for prompt in some)
    with pytest.raises(PoolError, match="99"):
        pool.sample(99)
    for fields in ({"text": review}, {}, {"review": review, "more": "no"}):
        with pytest.raises(TemplateError, match="slots \\['review'\\]"):
            pool.render(fields)
    text: Any = "a fine film"
    with pytest.raises(PoolError, match=r"'a fine film' has no slots: give its fields"):
        pool.render(text)
    with pytest.raises(PoolError, match="'tets': use one of train, validation, test"):
        pool.sample(2, split=text.replace(text, "tets"))
    assert "pool.html" in result._repr_html_()


def test_runs_are_listed_and_refused_by_name(stored: Path) -> None:
    assert "from-files" in paft_ray.list_runs().text
    with pytest.raises(ConfigError, match="two different runs"):
        paft_ray.compare_runs("from-files")


def test_data_for_other_trainers_are_those_of_the_run(stored: Path) -> None:
    data = paft_ray.prompt_dataset("from-files.yaml")
    pool = paft_ray.build_prompt_pool("from-files.yaml").pool
    assert len(data) == 2 * 4
    ledger = paft_ray.run("from-files.yaml").folder.child("training", "paft-s1", "ledger")
    [part] = [ledger.read_table(name) for name in ledger.names() if name.endswith(".parquet")]
    drawn = {(row["step"], row["slot"]): row for row in part.to_pylist()}
    assert len(drawn) == len(data)
    for position in range(len(data)):
        draw, row = data.draw(position), drawn[divmod(position, 4)]
        assert (draw.example_id, draw.prompt_id) == (row["example_id"], row["prompt_id"])
        assert draw.prompt_id in {prompt.id for prompt in pool.train}
    with pytest.raises(ConfigError, match="chosen by scores of the base model"):
        paft_ray.prompt_dataset("from-files.yaml", variant="single_prompt")
    with pytest.raises(ConfigError, match="'none' is not one of"):
        paft_ray.prompt_dataset("from-files.yaml", variant="none")
    with pytest.raises(PoolError, match="build it first"):
        paft_ray.prompt_dataset("generated.yaml", overrides=["name=other", "seed=77"])
