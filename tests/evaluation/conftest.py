"""What the evaluation tests share: adapters that were never trained, but differ from the base."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from paft_ray.models.load import adapter_files, add_adapter, load_base


@pytest.fixture(scope="module")
def save_adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    def save(peft: dict, seed: int = 1) -> str:
        model = add_adapter(load_base(str(tiny_model)), peft, seed)
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
        trainable = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
        folder = tmp_path_factory.mktemp("adapter")
        for name, data in adapter_files(model, trainable, str(tiny_model)).items():
            (folder / name).write_bytes(data)
        return str(folder)

    return save
