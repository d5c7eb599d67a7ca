"""A training through Ray Train that its own scores end, and that keeps its best checkpoint."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from safetensors.torch import load_file
from small_training import TEMPLATES, TellingScreen, small_config

from factories import make_prompt
from paft_ray.config.loading import dump_config, load_config
from paft_ray.pipeline.perform import open_context
from paft_ray.prompts.pool import PromptPool
from paft_ray.runs.progress import Stage
from paft_ray.serving.record import TrainedAdapter
from paft_ray.training.distributed.trainer import train
from paft_ray.training.validation import read_results

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@dataclass
class KeepingScreen(TellingScreen):
    """Keeps the stages too."""

    stages: list[Stage] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        with super().stage(name) as stage:
            self.stages.append(stage)
            yield stage


def test_training_that_scores_end_saves_its_best_step_and_is_complete(
    tiny_model: Path, review_file: Path, tmp_path: Path, ray_cluster: None
) -> None:
    plain = small_config(str(tiny_model), str(review_file), str(tmp_path), 200)
    tree = dump_config(plain)
    tree["train"]["validation"] = {"every_steps": 2, "patience": 2, "examples": 8, "prompts": 2}
    tree["train"]["checkpoint"]["keep"] = 1
    config = load_config(tree)
    texts = ("{review}\nMood:", "What of this? {review} ->")
    validation = tuple(make_prompt(text, "validation") for text in texts)
    prompts = tuple(map(make_prompt, TEMPLATES))

    def run() -> tuple[TrainedAdapter, str]:
        screen = KeepingScreen()
        context = open_context(config, screen=screen)
        pool = PromptPool(prompts, validation, ())
        return train(context, prompts, config.trainings[0], pool), screen.stages[-1].outcome

    trained, outcome = run()
    record, scored = trained.record, trained.record.validated
    assert scored is not None
    results = read_results(trained.folder)
    means = {step: float(correct_PE.mean()) for step, correct_PE in results.items()}
    assert scored.best == max(means, key=lambda step: (means[step], -step))
    assert scored.figure == means[scored.best]
    assert (scored.planned, scored.prompts, scored.examples) == (200, 2, 8)
    assert record.steps == max(means) == scored.best + 4 < 200
    assert f"ended after {record.steps} of 200 steps" in outcome
    assert f"best after step {scored.best} with mean accuracy {scored.figure:.1%}" in outcome
    folder = Path(trained.folder.path())
    saved = {path.name for path in (folder / "checkpoints").iterdir()}
    assert saved == {f"step-{step:09d}" for step in (scored.best, record.steps)}
    [best] = (folder / f"checkpoints/step-{scored.best:09d}").glob("state-*")
    state = load_file(best)
    adapter = load_file(folder / "adapter/adapter_model.safetensors")
    for key, tensor in adapter.items():
        stem, _, end = key.rpartition(".")
        assert state[f"weight/{stem}.default.{end}"].equal(tensor)
    again, outcome = run()
    assert again.reused
    assert again.content == trained.content
    assert outcome.endswith("found complete")
