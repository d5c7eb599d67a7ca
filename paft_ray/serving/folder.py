"""Writes the folder of an MLflow pyfunc: code, signature and adapter, without the base model."""

import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paft_ray.config import Config
from paft_ray.config.task import CHOICES_SLOT
from paft_ray.tasks import Task

PYFUNC_FOLDER = "model"
"""Artifact folder in a training's MLflow run: `runs:/<id>/model`."""

_CODE = '''"""Answers questions of one task; needs paft_ray where it is loaded."""

from mlflow.models import set_model

from paft_ray.serving.model import AnswerModel

set_model(AnswerModel())
'''
_REQUIREMENTS = ("paft_ray", "torch", "transformers", "peft")


def input_columns(slots: tuple[str, ...]) -> tuple[str, str]:
    """Return names, which no field has, of the columns for a finished prompt and for a template."""
    text = _free("text", "finished_prompt", slots)
    return text, _free("prompt", "prompt_template", slots)


def _free(name: str, other: str, slots: tuple[str, ...]) -> str:
    """Return the name that no slot has: `name`, `other`, or that with underscores."""
    while name in slots:
        name, other = other, f"{other}_"
    return name


def model_config(config: Config, task: Task, prompt: str) -> dict[str, Any]:
    """Return the settings of `AnswerModel`, which its users may override.

    `prompt` is the template for rows that name none.
    """
    return {
        "base": config.model.path,
        "revision": config.model.revision,
        "trust_remote_code": config.model.trust_remote_code,
        "device": "auto",
        "dtype": config.model.dtype,
        "quantization": config.model.quantization,
        "prompt": prompt,
        "slots": list(task.slots),
        "option_slots": dict(task.option_slots),
        "lint": config.prompts.lint.model_dump(),
        "choices": list(task.choices) if task.choices else None,
        "choices_as": task.choices_as,
        "chat_template": config.model.chat_template,
        "chat_template_kwargs": config.model.chat_template_kwargs,
        "system": config.model.system,
        "max_length": config.task.max_length,
        "overlong": config.task.overlong,
        "answer_end": config.task.answer_end,
        "stop": list(config.task.stop),
        "row_tokens": config.evaluation.row_tokens,
        "packing": config.train.packing,
        "max_new_tokens": config.evaluation.max_new_tokens,
    }


def pyfunc_files(
    settings: Mapping[str, Any], adapter: Mapping[str, bytes], versions: Mapping[str, str]
) -> dict[str, bytes]:
    """Return the files of the pyfunc folder by name.

    Args:
        settings: From `model_config`.
        adapter: Files of `adapter/`.
        versions: Versions of packages, for the folder's requirements.
    """
    with tempfile.TemporaryDirectory(prefix="paft-pyfunc-") as temporary:
        source, target = Path(temporary, "source"), Path(temporary, "target")
        for name, data in adapter.items():
            path = source / "adapter" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        code = source / "answer_model.py"
        code.write_text(_CODE, encoding="utf-8")
        with warnings.catch_warnings():
            # mlflow warns of missing type hints and examples, also of its own
            warnings.simplefilter("ignore")
            import mlflow.pyfunc

            mlflow.pyfunc.save_model(
                str(target),
                python_model=str(code),
                artifacts={"adapter": str(source / "adapter")},
                signature=_signature(settings),
                pip_requirements=[
                    f"{name}=={versions[name].partition('+')[0]}"  # without the name of a build
                    for name in _REQUIREMENTS
                    if name in versions
                ],
                model_config=dict(settings),
            )
        record = target / "MLmodel"  # without the temporary folders
        text = record.read_text("utf-8").replace(f"{source}/", "").replace(str(source), "")
        record.write_text(text, encoding="utf-8")
        files = (path for path in sorted(target.rglob("*")) if path.is_file())
        return {path.relative_to(target).as_posix(): path.read_bytes() for path in files}


def _signature(settings: Mapping[str, Any]) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    slots = tuple(settings["slots"])
    given = [CHOICES_SLOT] if settings.get("choices_as") == "texts" else []
    columns = (*slots, *given, *input_columns(slots))
    return ModelSignature(
        inputs=Schema([ColSpec("string", name, required=False) for name in columns]),
        outputs=Schema([ColSpec("string", "answer")]),
        params=ParamSchema([ParamSpec("prompt", "string", settings["prompt"])]),
    )
