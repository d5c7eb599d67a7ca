"""Loss and gradient of GRPO against TRL's trainer on the same tensors."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rank_program import PEFT, make_planner, train_config
from test_reinforcement import rewards, rollout

from paft_ray.config import GRPO, VLLMRollouts
from paft_ray.models.load import load_base, load_tokenizer, make_trainable
from paft_ray.training.engine import Engine
from paft_ray.training.objective import row_loss
from paft_ray.training.prompt_weights import UNIFORM
from paft_ray.training.reinforcement.advantages import advantages
from paft_ray.training.reinforcement.rollouts import asked_at
from paft_ray.training.reinforcement.steps import Writer, batch_plan

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
CONTEXT = (5, 6)
TEXTS = [[7, 8, 9], [7], [10, 11], [9, 9, 9, 9], [12, 7], [8]]
VLLM = {"type": "vllm", "ratio_cap": 1.3}
REWARDS = [1.0, 0.0, 0.25, 0.75, 1.0, 0.0]


@pytest.fixture(scope="module")
def trainer_at(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[float], Any]:
    """TRL's trainer at a decoding temperature."""
    return cache(lambda temperature: make_trainer(tiny_model, tmp_path_factory, temperature))


def make_trainer(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, temperature: float
) -> Any:
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    model = make_trainable(load_base(str(tiny_model)), PEFT, seed=5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    options = trl.GRPOConfig(
        str(tmp_path_factory.mktemp("trl")), report_to=[], use_cpu=True, bf16=False,
        num_generations=3, per_device_train_batch_size=6, max_completion_length=4,
        epsilon_high=0.28, temperature=temperature, use_bias_correction_kl=False,
    )  # fmt: skip
    return trl.GRPOTrainer(
        model, [lambda completions, **_: [0.0] * len(completions)], options,
        Dataset.from_dict({"prompt": ["a", "b"]}), processing_class=load_tokenizer(str(tiny_model)),
    )  # fmt: skip


def as_trl_reads_it(plan: Any, before: torch.Tensor | None, reference: torch.Tensor | None) -> dict:
    longest = max(map(len, TEXTS))
    ids, mask = torch.zeros(6, longest, dtype=torch.long), torch.zeros(6, longest)
    for row, text in enumerate(TEXTS):
        ids[row, : len(text)], mask[row, : len(text)] = torch.tensor(text), 1
    inputs = {
        "prompt_ids": torch.tensor([CONTEXT] * 6),
        "prompt_mask": torch.ones(6, 2),
        "completion_ids": ids,
        "completion_mask": mask,
        "advantages": torch.from_numpy(plan.draws.weight_S).float(),
        "num_items_in_batch": mask.sum(),
    }
    for name, flat_A in (("old_per_token_logps", before), ("ref_per_token_logps", reference)):
        if flat_A is not None:
            inputs[name] = torch.zeros(6, longest).masked_scatter(mask.bool(), flat_A)
    return inputs


def gradient_of(loss: torch.Tensor, model: torch.nn.Module) -> torch.Tensor:
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained)])


@pytest.mark.parametrize("scale", ["none", "std"])
@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ({"loss_type": "dapo"}, {}),
        ({"loss_type": "dr_grpo"}, {"normalize": "constant"}),
        ({"loss_type": "dapo", "beta": 0.3}, {"kl": 0.3}),
        ({"loss_type": "dr_grpo", "beta": 0.3}, {"kl": 0.3, "normalize": "constant"}),
        ({"loss_type": "dapo"}, {"updates": 2}),
        ({"loss_type": "dapo"}, {"decoding_temperature": 0.6}),
        ({"loss_type": "dapo", "beta": 0.3}, {"kl": 0.3, "backend": VLLM}),
        ({"loss_type": "dapo"}, {"updates": 2, "backend": VLLM}),
    ],
)
def test_loss_and_gradient_are_those_of_trl(
    trainer_at: Callable[[float], Any], tiny_model: Path, options: dict, settings: dict, scale: str
) -> None:
    objective = GRPO.model_validate(
        {"type": "grpo", "rollouts": 3, "max_new_tokens": 4, "scale": scale, **settings}
    )
    train = train_config({"train": {"objective": objective.model_dump(), "row_tokens": 200}})
    trainer = trainer_at(objective.decoding_temperature)
    engine = Engine(trainer.model, train, "float32", deepspeed=False)
    planner = replace(make_planner(str(tiny_model), train, True), batch_size=6)
    writer = Writer(planner, objective, rewards("a"), engine)
    texts = [rollout(n, *pair) for n, pair in enumerate(zip(TEXTS, REWARDS, strict=True))]
    plan = batch_plan(writer, 0, asked_at(planner, objective, 0, UNIFORM), texts, UNIFORM)
    [row], policy = plan.rows, plan.policy
    assert policy is not None and row.members == tuple(range(6))
    now_A = engine._logprobs(row)
    apart_A = torch.linspace(-0.5, 0.5, len(now_A))
    before = now_A.detach() + apart_A if objective.updates > 1 else None
    if before is not None:
        policy.before[row.members] = before
    reference = now_A.detach() - apart_A if objective.kl else None
    if reference is not None:
        policy.reference[row.members] = reference
    other_A = torch.linspace(1, -1, len(now_A))  # what the model thinks likelier than vLLM did
    drawn = iter(((now_A.detach() if before is None else before) - other_A).tolist())
    texts = [
        replace(t, sampled=replace(t.sampled, logprobs=tuple(islice(drawn, len(tokens)))))
        for t, tokens in zip(texts, TEXTS, strict=True)
    ]
    plan = replace(plan, policy=replace(policy, rollouts=tuple(texts)))
    ours = row_loss(objective, now_A, row, plan).loss
    found = gradient_of(ours, trainer.model)

    trainer.loss_type, trainer.beta = options["loss_type"], options.get("beta", 0.0)
    trainer.use_vllm = objective.backend.type == "vllm"
    trainer.model.eval()  # else it divides by a count that its own loop sets
    weight_S = plan.draws.weight_S
    given = as_trl_reads_it(plan, before, reference)
    given["advantages"] = torch.from_numpy(weight_S / policy.per_token).float()
    if isinstance(objective.backend, VLLMRollouts):
        mask, ratio_A = given["completion_mask"], other_A.exp().clamp(max=VLLM["ratio_cap"])
        given["importance_sampling_ratio"] = mask.masked_scatter(mask.bool(), ratio_A)
    theirs = trainer._compute_loss(trainer.model, given)
    if objective.updates > 1:  # on-policy TRL writes 1 for what has the gradient of log pi
        assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-4)
    expected = gradient_of(theirs, trainer.model)
    assert float((found - expected).norm() / expected.norm()) < 1e-4


def test_advantages_are_those_of_trl() -> None:
    trl = pytest.importorskip("trl.trainer.grpo_trainer")
    reward_QG = np.array(REWARDS).reshape(2, 3)
    given = torch.from_numpy(reward_QG)
    expected = (given - given.mean(1, keepdim=True)) / (trl.nanstd(given, 1).unsqueeze(1) + 1e-4)
    assert advantages(reward_QG, "std")[0] == pytest.approx(expected.numpy(), rel=1e-9)
