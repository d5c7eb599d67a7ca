"""Python files of a model run only where they are trusted, and nobody is asked on the terminal."""

import ast
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import paft_ray
from factories import LORA, run_config
from own_code import edit_json, write_own_code
from paft_ray.cli import call
from paft_ray.config.errors import ConfigError
from paft_ray.models.full import full_model_files
from paft_ray.models.load import load_base, load_tokenizer
from paft_ray.models.meta import check_adapters, count_weights
from paft_ray.models.pretrained import read_encoder, read_model
from paft_ray.prompts.coverage import embed


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """Where the model's Python files write their names."""
    return tmp_path / "ran.txt"


@pytest.fixture
def own_code(tiny_model: Path, tmp_path: Path, ran: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model folder with Python files that leave a trace; whoever asks for input is told yes."""
    folder = write_own_code(tmp_path / f"own{abs(hash(str(tmp_path)))}", tiny_model, ran)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 100))
    return str(folder)


READERS = {
    "model": lambda path, trust: load_base(path, trust=trust),
    "encoder": lambda path, trust: read_encoder(path, trust=trust),
    "embeddings": lambda path, trust: embed(["a film"], path, trust=trust),
    "checks": lambda path, trust: check_adapters(path, None, [LORA], 0, trust=trust),
}


@pytest.mark.parametrize("reader", READERS)
def test_model_with_python_files_is_refused_unless_trusted(
    reader: str, own_code: str, ran: Path
) -> None:
    with pytest.raises(ConfigError, match=r"Python files .* trust_remote_code: true"):
        READERS[reader](own_code, False)
    assert not ran.exists()
    if reader != "embeddings":  # a causal model has no last_hidden_state to embed with
        READERS[reader](own_code, True)
        assert "modeling_own.py" in ran.read_text("utf-8")


def test_sizes_of_a_model_with_python_files_are_counted_if_it_is_trusted(
    own_code: str, ran: Path, tiny_model: Path
) -> None:
    with pytest.raises(paft_ray.config.errors.PaftError, match="trust_remote_code: true"):
        count_weights(own_code, None, LORA, 0)
    assert not ran.exists()
    assert count_weights(own_code, None, LORA, 0, True) == count_weights(
        str(tiny_model), None, LORA, 0
    )


def test_tokenizer_with_python_files_runs_them_only_if_trusted(own_code: str, ran: Path) -> None:
    edit_json(Path(own_code) / "config.json", model_type="llama", auto_map={})
    with pytest.raises(ConfigError, match="trust_remote_code: true"):
        load_tokenizer(own_code)
    assert not ran.exists()
    assert type(load_tokenizer(own_code, trust=True)).__name__ == "OwnTokenizer"
    assert "tokenization_own.py" in ran.read_text("utf-8")


def test_trained_model_with_python_files_carries_them_and_can_be_loaded(
    own_code: str, tmp_path: Path
) -> None:
    model, tokenizer = load_base(own_code, trust=True), load_tokenizer(own_code, trust=True)
    (tmp_path / "stored").mkdir()
    for name, data in full_model_files(model, dict(model.named_parameters()), tokenizer):
        (tmp_path / "stored" / name).write_bytes(data)
    assert type(load_base(str(tmp_path / "stored"), trust=True)).__name__ == "OwnModel"
    with pytest.raises(ConfigError, match="trust_remote_code: true"):
        load_base(str(tmp_path / "stored"))


def test_code_of_another_repository_is_refused_although_trusted(own_code: str, ran: Path) -> None:
    classes = {"AutoConfig": "owner/other--configuration_own.OwnConfig"}
    edit_json(Path(own_code) / "config.json", auto_map=classes)
    with pytest.raises(ConfigError, match=r"another repository \(owner/other--"):
        load_base(own_code, trust=True)
    assert not ran.exists()


def test_pickled_weights_make_tensors_and_run_nothing(tiny_model: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    folder = tmp_path / "pickled"
    shutil.copytree(tiny_model, folder)
    tensors: dict[str, Any] = dict(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    assert read_model(str(folder)).num_parameters() > 0
    torch.save({**tensors, "trap": Trap()}, folder / "pytorch_model.bin")
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        read_model(str(folder))
    assert not (tmp_path / "ran").exists()


def test_export_runs_python_files_only_if_trusted_and_the_plan_says_so(
    own_code: str, tmp_path: Path, small_run: dict[str, Any], ran: Path, warm_checks: None,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from paft_ray.config.loading import load_config
    from paft_ray.pipeline.perform import open_context
    from paft_ray.prompts.build import build_prompt_pool

    small_run["model"]["path"] = own_code
    (run := tmp_path / "config.yaml").write_text(yaml.safe_dump(small_run), encoding="utf-8")
    trusted = "model.trust_remote_code=true"
    for overrides in ([], [trusted]):
        build_prompt_pool(open_context(load_config(run, overrides)))
    assert call(["export", str(run), "--lm-eval"]) == 2
    err = capfd.readouterr().err
    assert "trust_remote_code: true" in err and "Traceback" not in err
    assert not ran.exists()
    assert call(["export", str(run), trusted, "--lm-eval"]) == 0
    assert ran.exists()
    capfd.readouterr()
    assert call(["plan", str(run), trusted, "--json"]) == 0
    plan = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert plan["python_files_run"] == [f"{own_code} (model.trust_remote_code)"]


@pytest.mark.parametrize(
    ("section", "names"),
    [
        ({"model": {"trust_remote_code": True}}, "model"),
        ({"model": {"trust_remote_code": True, "revision": "main"}}, "model"),
        (
            {"prompts": {"generation": {"llms": [
                {"type": "transformers", "path": "owner/none", "trust_remote_code": True}]}}},
            "prompts.generation.llms.0",
        ),
        (
            {"prompts": {"generation": {"llms": [{"type": "fake"}]}, "coverage": {
                "type": "embeddings", "path": "owner/none", "trust_remote_code": True}}},
            "prompts.coverage",
        ),
    ],
)  # fmt: skip
def test_code_of_the_hub_is_trusted_by_commit_alone(
    section: dict[str, Any], names: str, tmp_path: Path, review_file: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    config = run_config("owner/none", review_file, tmp_path / "storage", **section)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    assert call(["plan", str(tmp_path / "config.yaml")]) == 2
    err = capfd.readouterr().err
    assert f"{names}.revision: " in err and "40 hex digits" in err
    assert not (tmp_path / "storage").exists()


def test_only_one_module_reads_with_transformers() -> None:
    """So that no other can leave out whether Python files are trusted."""
    root = Path(paft_ray.__file__).parent
    for path in root.rglob("*.py"):
        # the check of a base model's files has a model that is built already
        if path in (root / "models/pretrained.py", root / "models/base_check.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("transformers"):
                names = {alias.name for alias in node.names}
                # check_process.py imports one ahead of time
                used = {name for name in names if name.startswith("Auto")}
                assert not used or path.name == "check_process.py", path
            if isinstance(node, ast.Attribute) and node.attr == "from_pretrained":
                assert isinstance(node.value, ast.Name), path
                assert node.value.id in ("PeftModel", "PeftConfig"), path


def test_tensors_of_a_base_model_are_unaffected(own_code: str, tiny_model: Path) -> None:
    ours = load_base(own_code, trust=True).state_dict()
    for name, tensor in load_base(str(tiny_model)).state_dict().items():
        assert ours[name].equal(tensor)
