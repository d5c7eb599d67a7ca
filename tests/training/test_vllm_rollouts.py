"""Rollouts by vLLM in the process that trains: by which adapter, with what, and what stays."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_program import PEFT, make_planner
from test_reinforcement import EVEN, engine_of, grpo

from paft_ray.config.errors import TrainingError
from paft_ray.models.generation import Ending
from paft_ray.models.sampling import Sampling
from paft_ray.models.vllm import EngineOptions
from paft_ray.training.local import train_locally
from paft_ray.training.prompt_weights import UNIFORM
from paft_ray.training.reinforcement.backends import ByTransformers, ByVLLM, Group
from paft_ray.training.reinforcement.rollouts import asked_at
from paft_ray.training.reinforcement.steps import Writer

# vLLM warns of torch's old names when it is imported
pytestmark = [
    pytest.mark.vllm, pytest.mark.timeout(560), pytest.mark.filterwarnings("ignore"),
]  # fmt: skip
OBJECTIVE = grpo(
    rollouts=4, prompts_per_question=2, max_new_tokens=6, truncated="keep", backend={"type": "vllm"}
)


class Training:
    """A training of SmolLM2 on two questions a step, whose rollouts vLLM writes."""

    def __init__(self, model: str, steps: int, learning_rate: float = 1e-3) -> None:
        self.engine, self.train = engine_of(
            model, {**PEFT, "target_modules": ["q_proj", "v_proj", "down_proj"]},
            objective=OBJECTIVE.model_dump(), batch_size=8, steps=steps, weight_decay=0.0,
            learning_rate=learning_rate, schedule={"type": "constant", "warmup_share": 0},
        )  # fmt: skip
        self.planner = replace(make_planner(model, self.train, True), batch_size=8)
        self.tokenizer = self.planner.encoder.tokenizer
        self.options = EngineOptions(
            model, "float32", threads=torch.get_num_threads(), cache_gb=0.2, max_length=96,
            batch_tokens=256,
        )  # fmt: skip

    def run(self, backend: ByVLLM) -> list[dict[str, float]]:
        """Train to the end; the metrics of every step."""
        found: list[dict[str, float]] = []
        report = lambda metrics: found.append(dict(metrics))  # noqa: E731
        train_locally(self.engine, self.planner, self.train, report, EVEN, backend)
        return found

    def shift(self) -> None:
        """Move the adapter far from where it began."""
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in self.engine.trainable().items():
                if "lora_B" in name:
                    parameter += 0.02 * torch.randn(parameter.shape, generator=generator)


@pytest.fixture(scope="module")
def training(smollm: str) -> Training:
    return Training(smollm, 4)


@pytest.fixture(scope="module")
def backend(training: Training) -> Iterator[ByVLLM]:
    before = torch.get_rng_state(), torch.set_num_threads, torch.get_num_threads()
    opened = ByVLLM(training.engine, training.tokenizer, training.options)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (torch.set_num_threads, torch.get_num_threads()) == before[1:]
    yield opened
    opened.close()
    assert torch.distributed.is_initialized()  # vLLM would end the process group of a training


def test_each_batch_is_written_with_the_adapter_of_its_step_and_nothing_else_stays(
    training: Training, backend: ByVLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, seen = backend._vllm, []
    add = engine.add_adapter

    def watched(folder: str) -> Any:
        assert not engine.adapters
        assert [str(path) for path in Path(folder).parent.iterdir()] == [folder]
        request = add(folder)
        weights = Path(folder, "adapter_model.safetensors").read_bytes()
        seen.append((request.lora_name, request.lora_int_id, folder, weights))
        assert engine.adapters == {request.lora_int_id}
        return request

    monkeypatch.setattr(engine, "add_adapter", watched)
    training.shift()
    metrics = training.run(backend)
    assert [len(set(values)) for values in zip(*seen, strict=True)] == [4, 4, 4, 4]
    assert not engine.adapters
    assert not list(Path(backend._disk.name).iterdir())
    assert all(0 < step["train/k3/backend"] < 1e-3 for step in metrics)
    assert all(step["train/gradient_norm"] > 0 for step in metrics)


def test_rollouts_follow_their_seeds_and_have_the_models_probabilities(
    training: Training, backend: ByVLLM
) -> None:
    warm = OBJECTIVE.model_copy(update={"decoding_temperature": 0.7})
    writer = Writer(training.planner, warm, EVEN, training.engine, backend=backend)
    asked = asked_at(training.planner, warm, 3, UNIFORM)
    together = writer.write(3, asked)
    assert writer.write(3, asked) == together
    apart = [r for one in reversed(asked) for r in writer.write(3, [one])]
    apart.sort(key=lambda r: r.slot)
    assert [r.sampled.token_ids for r in apart] == [r.sampled.token_ids for r in together]
    assert len({r.sampled.token_ids for r in together}) > 4
    for rollout in together:
        text = rollout.sampled
        ids = torch.tensor([[*rollout.context, *text.token_ids]])
        with training.engine.evaluating() as model, torch.no_grad():
            logits_TV = model(input_ids=ids).logits[0, len(rollout.context) - 1 : -1] / 0.7
        own = logits_TV.log_softmax(-1).gather(1, torch.tensor(text.token_ids)[:, None])[:, 0]
        assert own.tolist() == pytest.approx(text.logprobs, abs=1e-3)


def test_texts_end_where_those_of_transformers_end(training: Training, backend: ByVLLM) -> None:
    stop = (".", "\n", " the")
    contexts = [
        tuple(training.tokenizer(text)["input_ids"])
        for text in ("The capital of France is", "One, two,", "Tell a story:", "Good\nBad\n")
    ]
    groups = [Group(context, 2, 5) for context in contexts]
    cold = Sampling(3, 1e-3, Ending((training.tokenizer.eos_token_id,), stop))
    own = list(ByTransformers(training.engine, training.tokenizer).sample(groups, cold))
    found = list(backend.sample(groups, cold))
    assert [[replace(t, logprobs=()) for t in g] for g in found] == [
        [replace(t, logprobs=()) for t in g] for g in own
    ]
    assert {text.ended for group in own for text in group} == {True, False}
    assert all(len(t.logprobs) == len(t.token_ids) for group in found for t in group)


def test_more_questions_than_are_read_at_once_are_written_as_each_alone(
    training: Training, backend: ByVLLM
) -> None:
    contexts = [tuple(range(100 * number + 10, 100 * number + 90)) for number in range(6)]
    assert sum(map(len, contexts)) > (training.options.batch_tokens or 0)
    groups = [Group(context, 2, 9 * number) for number, context in enumerate(contexts)]
    together = list(backend.sample(groups, Sampling(4)))
    alone = [texts for group in groups for texts in backend.sample([group], Sampling(4))]
    assert [[t.token_ids for t in own] for own in together] == [
        [t.token_ids for t in own] for own in alone
    ]


def test_engine_that_keeps_the_adapter_of_an_earlier_step_is_refused(
    training: Training, backend: ByVLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, first = backend._vllm, []
    add, remove = engine.add_adapter, engine.remove_adapter

    def stale(folder: str) -> Any:
        if not first:
            first.append(add(folder))
        return first[0]

    fast = training.train.model_copy(update={"learning_rate": 0.01})
    monkeypatch.setattr(training, "train", fast)
    monkeypatch.setattr(engine, "add_adapter", stale)
    monkeypatch.setattr(engine, "remove_adapter", lambda adapter: None)
    with pytest.raises(TrainingError, match=r"step [234]: .* not the model that learns from them"):
        training.run(backend)
    remove(first[0])


@pytest.mark.slow
def test_twenty_steps_stay_the_models_own_and_a_new_engine_writes_what_the_last_one_did(
    smollm: str,
) -> None:
    training = Training(smollm, 20)
    asked = asked_at(training.planner, OBJECTIVE, 20, UNIFORM)
    written = []
    for steps in (20, 0):  # as after a restart, with an engine that has written nothing yet
        backend = ByVLLM(training.engine, training.tokenizer, training.options)
        if steps:
            metrics = training.run(backend)
            assert len(metrics) == steps
            assert max(step["train/k3/backend"] for step in metrics) < 1e-3
        writer = Writer(training.planner, OBJECTIVE, EVEN, training.engine, backend=backend)
        written.append(writer.write(20, asked))
        backend.close()
    assert written[0] == written[1]
