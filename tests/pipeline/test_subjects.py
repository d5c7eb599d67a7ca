"""Models that no run trained, measured beside the base model and beside each other."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from openai_server import Body, Reply, Server, TinyServer, said
from peft import PeftModel, get_peft_config, get_peft_model
from tiny import write_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

import paft_ray
from factories import LORA, METHODS, run_config, write_prompts
from paft_ray.cli import call
from paft_ray.config import Config
from paft_ray.config.errors import ConfigError
from paft_ray.config.loading import dump_config, load_config, without_unread
from paft_ray.pipeline.listing import list_runs
from paft_ray.storage.paths import Storage

TEXTS = [
    "Review: {review}\nLabel:", "{review}\nIs this positive or negative?",
    "Text: {review}\nSentiment:", "How does this feel? {review} ->", "{review} || mood ||",
]  # fmt: skip


MORE_METHODS = {
    "TOKENS": {**LORA, "trainable_token_indices": {"embed_tokens": [3, 5]}},
    "EMBEDDINGS": {**LORA, "target_modules": ["embed_tokens", "q_proj"]},
    "HEAD": {**LORA, "target_modules": ["lm_head", "q_proj"]},
    "COPY": {**LORA, "modules_to_save": ["lm_head"]},
    "VERA": {"peft_type": "VERA", "r": 4, "target_modules": ["q_proj"]},
    "VBLORA": {
        "peft_type": "VBLORA", "r": 4, "target_modules": ["q_proj"],
        "vector_length": 4, "num_vectors": 8,
    },
}  # fmt: skip
"""Methods of which plain peft stores something that others do not."""


@pytest.fixture
def other_model(tmp_path: Path) -> Path:
    """A model of another family with a tokenizer of its own."""
    folder = tmp_path / "other-model"
    folder.mkdir()
    write_model(folder, ("positive", "negative", "sentiment", "film", "good"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(3)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer), n_positions=512, n_embd=32, n_layer=2, n_head=2,
            eos_token_id=tokenizer.eos_token_id, bos_token_id=None, initializer_range=0.3,
        )
    )  # fmt: skip
    for old in folder.glob("model*"):
        old.unlink()
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def adapter_of(tiny_model: Path, tmp_path: Path) -> Callable[[str], Path]:
    """An adapter that plain peft made outside."""

    def make(method: str) -> Path:
        torch.manual_seed(7)
        base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
        peft = {"task_type": "CAUSAL_LM", **{**METHODS, **MORE_METHODS}[method]}
        model = get_peft_model(base, get_peft_config(peft))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.5 * torch.randn(parameter.shape)
        model.save_pretrained(str(tmp_path / f"adapter-{method}"))
        return tmp_path / f"adapter-{method}"

    return make


@pytest.fixture
def make_tree(tiny_model: Path, review_file: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """A configuration that trains nothing."""

    def make(*subjects: dict[str, Any], **changes: Any) -> dict[str, Any]:
        tree = run_config(
            tiny_model, review_file, tmp_path / "storage",
            task={"max_length": 200, "test_share": 0.2, "answer_end": "ignored"},
            prompts={
                "files": [str(write_prompts(tmp_path / "prompts.jsonl", TEXTS))],
                "split": {"validation": 0, "test": 3},
            },
            evaluation={"examples": 6, "subjects": list(subjects)},
            variants=[],
            tracking={"type": "none"},
        )  # fmt: skip
        del tree["train"]
        return tree | changes

    return make


def logprobs_alone(model: Any, folder: Path, context: str) -> list[float]:
    """Log-likelihood of both choices, by plain transformers."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for choice in ("positive", "negative"):
        before = tokenizer(context, add_special_tokens=False).input_ids
        ids = tokenizer(f"{context} {choice}", add_special_tokens=False).input_ids
        assert ids[: len(before)] == before
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        virtual = len(logits) - len(ids)
        found.append(
            sum(float(logits[virtual + at - 1, ids[at]]) for at in range(len(before), len(ids)))
        )
    return found


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster", "warm_checks")
def test_adapters_from_outside_and_another_model_are_measured_as_plain_transformers_does(
    make_tree, adapter_of, other_model: Path, tiny_model: Path, tmp_path: Path
) -> None:
    lora, virtual, tokens = map(adapter_of, ("LORA", "PROMPT_TUNING", "TOKENS"))
    tree = make_tree(
        {"type": "adapter", "name": "outside", "path": str(lora)},
        {"type": "adapter", "name": "soft_prompt", "path": str(virtual)},
        {"type": "model", "name": "gpt", "path": str(other_model), "dtype": "float32"},
        {"type": "adapter", "name": "tokens", "path": str(tokens)},
    )
    summary = paft_ray.evaluate(load_config(tree)).data
    labels = ["base", "outside", "soft_prompt", "gpt", "tokens"]
    assert list(summary["models"]) == labels
    pairs = {f"{b} - {a}" for n, a in enumerate(labels) for b in labels[n + 1 :]}
    assert summary["differences"].keys() == pairs
    assert all(0 <= entry["p"] <= 1 for entry in summary["differences"].values())
    run = tmp_path / "storage/runs/small"
    scores = pq.read_table(run / "scores.parquet").to_pylist()
    assert len(scores) == 5 * 3 * 6
    prompts = {
        p["prompt_id"]: p["text"] for p in pq.read_table(run / "prompts.parquet").to_pylist()
    }
    examples = pq.read_table(run / "examples.parquet").to_pylist()
    fields = {e["example_id"]: json.loads(e["fields"]) for e in examples}

    def read(folder: Path, adapter: Path | None) -> Any:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        return model if adapter is None else PeftModel.from_pretrained(model, str(adapter)).eval()

    plain = {
        "base": (read(tiny_model, None), tiny_model),
        "outside": (read(tiny_model, lora), tiny_model),
        "soft_prompt": (read(tiny_model, virtual), tiny_model),
        "gpt": (read(other_model, None), other_model),
        "tokens": (read(tiny_model, tokens), tiny_model),
    }
    for row in scores:
        model, folder = plain[row["variant"]]
        text = prompts[row["prompt_id"]].format(**fields[row["example_id"]])
        assert row["choice_logprobs"] == pytest.approx(
            logprobs_alone(model, folder, text), abs=1e-3
        )
    assert (run / "report.html").is_file()
    one_subject = {"subjects": tree["evaluation"]["subjects"][:1], "name": "fewer", "examples": 4}
    fewer = {**tree, "evaluation": {**tree["evaluation"], **one_subject}}
    further = paft_ray.evaluate(load_config(fewer)).data
    assert (further["examples"], summary["examples"]) == (4, 6)
    assert json.loads((run / "summary.json").read_text()) == summary
    assert json.loads((run / "evaluations/fewer/summary.json").read_text()) == further
    listed = list_runs(Storage.open(tree["storage"])).data["runs"]
    assert {(each["name"], each["state"]) for each in listed} == {
        ("small", "complete"), ("small/fewer", "complete"),
    }  # fmt: skip
    for changed in (
        fewer | {"seed": 1},
        {**fewer, "evaluation": {**fewer["evaluation"], "prompts": 2}},
    ):
        with pytest.raises(ConfigError, match=r"further evaluation|another evaluation\.name"):
            paft_ray.evaluate(load_config(changed))
    # a finished evaluation is found, and one whose adapter has changed is not
    assert paft_ray.run(load_config(tree)).data == summary
    weights = virtual / "adapter_model.safetensors"
    weights.write_bytes(lora.joinpath("adapter_model.safetensors").read_bytes())
    with pytest.raises(ConfigError, match="another subject soft_prompt"):
        paft_ray.run(load_config(tree))


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_adapter_behind_an_endpoint_has_the_figures_of_the_adapter_in_process(
    make_tree, adapter_of, tiny_model: Path, tmp_path: Path
) -> None:
    adapter = adapter_of("LORA")

    def chat(path: str, body: Body, attempt: int) -> Reply:
        right = json.dumps(body).count("o") % 2 == 0
        return said("Positive" if right else "<think>Hm.</think>\nnegative.")

    with TinyServer(tiny_model, adapter).running() as served, Server(chat).running() as other:
        tree = make_tree(
            {"type": "adapter", "name": "ours", "path": str(adapter)},
            {
                "type": "endpoint", "name": "served", "base_url": served.url, "model": "m",
                "api": "completions", "price": {"prompt": 1e6},
            },
            {
                "type": "endpoint", "name": "chatty", "base_url": other.url, "model": "gpt",
                "choices_by": "text",
            },
        )  # fmt: skip
        result = paft_ray.evaluate(load_config(tree))
        planned = paft_ray.plan(load_config(tree)).data["endpoints"]
        assert paft_ray.run(load_config(tree)).data == result.data  # finished: nothing is sent
    models = result.data["models"]
    assert list(models) == ["base", "ours", "served", "chatty"]
    figures = ("accuracy", "std", "worst_prompt", "calibration_error", "consistency")
    known = [figure for figure in figures if figure in models["ours"]]
    assert len(known) > 2
    for figure in known:
        assert models["served"][figure] == pytest.approx(models["ours"][figure], abs=1e-4)
    about = models["served"]["endpoint"]
    assert (about["requests"], about["attempts"]) == (36, 36)
    assert about["cost"] == about["prompt_tokens"] > 300
    assert models["chatty"]["endpoint"]["reasoned"] == sum(
        "<think>" in row["generated_text"] or row["prediction"] == "negative."
        for row in pq.read_table(tmp_path / "storage/runs/small/scores.parquet").to_pylist()
        if row["variant"] == "chatty"
    )
    assert "calibration_error" not in models["chatty"] or (
        models["chatty"]["calibration_error"] is None
    )
    notes = f"chatty: gpt at {other.url}; choices are graded by what it writes"
    assert notes in result.text
    assert notes in (tmp_path / "storage/runs/small/report.html").read_text()
    assert [row["to_send"] for row in planned] == [0, 0]
    assert [row["requests"] for row in planned] == [36, 18]
    assert len(served.calls) == 36 and len(other.calls) == 18


CHAT = {
    "type": "endpoint", "base_url": "http://127.0.0.1:9/v1", "model": "m", "choices_by": "text",
}  # fmt: skip


@pytest.mark.usefixtures("warm_checks")
def test_plan_counts_requests_tokens_and_cost_of_endpoints(
    make_tree, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    priced = {**CHAT, "price": {"prompt": 1.0, "completion": 10.0}, "max_tokens": 20}
    ranked = {
        **priced, "api": "completions", "choices_by": "logprobs", "name": "ranked",
        "requests_per_minute": 6, "budget_tokens": 30,
    }  # fmt: skip
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(make_tree(priced, ranked)), encoding="utf-8")
    assert call(["plan", str(path), "--json"]) == 0
    chat, ranks = json.loads(capfd.readouterr().out)["endpoints"]
    assert (chat["subject"], chat["requests"], chat["to_send"]) == ("endpoint", 18, 18)
    assert (chat["completion_tokens_at_most"], ranks["completion_tokens_at_most"]) == (360, 30)
    assert 18 * 5 < chat["prompt_tokens_about"] < 18 * 40
    cost = (chat["prompt_tokens_about"] + 10 * 360) / 1e6
    assert chat["cost_at_most"] == pytest.approx(cost, abs=1e-4)
    assert (ranks["requests"], ranks["minutes_about"]) == (36, 6.0)
    assert not (tmp_path / "storage").exists()


def test_run_without_variants_needs_no_section_about_training(make_tree) -> None:
    config = load_config(make_tree())
    assert config.trainings == ()
    with pytest.raises(ConfigError, match="train: "):
        load_config(make_tree(variants=[{"type": "paft"}]))


def test_model_may_be_left_out_where_all_models_are_behind_endpoints(make_tree) -> None:
    def without(*subjects: dict[str, Any], **changes: Any) -> Config:
        tree = make_tree(*subjects, **changes)
        del tree["model"]
        return load_config(tree)

    ensemble = {"type": "ensemble", "of": "endpoint", "prompts": 2}
    config = without(CHAT, ensemble)
    assert not config.has_base
    shown = without_unread(dump_config(config))
    assert "model" not in shown
    assert load_config(shown) == load_config(dump_config(config)) == config
    for subjects in (
        (),
        (CHAT, {"type": "model", "path": "x"}),
        ({"type": "adapter", "path": "x"},),
    ):
        with pytest.raises(ConfigError, match="model: is left out"):
            without(*subjects)
    with pytest.raises(ConfigError, match="'base' is no model that is measured"):
        without(CHAT, {**ensemble, "of": "base"})
    with pytest.raises(ConfigError, match="model: missing"):
        without(CHAT, variants=[{"type": "paft"}], train={"steps": 1})
    vllm = {"subjects": [CHAT], "backend": {"type": "vllm"}}
    with pytest.raises(ConfigError, match=r"evaluation.backend: loads the model"):
        without(evaluation=vllm)


@pytest.mark.usefixtures("warm_checks")
@pytest.mark.parametrize(
    ("subject", "words"),
    [
        ({"type": "adapter", "path": "nowhere"}, ["evaluation.subjects.0.path", "nowhere"]),
        ({"type": "model", "path": "/nowhere"}, ["evaluation.subjects.0.path", "/nowhere"]),
        ({"type": "adapter", "name": "base", "path": "x"}, ["evaluation.subjects.0", "base"]),
        ({"type": "weights", "path": "x"}, ["evaluation.subjects.0", "weights"]),
        (
            {"type": "model", "path": "owner/model", "trust_remote_code": True},
            ["evaluation.subjects.0.revision", "commit"],
        ),
        (
            {**CHAT, "api_key_env": "PAFT_TEST_NO_SUCH_KEY"},
            ["evaluation.subjects.0.api_key_env", "PAFT_TEST_NO_SUCH_KEY", "not set"],
        ),
        (
            {**CHAT, "choices_by": "logprobs"},
            ["evaluation.subjects.0.choices_by", "choices_by: text", "api: completions"],
        ),
    ],
)
def test_subject_that_is_not_there_exits_2_and_writes_nothing(
    subject, words, make_tree, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(make_tree(subject)), encoding="utf-8")
    for verb in ("evaluate", "run", "plan"):
        assert call([verb, str(path)]) == 2
        said = capfd.readouterr().err
        assert all(word in said for word in words), said
    assert not (tmp_path / "storage").exists()


@pytest.mark.usefixtures("warm_checks")
def test_adapter_of_another_shape_is_refused_before_anything_starts(
    make_tree, adapter_of, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = adapter_of("LORA")
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["r"] = 2 * LORA["r"]
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(make_tree({"type": "adapter", "path": str(folder)})))
    assert call(["plan", str(path)]) == 2
    said = capfd.readouterr().err
    assert "evaluation.subjects.0.path" in said
    assert "lora_A" in said
    assert not (tmp_path / "storage").exists()


@pytest.mark.filterwarnings("ignore:Setting .save_embedding_layers. to .True.:UserWarning")
@pytest.mark.usefixtures("warm_checks")
@pytest.mark.parametrize("method", [*METHODS, *MORE_METHODS])
def test_adapter_of_any_method_that_peft_stored_is_accepted(
    method: str, make_tree, adapter_of, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(make_tree({"type": "adapter", "path": str(adapter_of(method))})))
    assert call(["plan", str(path), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["evaluation"]["models"] == 2


@pytest.mark.usefixtures("warm_checks")
def test_plan_of_a_run_without_variants_speaks_of_no_training(
    make_tree, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(make_tree()), encoding="utf-8")
    unread = ["train.steps=5", "train.workers.num=4096"]
    assert call(["plan", str(path), *unread, "--json"]) == 0
    plan = json.loads(capfd.readouterr().out)
    assert plan["evaluation"] == {"models": 1, "prompts": 3, "examples": 6, "answers": 18}
    assert plan["workers"] == {"evaluate": 1}
    assert plan["arithmetic"] == {"evaluate": "float32"}
    assert plan["sizes"].keys() == {"parameters"}
    assert not plan.keys() & {"training", "sequences_per_training", "adapter", "validation"}


@pytest.mark.usefixtures("warm_checks")
def test_configuration_of_a_run_without_variants_shows_nothing_that_nobody_reads(
    make_tree, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(make_tree()), encoding="utf-8")
    assert call(["evaluate", str(path), "--print-config", "--json"]) == 0
    shown = json.loads(capfd.readouterr().out)
    assert "train" not in shown
    assert "peft" not in shown["model"]
    assert load_config(shown).evaluation == load_config(make_tree()).evaluation
    assert call(["run", str(path), "variants=[{type: paft}]", "--print-config", "--json"]) == 2
    assert "train: missing" in capfd.readouterr().err


@pytest.mark.usefixtures("warm_checks")
def test_further_evaluation_needs_a_run_and_trains_nothing(
    make_tree, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(make_tree()), encoding="utf-8")
    for verb in ("evaluate", "run", "train", "plan"):
        assert call([verb, str(path), "evaluation.name=more"]) == 2
        assert "evaluation.name" in capfd.readouterr().err
    assert not (tmp_path / "storage").exists()


def test_two_subjects_without_names_are_told_apart(make_tree) -> None:
    subject = {"type": "adapter", "path": "x"}
    with pytest.raises(ConfigError, match="a name of its own"):
        load_config(make_tree(subject, subject))
