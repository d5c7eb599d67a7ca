"""A run whose model has Python files of its own and a chat template, as nodes see it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from factories import run_config
from own_code import write_own_code

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>"
    "{% else %}<think>{% endif %}{% endif %}"
)


@pytest.mark.ray
@pytest.mark.slow
def test_run_trains_and_scores_own_code_through_its_template_without_thinking(
    tiny_model: Path, review_file: Path, tmp_path: Path
) -> None:
    trace = tmp_path / "ran.txt"
    model = write_own_code(tmp_path / "own_code_of_a_test", tiny_model, trace)
    (model / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    about = run_config(
        model,
        review_file,
        tmp_path / "storage",
        model={"trust_remote_code": True, "chat_template": "auto", "system": "You judge films."},
        task={"max_length": 300},
        train={"steps": 2},
        variants=[{"type": "paft"}],
        evaluation={"prompts": 2, "examples": 8},
    )
    (tmp_path / "config.yaml").write_text(json.dumps(about), encoding="utf-8")

    def paft(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "paft_ray.cli", *words],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip

    ran = paft("run", "config.yaml", "model.trust_remote_code=false")
    assert ran.returncode == 2 and "trust_remote_code: true" in ran.stderr
    assert not trace.exists() and not (tmp_path / "storage").exists()
    ran = paft("run", "config.yaml")
    assert ran.returncode == 0, ran.stderr
    assert "modeling_own.py" in trace.read_text()
    folder = tmp_path / "storage" / "runs" / "small"
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["models"]["paft"]["packing"].startswith("packed")
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "thinking" in page and "enable_thinking" in page
    made = paft("export", "config.yaml", "--variant", "paft", "--merge", "--out", "merged")
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "merged" / "modeling_own.py").is_file()
