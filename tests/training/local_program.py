"""Trains where Ray and DeepSpeed are not installed; started by test_local as its own process.

Arguments: a model's folder. The last line of the output holds the losses of every step, as JSON.
"""

import json
import sys
from pathlib import Path
from typing import Any

ABSENT = ("ray", "deepspeed")


class Hiding:
    """Finds no module of a package that is to be absent, and all others."""

    def __init__(self, finder: Any) -> None:
        self._finder = finder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._finder, name)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        absent = name.partition(".")[0] in ABSENT
        return None if absent else self._finder.find_spec(name, path, target)


def main() -> None:
    sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
    sys.path.insert(0, str(Path(__file__).parent))

    import torch
    from rank_program import PEFT, make_planner, train_config

    from paft_ray.models.load import load_base, make_trainable
    from paft_ray.training.engine import Engine
    from paft_ray.training.local import train_locally

    torch.set_num_threads(1)
    train = train_config({})
    model = make_trainable(load_base(sys.argv[1]), PEFT, seed=5)
    engine = Engine(model, train, "float32", deepspeed=False)
    losses: list[float] = []
    planner = make_planner(sys.argv[1], train, packing=True)
    progress = train_locally(engine, planner, train, lambda m: losses.append(m["train/loss"]))
    loaded = sorted(set(sys.modules) & set(ABSENT))
    found = {"losses": losses, "tokens": progress.tokens, "loaded": loaded}
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
