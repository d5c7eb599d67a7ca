"""A model folder with Python files of its own, which leave a trace where they run."""

import json
import shutil
from pathlib import Path
from typing import Any

_CODE = {
    "configuration_own.py": (
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n",
        "from transformers import LlamaConfig\n",
    ),
    "modeling_own.py": (
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n",
        "from transformers import LlamaForCausalLM\nfrom .configuration_own import OwnConfig\n",
    ),
    "tokenization_own.py": (
        "class OwnTokenizer(PreTrainedTokenizerFast):\n    pass\n",
        "from transformers import PreTrainedTokenizerFast\n",
    ),
}


def edit_json(path: Path, **changes: Any) -> None:
    """Change fields of a file that holds one object."""
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), encoding="utf-8")


def write_own_code(folder: Path, model: Path, trace: Path) -> Path:
    """Copy a Llama into a folder whose Python files append their names to `trace`."""
    shutil.copytree(model, folder)
    for name, (code, imports) in _CODE.items():
        leave = f"open({str(trace)!r}, 'a').write({name!r})\n"
        (folder / name).write_text(imports + leave + code, encoding="utf-8")
    edit_json(
        folder / "config.json",
        model_type="own",
        architectures=["OwnModel"],
        auto_map={
            "AutoConfig": "configuration_own.OwnConfig",
            "AutoModel": "modeling_own.OwnModel",
            "AutoModelForCausalLM": "modeling_own.OwnModel",
        },
    )
    edit_json(
        folder / "tokenizer_config.json",
        tokenizer_class="OwnTokenizer",
        auto_map={"AutoTokenizer": [None, "tokenization_own.OwnTokenizer"]},
    )
    return folder
