"""The report of a run that never happened but could have: its table, its page, its pictures."""

import html
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from synthetic_run import add_shares, make_run

from paft_ray.config.errors import ArtifactError
from paft_ray.evaluation import figures
from paft_ray.evaluation.figures import Figure
from paft_ray.evaluation.summary import summarise
from paft_ray.report import card_figures, results_table, write_report
from paft_ray.report.tables import display_name, main_label
from paft_ray.report.text import cautions
from paft_ray.report.verdict import verdict
from paft_ray.storage.paths import Storage


class Page(HTMLParser):
    """What a browser would make of the page: text by section, tags, addresses it would fetch."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.cells: list[str] = []
        self._in_cell = False
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "data")]
        self._in_cell = tag in ("td", "th") or (self._in_cell and tag not in ("tr", "table"))
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.cells[-1] += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    storage = Storage.open(str(tmp_path_factory.mktemp("runs") / "demo"))
    make_run(storage)
    assert write_report(storage) == storage.path("report.html")
    return storage


@pytest.fixture(scope="module")
def source(folder: Storage) -> str:
    return folder.read_bytes("report.html").decode()


def known_summary(**changes: Any) -> dict[str, Any]:
    """A summary with round numbers."""

    def model(mean: float, std: float, worst: float, top: float, **more: Any) -> dict[str, Any]:
        return {"mean": mean, "std": std, "min": worst, "top": {"0.75": top}, **more}

    zero = {"value": 0.0, "low": -0.01, "high": 0.01}
    clear = {"value": 0.059, "low": 0.012, "high": 0.104}
    return {
        "models": {
            "base": model(0.658, 0.113, 0.517, 0.25),
            "single_prompt": model(0.75, 0.118, 0.483, 0.5, steps=150),
            "paft": model(0.809, 0.072, 0.667, 0.75, steps=150),
        },
        "differences": {"paft - single_prompt": {**clear, "std": zero}},
        "prompts": 12,
        "examples": 60,
        "seeds": [0],
        "seconds": {},
        "answer_end": "scored",
        **changes,
    }


def table_of(summary: dict[str, Any]) -> list[str]:
    """The lines on the screen from the table on."""
    _, table = results_table(summary).split("\n\n", 1)
    return table.splitlines()


def test_results_on_the_screen_begin_with_what_is_shown_and_how_sure_it_is():
    lines = results_table(known_summary()).splitlines()
    assert lines[:5] == [
        "PAFT is better than the single prompt: +5.9 points (95% interval +1.2 to +10.4), 80.9% "
        "right on average over 12 prompts that no training saw, against 75.0%.",
        "Its accuracy is not shown to depend less on the wording: the standard deviation over "
        "prompts is 7.2 points, against 11.8: +0.0 points (95% interval -1.0 to +1.0).",
        "Under its worst prompt PAFT is right for 66.7%, the single prompt for 48.3%.",
        "The base model, before any training: 65.8% on average, 51.7% under its worst prompt.",
        "",
    ]


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.01, 0.1, "PAFT is better than the single prompt: "),
        (-0.01, 0.1, "PAFT is not shown to be better than the single prompt: "),
        (-0.2, -0.01, "PAFT is worse than the single prompt: "),
    ],
)
def test_verdict_claims_what_the_interval_shows(low: float, high: float, said: str):
    spread = {"value": 0.0, "low": -0.02, "high": -0.01}
    entry = {"value": (low + high) / 2, "low": low, "high": high, "std": spread}
    found = verdict(known_summary(differences={"paft - single_prompt": entry}))
    assert found.sentence.startswith(said)
    assert found.more[0].startswith("Its accuracy depends less on the wording")


def test_verdict_compares_with_the_best_of_the_others():
    summary = known_summary()
    models = {**summary["models"], "human_prompt": {**summary["models"]["paft"], "mean": 0.79}}
    entry = {"value": 0.02, "low": -0.01, "high": 0.05, "std": {"value": 0, "low": 0, "high": 0}}
    differences = {**summary["differences"], "paft - human_prompt": entry}
    found = verdict(known_summary(models=models, differences=differences))
    assert found.sentence.startswith(
        "PAFT is not shown to be better than the human prompt, the best of the others: +2.0"
    )


def test_verdict_on_one_model_names_its_best_prompt_where_all_was_scored():
    base = {**known_summary()["models"]["base"], "max": 0.7}
    alone = known_summary(models={"base": base}, differences={}, trained=[])
    whole, part = verdict(alone).sentence, verdict({**alone, "scored_share": 0.1}).sentence
    assert whole.endswith("51.7% under the worst one and 70.0% under the best one.")
    assert part.endswith("51.7% under the worst one.")
    assert "60 examples (estimated from 10% of the answers), on average" in part
    base["intervals"] = {"mean": [0.6, 0.7]}
    part = verdict({**alone, "scored_share": 0.1}).sentence
    assert "(estimated from 10% of the answers; 95% interval 60.0 to 70.0 for all of them)" in part


def test_majority_stands_on_screen_and_page(tmp_path: Path):
    folder = Storage.open(str(tmp_path / "run"))
    summary = make_run(folder)
    assert "always answering" not in results_table(summary)
    summary["majority"] = {"answer": "negative", "share": 0.55}
    folder.write_json("summary.json", summary)
    said = "always answering 'negative', the most frequent answer, is right for 55.0%."
    assert said in table_of(summary)
    page = Path(write_report(folder)).read_text("utf-8")
    assert page.count('class="majority"') == 3, "a line in each model's strip"


def test_figures_under_a_trained_prompt_stand_on_screen_and_page(tmp_path):
    folder = Storage.open(str(tmp_path / "run"))
    summary = make_run(folder)
    assert "models were trained on" not in results_table(summary)
    table, labels = pq.read_table(tmp_path / "run" / "scores.parquet"), list(summary["models"])
    part = table.filter(pc.field("prompt_id") == "test00")
    own = summarise(part, labels[:2], (0.75,), (0,), {})
    summary["on_trained_prompts"] = {"single_prompt": {"prompt": "Say. {x}", **own}}
    lines = results_table(summary).splitlines()
    [head] = [n for n, line in enumerate(lines) if line.startswith("prompts that models were")]
    assert lines[head + 1].startswith("mean, that of single prompt ")
    for label in labels[:2]:
        right = part.filter(pc.field("variant") == label).column("correct").to_pandas().mean()
        assert f" {100 * right:.1f} (" in lines[head + 1]
    folder.write_json("summary.json", summary)
    page = Path(write_report(folder)).read_text("utf-8")
    assert "Under prompts that were trained on" in page


def test_figures_by_author_stand_on_screen_and_page(tmp_path):
    folder = Storage.open(str(tmp_path / "run"))
    summary = make_run(folder)
    assert "prompts of each author" not in results_table(summary)
    table, labels = pq.read_table(tmp_path / "run" / "scores.parquet"), list(summary["models"])
    ids = {"stock:sst2": [f"test{p:02d}" for p in range(5)]}
    ids["gemma"] = [f"test{p:02d}" for p in range(5, 12)]
    parts = {who: table.filter(pc.field("prompt_id").isin(ids[who])) for who in ids}
    summary["by_author"] = {
        who: summarise(part, labels, (0.75,), (0,), {}) for who, part in parts.items()
    }
    lines = results_table(summary).splitlines()
    [head] = [n for n, line in enumerate(lines) if line.startswith("held-out prompts of each")]
    assert lines[head + 1].startswith("mean, 5 by stock:sst2 ")
    assert lines[head + 2].startswith("mean, 7 by gemma ")
    paft = parts["stock:sst2"].filter(pc.field("variant") == "paft").column("correct")
    assert f" {100 * paft.to_pandas().mean():.1f} (" in lines[head + 1]
    folder.write_json("summary.json", summary)
    page = Path(write_report(folder)).read_text("utf-8")
    assert "By the author of the prompts" in page
    assert "mean, 7 by gemma" in page


def test_results_table_of_known_figures_is_aligned_to_the_letter():
    lines = table_of(known_summary())
    assert lines[:4] == [
        "held-out prompts (12 x 60 examples)    mean    std over prompts    worst    Top>=75%",
        "base model                             65.8                11.3     51.7         25%",
        "single prompt, 150 steps               75.0                11.8     48.3         50%",
        "PAFT, 150 steps                        80.9                 7.2     66.7         75%",
    ]
    assert lines[5:] == [
        "PAFT - single prompt: mean +5.9 (+1.2 to +10.4), std over prompts +0.0 (-1.0 to +1.0); "
        "points, paired 95% intervals.",
        "The end token of an answer is scored with it (task.answer_end: scored).",
        "PAFT - single prompt: the interval of the std includes zero, "
        "so a difference in spread is not shown.",
        "one seed is an illustration, not a measurement: "
        "give `seeds: [0, 1, 2]`, which trains every variant with each on the same pool.",
    ]


def test_results_of_trainings_that_ended_early_show_the_steps_of_each_and_say_so():
    summary = known_summary()
    chosen = {"planned_steps": 150, "chosen_by": "mean accuracy of 4 validation prompts"}
    of_two = {"steps": 70, "steps_by_seed": [60, 80], "saved_steps": [20, 40]}
    of_one = {"steps": 150, "steps_by_seed": [150, 150], "saved_steps": [150, 150]}
    summary["models"]["paft"] |= {**chosen, **of_two}
    summary["models"]["single_prompt"] |= {**chosen, **of_one}
    text = results_table(summary)
    assert "PAFT, 60 to 80 steps, best at 20 to 40 " in text
    assert "single prompt, 150 steps  " in text
    assert "the mean accuracy of 4 validation prompts." in text
    assert "they differ in their steps (single prompt 150, PAFT 60 to 80)" in text
    summary["models"]["paft"] |= of_one
    assert "patience" not in results_table(summary)
    for label in ("paft", "single_prompt"):
        summary["models"][label] |= {"steps": 60, "steps_by_seed": [60, 60]}
    assert "before step 150, all of them after step 60." in results_table(summary)


@pytest.mark.parametrize(
    ("known", "said"),
    [
        ({"answer_end": "scored"}, "task.answer_end: scored"),
        ({"answer_end": "ignored"}, "cannot win against it"),
        ({}, "cannot win against it"),
        ({"stop": []}, "as a whole, up to the end token."),
        ({"stop": ["\n\n"]}, "the end token or the first of task.stop ('\\n\\n')"),
    ],
)
def test_every_table_names_how_answers_end(known: dict, said: str):
    summary = {k: v for k, v in known_summary().items() if k != "answer_end"} | known
    assert said in results_table(summary)
    assert said in card_figures(summary).note


def test_answers_that_did_not_end_or_only_begin_right_stand_beside_the_mean():
    models = {
        label: {**model, "generated_tokens": 4.0, "no_end": 0.1 * n, "only_begins_right": 0.25 * n}
        for n, (label, model) in enumerate(known_summary()["models"].items())
    }
    head, *rows = table_of(known_summary(models=models, stop=[]))[:4]
    assert re.split(r" {3,}", head)[-3:-1] == ["no end", "only begin right"]
    shown = [re.split(r" {3,}", row)[-3:-1] for row in rows]
    assert shown == [["0.0", "0.0"], ["10.0", "25.0"], ["20.0", "50.0"]]


def test_results_table_has_the_5_percent_quantile_where_it_fits():
    models = known_summary()["models"]
    known = {label: {**model, "p05": 0.512} for label, model in models.items()}
    head, base, *_ = table_of(known_summary(models=known))
    assert re.split(r" {3,}", head)[1:] == ["mean", "std over prompts", "worst", "p05", "Top>=75%"]
    assert re.split(r" {3,}", base)[1:] == ["65.8", "11.3", "51.7", "51.2", "25%"]
    tops = {label: {**model, "top": dict.fromkeys(("0.6", "0.7", "0.75"), 0.5)}
            for label, model in known.items()}  # fmt: skip
    assert "p05" not in results_table(known_summary(models=tops))
    known["base"].pop("p05")  # from a summary without that figure
    head, base, *_ = table_of(known_summary(models=known))
    assert "p05" in head and "–" in base


def test_wide_figure_that_older_summaries_lack_pushes_no_other_one_off(
    monkeypatch: pytest.MonkeyPatch,
):
    models = known_summary()["models"]
    known = {label: {**model, "p05": 0.512} for label, model in models.items()}
    with_p05 = results_table(known_summary(models=known))
    wide = Figure(key="iqr", heading="between the quartiles", meaning="", table="wide")
    monkeypatch.setattr(figures, "FIGURES", (*figures.FIGURES, wide))
    assert results_table(known_summary(models=known)) == with_p05
    for model in known.values():
        model["iqr"] = 0.2
    assert results_table(known_summary(models=known)) == with_p05, "it is too wide with both"


def test_results_table_says_what_the_intervals_hold():
    def last(seeds: int, **more: Any) -> str:
        models = {k: {**m, **more} for k, m in known_summary()["models"].items()}
        summary = known_summary(seeds=list(range(seeds)), models=models)
        return results_table(summary).splitlines()[-1]

    assert "illustration" in last(1, intervals={})
    assert "3 seeds are few, and show 67% of the variance" in last(3, intervals={})
    assert last(10, intervals={}).endswith("prompts, examples and the 10 seeds.")
    assert last(3).endswith("prompts and examples, not seeds."), "a summary of an older version"


@pytest.mark.parametrize(
    ("label", "name"),
    [("base", "base model"), ("human_prompt", "human prompt"), ("bound_prompts", "bound prompts"),
     ("paft", "PAFT"), ("paft_t1", "PAFT t1"), ("k4", "k4")],
)  # fmt: skip
def test_variants_are_called_by_the_words_of_their_labels(label: str, name: str):
    assert display_name(label) == name


def test_results_table_of_a_paft_that_is_not_better_says_so():
    models = known_summary()["models"]
    swapped = {**models, "paft": models["single_prompt"], "single_prompt": models["paft"]}
    text = results_table(known_summary(models=swapped))
    assert "PAFT's mean is not above that of the single prompt." in text
    assert "PAFT's spread over prompts is not below that of the single prompt." in text
    assert "not above" not in results_table(known_summary())


def test_results_table_of_another_variant_uses_the_name_it_is_given():
    models = known_summary()["models"]
    summary = known_summary(models={"base": models["base"], "k4": models["paft"]}, differences={})
    assert "PAFT, K=4, 150 steps" in results_table(summary, {"k4": "PAFT, K=4"})


SUBJECTS = {"base": (0.6, 0.1), "mine": (0.7, 0.1), "theirs": (0.8, 0.05)}


@pytest.mark.parametrize(
    ("models", "main"), [(("base",), "base model"), (("base", "mine", "theirs"), "mine")]
)
def test_report_of_models_that_no_run_trained_speaks_of_no_training(
    models: tuple[str, ...], main: str, tmp_path: Path
):
    folder = Storage.open(str(tmp_path / "run"))
    summary = make_run(folder, {label: SUBJECTS[label] for label in models}, trained=[])
    said = verdict(summary).sentence
    assert said.startswith(f"{main} is ")
    table = results_table(summary)
    assert table_of(summary)[0].startswith("prompts (12 x 60 examples)")
    write_report(folder)
    page = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    for text in (table, page):
        assert "training" not in text
        assert "held-out" not in text.lower()
        assert "seed is an illustration" not in text
    assert html.escape(said) in page
    assert "&#34;train&#34;" not in page


def test_trained_model_comes_before_subjects_that_are_listed_behind_it(tmp_path: Path):
    folder = Storage.open(str(tmp_path / "run"))
    summary = make_run(folder, SUBJECTS, trained=["mine"])
    assert main_label(summary) == "mine"
    found = verdict(summary).sentence
    assert found.startswith("mine is ")
    assert " that no training saw" in found


def test_seeds_of_each_model_are_named_where_they_differ(tmp_path: Path):
    folder = Storage.open(str(tmp_path / "run"))
    summary = make_run(folder, SUBJECTS, trained=["mine", "theirs"], seeds=(0, 1, 2))
    several = " ".join(cautions(summary))
    assert "resample prompts, examples and the 3 seeds" in several
    assert "different seeds" not in several
    summary["models"]["mine"]["seeds"] = [5]
    mixed = " ".join(cautions(summary))
    assert "different seeds (mine: 5; theirs: 0, 1, 2)" in mixed
    assert "one seed is an illustration" in mixed
    assert "the 3 seeds" in mixed


def test_page_of_a_partly_scored_run_shows_estimates_and_no_flips(tmp_path: Path):
    folder = Storage.open(str(tmp_path / "run"))
    summary = make_run(folder)
    estimated = {f"test{p:02d}": 0.31 + p / 100 for p in range(12)}
    for model in summary["models"].values():
        model |= {"accuracies": estimated, "consistency": None, "flip_rate": None}
    folder.write_json("summary.json", {**summary, "scored_share": 0.1})
    source = Path(write_report(folder)).read_text("utf-8")
    cells = Page(source).cells
    assert {f"{31 + p:.1f}" for p in range(12)} <= {cell.strip() for cell in cells}
    assert 'id="flips"' not in source
    assert "Paired differences" not in source
    assert "Estimated accuracy in percent" in source
    text = results_table({**summary, "scored_share": 0.1})
    assert "paired 95%" not in text
    assert "10% of the prompts x examples were scored" in text
    assert "not paired" in text


def test_page_shows_the_figures_of_summary_and_screen(folder: Storage, source: str):
    summary = folder.read_json("summary.json")
    cells = Page(source).cells
    for model in summary["models"].values():
        for key in ("mean", "std", "min", "consistency", "flip_rate"):
            low, high = model["intervals"][key]
            shown = f"{100 * model[key]:.1f}{100 * low:.1f} – {100 * high:.1f}"
            assert shown in cells, key
    for line in table_of(summary)[1:4]:
        name, *figures = re.split(r" {3,}", line)
        assert name in cells
        assert all(any(cell.startswith(figure) for cell in cells) for figure in figures)
    text = html.unescape(source)
    differences, *sentences = results_table(summary).split("\n\n")[2].splitlines()
    for value, interval in re.findall(r"([+-][\d.]+) \((.*?)\)", differences):
        assert f"{value}{interval}".replace("-", "−") in cells
    assert all(sentence.replace("`", "") in text for sentence in sentences)


def test_page_ranks_held_out_prompts_worst_first_by_paft(source: str):
    lines = re.findall(r'<tr data-p="(test\d\d)">(.*?)</tr>', source, flags=re.DOTALL)
    accuracies = [float(re.findall(r'data-v="([\d.]+)"', line)[-1]) for _, line in lines]
    assert len(lines) == 12
    assert accuracies == sorted(accuracies)


def test_page_escapes_what_a_prompt_says(source: str):
    assert "<script>alert" not in source
    assert "&lt;script&gt;alert(" in source
    page = Page(source)
    assert page.tags.count("script") == 1
    assert "img" not in page.tags


def test_page_escapes_the_name_of_the_run_and_the_configuration(tmp_path: Path):
    storage = Storage.open(str(tmp_path / "run<b>"))
    make_run(storage, extras=False)
    storage.write_json("config.json", {"config": {"name": "</pre><script>x</script>"}})
    write_report(storage)
    source = storage.read_bytes("report.html").decode()
    assert "run<b>" not in source
    assert Page(source).tags.count("script") == 1


def test_page_refers_to_nothing_outside_itself(source: str):
    addresses = Page(source).addresses
    assert [address for address in addresses if not address.startswith("#")] == ["data:,"]
    assert not re.search(r"""url\(|@import|https?://|//[a-z]|fetch\(|XMLHttp""", source)


def test_page_counts_a_slot_trained_twice_once(source: str):
    assert "one prompt, 1,200 examples" in source
    assert re.search(r"84 prompts, 1,200 examples", source)


def test_pictures_are_written_where_there_is_something_to_draw(folder: Storage):
    for name in ("accuracy.png", "learning_curve.png"):
        assert folder.read_bytes(name).startswith(b"\x89PNG")


def test_report_without_ledgers_and_texts_shows_the_rest(tmp_path: Path):
    storage = Storage.open(str(tmp_path / "bare"))
    summary = make_run(storage, {"base": (0.6, 0.1), "paft": (0.8, 0.1)}, 5, extras=False)
    models = {label: {**model, "top": {}} for label, model in summary["models"].items()}
    storage.write_json("summary.json", {**summary, "models": models, "seconds": {}})
    write_report(storage)
    source = storage.read_bytes("report.html").decode()
    assert "Learning curve" not in source
    assert "How often training prompts were drawn" not in source
    assert "test03" in source
    assert not storage.exists("learning_curve.png")


def test_report_written_twice_is_the_same_to_the_byte(folder: Storage, source: str):
    before = folder.read_bytes("accuracy.png")
    write_report(folder)
    assert folder.read_bytes("report.html").decode() == source
    assert folder.read_bytes("accuracy.png") == before


@pytest.mark.parametrize("missing", ["config.json", "summary.json", "scores.parquet"])
def test_report_of_an_unfinished_run_names_the_missing_file(tmp_path: Path, missing: str):
    storage = Storage.open(str(tmp_path / "unfinished"))
    make_run(storage, examples=2, extras=False)
    storage.delete(missing)
    with pytest.raises(ArtifactError, match=missing):
        write_report(storage)
    assert not storage.exists("report.html")


def test_page_and_picture_show_what_losses_made_of_the_prompts(tmp_path: Path):
    folder = Storage.open(str(tmp_path))
    make_run(folder)
    assert 'id="weights"' not in Path(write_report(folder)).read_text("utf-8")
    add_shares(folder)
    source = Path(write_report(folder)).read_text("utf-8")
    weights = source.split('id="weights"')[1].split("</section>")[0]
    assert weights.count("<polyline") == 4
    assert "way 3:" in weights
    assert "3.00" in weights  # 0.5 of the draws among four, with weight 1.5
    assert folder.read_bytes("sampling_paft-s0.png").startswith(b"\x89PNG")
