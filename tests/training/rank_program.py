"""Ranks of small trainings without Ray, which the fixture `launch` starts."""

import json
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import safetensors.torch
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from peft import PeftModel

from paft_ray.cluster.control import ControlActor, Heartbeat
from paft_ray.config import (
    Config,
    ProfileConfig,
    ScheduleConfig,
    TrainConfig,
    ValidationConfig,
)
from paft_ray.config.loading import load_config
from paft_ray.evaluation.predictors import Predictor
from paft_ray.models.load import (
    adapter_files,
    load_base,
    load_tokenizer,
    make_trainable,
    reads_positions,
    virtual_tokens,
)
from paft_ray.models.logprobs import ForwardPass, score_sequences
from paft_ray.models.narrow import Stored
from paft_ray.models.tokenization import TextEncoder
from paft_ray.prompts.template import parse
from paft_ray.storage.artifacts import ArtifactWriter
from paft_ray.storage.paths import Storage
from paft_ray.tasks import Example, Task
from paft_ray.tasks.grading import Grade, TextGrader
from paft_ray.tracking import NullTracker
from paft_ray.training.batch_plan import Planner, StepPlan, plans
from paft_ray.training.deepspeed_engine import prepare_process
from paft_ray.training.distributed.heartbeat import HangDetector, HeartbeatSender
from paft_ray.training.engine import Engine
from paft_ray.training.ledger import Ledger
from paft_ray.training.loop import LoopHooks, Recipe, Wanted, fit
from paft_ray.training.objective import views
from paft_ray.training.output.save import first_batch, save_and_verify, trainable_copy
from paft_ray.training.output.verify import Base
from paft_ray.training.profiling import recording
from paft_ray.training.prompt_weights import PromptWeights
from paft_ray.training.reinforcement.labellers import open_labeller
from paft_ray.training.reinforcement.own_labels import labelled_plans
from paft_ray.training.reinforcement.rewards import Rewards
from paft_ray.training.reinforcement.steps import Writer, rollout_plans
from paft_ray.training.sampler import PromptSampler
from paft_ray.training.schedule import learning_rate
from paft_ray.training.selection import Selection
from paft_ray.training.state.checkpoint import Checkpoints, Progress, WriteLimits
from paft_ray.training.state.shards import SHARD_BYTES, SMALL_STATE
from paft_ray.training.validation import Validation, ValidationPlan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STEPS = 20
PEFT = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
ASKED = ("{text}\nSo it is:", "Say how it feels: {text} ->", "{text} =")
CHOOSING = ("expected_reward", "consensus")
ANSWERS = ["good", "very bad", "the plot was fine and the acting great", "not"]


class FlushTracker(NullTracker):
    """Leaves in a file what was recorded at each flush, and which checkpoints were whole then."""

    def __init__(self, where: Storage, file: str) -> None:
        self.where, self.file = where, file
        self.steps: list[int] = []
        self.flushes: list[dict[str, list]] = []

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        assert metrics
        self.steps.append(step)

    def flush(self) -> None:
        folder = self.where.child("checkpoints")
        whole = [name for name in folder.names() if folder.child(name).exists("manifest.json")]
        self.flushes.append({"steps": list(self.steps), "checkpoints": whole})
        self.where.write_json(self.file, self.flushes)


def make_planner(folder: str, train: TrainConfig, packing: bool) -> Planner:
    rng = random.Random(1)
    words = [
        "good",
        "bad",
        "fine",
        "awful",
        "great",
        "poor",
        "the",
        "film",
        "movie",
        "plot",
        "was",
        "is",
        "and",
        "very",
    ]
    examples = [
        Example(
            id=f"{number:016x}",
            fields={"text": " ".join(rng.choices(words, k=rng.randint(1, 30)))},
            answer=rng.choice(ANSWERS),
        )
        for number in range(40)
    ]
    texts = ["Tell how it feels: {text}\nAnswer:", "{text}\n\nlabel:", "Read {text} ->"]
    return Planner(
        examples=examples,
        prompts=[(str(i), parse(text, ("text",))) for i, text in enumerate(texts)],
        encoder=TextEncoder(load_tokenizer(folder), max_length=90).ending("scored", choices=True),
        sampler=PromptSampler(3, len(texts), train.sampling),
        seed=3,
        batch_size=6,
        row_tokens=train.row_tokens,
        packing=packing,
        answer_prefix=train.response_prefix_tokens,
        views=views(train.objective),
        choices_of=(lambda example: ANSWERS) if train.objective.type in CHOOSING else None,
    )


def questions(model_folder: str) -> tuple[Config, Task]:
    """What a model is asked on its way, with answers that are one of a few."""
    texts = [f"the film number {number} was a {word} one" for number in range(6) for word in
             ("good", "bad", "fine", "awful")]  # fmt: skip
    examples = [
        Example(id=f"{number:016x}", fields={"text": text}, answer=ANSWERS[number % 2])
        for number, text in enumerate(texts)
    ]
    task = Task(
        name="asked",
        description="How it feels.",
        slots=("text",),
        option_slots={},
        choices=tuple(ANSWERS[:2]),
        train=tuple(examples),
        validation=tuple(examples),
        test=(),
    )
    config = load_config(
        {
            "name": "asked",
            "task": {"type": "builtin", "name": "sst2", "max_length": 90},
            "prompts": {"files": ["none.txt"]},
            "model": {"path": model_folder, "peft": PEFT},
            "train": {"steps": STEPS, "row_tokens": 96},
            "evaluation": {"row_tokens": 400},
        }
    )
    return config, task


def validation(
    engine: Engine, planner: Planner, folder: Storage, model_folder: str, steps: Iterable[int]
) -> Callable[[int], NDArray[np.bool_] | None]:
    config, task = questions(model_folder)
    prompts = tuple((str(i), text) for i, text in enumerate(ASKED))
    plan = ValidationPlan(prompts, task.validation, frozenset(steps))
    predictor = Predictor(config, task, planner.encoder, "float32")

    def quiet(*said: object, **more: object) -> None:
        pass

    return Validation(plan, engine, predictor, folder, quiet).after


def train_plainly(model: torch.nn.Module, planner: Planner, train: TrainConfig, steps: int) -> None:
    """Padded batch, attention mask, all logits, labels of -100: nothing of ours but the data."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1.0, weight_decay=train.weight_decay)
    model.train()
    for step in range(steps):
        batch = []
        for slot in range(planner.batch_size):
            [([sequence], _)] = planner.draw(step, [slot])
            ids = [*sequence.input_ids, sequence.targets[-1]]
            batch.append((ids, len(sequence.targets)))
        longest = max(len(ids) for ids, _ in batch)
        input_ids = torch.zeros(len(batch), longest, dtype=torch.long)
        mask = torch.zeros_like(input_ids)
        labels = torch.full_like(input_ids, -100)
        for row, (ids, answer) in enumerate(batch):
            input_ids[row, : len(ids)] = torch.tensor(ids)
            mask[row, : len(ids)] = 1
            labels[row, len(ids) - answer : len(ids)] = torch.tensor(ids[-answer:])
        loss = model(input_ids=input_ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, train.gradient_clipping)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(train.learning_rate, train.schedule, step, steps)
        optimizer.step()
        optimizer.zero_grad()


def train_config(options: dict) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "steps": STEPS,
            "batch_size": 6,
            "row_tokens": 96,  # several rows a step, of different natural number on two ranks
            "learning_rate": 1e-3 if options.get("full") else 1e-2,
            "weight_decay": 0.01,
            "gradient_clipping": 0.5,
            "schedule": ScheduleConfig(type="linear", warmup_share=0.1, final_share=0.5),
            "deepspeed": {
                "stage": options.get("stage", 1),
                "offload": options.get("offload", "none"),
            },
            **options.get("train", {}),
        }
    )


def mean_loss(model: torch.nn.Module, planner: Planner) -> float:
    """Mean loss per sequence of the first three steps, without dropout."""
    drawn = [own[0] for step in range(3) for own, _ in planner.draw(step, range(6))]
    virtual = virtual_tokens(model)  # pyright: ignore[reportArgumentType]
    reading = ForwardPass("float32", 96, planner.packing, virtual)
    scored = score_sequences(model.eval(), drawn, reading)
    return -sum(by_owner[0] for by_owner in scored) / len(scored)


def judge(
    model: PeftModel,
    weights: dict[str, torch.Tensor],
    planner: Planner,
    base: str,
    folder: Path,
    quantization: str,
) -> dict[str, float]:
    """Losses of a trained adapter, here and as peft loads it from its files.

    `loaded` is on the kind of base that it was trained on, `on_disk` on the base as it is.
    """
    files = adapter_files(model, weights, base)
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    losses = {"after": mean_loss(model, planner)}
    for name, kind in {"loaded": quantization, "on_disk": "none"}.items():
        loaded = PeftModel.from_pretrained(
            load_base(base, stored=Stored(quantization=kind)), str(folder)
        )
        losses[name] = mean_loss(loaded, planner)
    return losses


def run_scenario(options: dict, model_folder: str, folder: Path) -> None:
    """Train as `options` say and leave `<name>.safetensors`, and losses where it is judged."""
    train = train_config(options)
    peft = None if options.get("full") else options.get("peft", PEFT)
    quantization = options.get("quantization", "none")
    stored = Stored(options.get("stored", "float32"), quantization, everything=True)
    base = load_base(model_folder, stored=stored)
    if options.get("full"):  # the harder case: one matrix, used at both ends
        base.get_output_embeddings().weight = base.get_input_embeddings().weight
        base.config.tie_word_embeddings = True
    model = make_trainable(base, peft, seed=5)
    planner = make_planner(model_folder, train, train.packing and reads_positions(model))
    before = mean_loss(model, planner) if options.get("judged") else None
    if options.get("plain"):
        train_plainly(model, planner, train, train.steps or STEPS)
        named = model.named_parameters()
        weights = {n: p.detach().clone() for n, p in named if p.requires_grad}
    else:
        weights = train_on_engine(options, model, planner, train, folder, model_folder)
    if before is not None:
        where = folder / options["name"] / "adapter"
        after = judge(model, weights, planner, model_folder, where, quantization)
        losses = {"before": before, **after}
        (folder / f"{options['name']}.json").write_text(json.dumps(losses))
    if dist.get_rank() == 0:
        safetensors.torch.save_file(weights, folder / f"{options['name']}.safetensors")
    dist.barrier()


class SlowMachine:
    """A machine on which each layer of a model that is verified takes 40 s, and who watches it."""

    def __init__(self) -> None:
        self.now_s, self.control, self.ended = 0.0, ControlActor(), []
        first = Heartbeat(attempt=1, rank=0, ranks=1, node="here", pid=1, phase="saving")
        self.sender = HeartbeatSender(first, self.control.report_heartbeat)
        self.detector = HangDetector(
            60, lambda text: None, self.ended.append, clock=lambda: self.now_s
        )

    @contextmanager
    def computing(self, trained: torch.nn.Module) -> Iterator[None]:
        """Let time pass with every layer but those of the trained model."""
        own = set(trained.modules())

        def ran(layer: torch.nn.Module, *_: object) -> None:
            if layer not in own:
                self.now_s += 40
                self.control.report_heartbeat(self.sender.current)
                self.detector.check(self.control.state())

        hook = torch.nn.modules.module.register_module_forward_hook(ran)
        yield
        hook.remove()


@dataclass(frozen=True, slots=True)
class EvenGrader(TextGrader):
    """1 where a text has an even number of characters."""

    def grade(self, example: Example, text: str, where: str) -> Grade:
        return Grade(float(len(text) % 2 == 0), text)


def plans_of(
    engine: Engine,
    planner: Planner,
    train: TrainConfig,
    steps: tuple[int, int],
    weights: PromptWeights,
) -> Iterator[StepPlan]:
    labeller = open_labeller(train.objective, planner, engine)
    if labeller is not None:
        return labelled_plans(labeller, *steps, weights.for_step)
    if train.objective.type != "grpo":
        return plans(planner, *steps, engine.plan_ranks(), weights.for_step)
    rewards = Rewards((EvenGrader("even"),), (1.0,))
    writer = Writer(planner, train.objective, rewards, engine)
    return rollout_plans(writer, *steps, weights.for_step)


def train_on_engine(
    options: dict,
    model: "PeftModel | PreTrainedModel",
    planner: Planner,
    train: TrainConfig,
    folder: Path,
    model_folder: str,
) -> dict[str, torch.Tensor]:
    beginning = trainable_copy(model)
    slow = SlowMachine()
    state = options.get("small_state", SMALL_STATE)
    deepspeed = options.get("deepspeed", True)
    dtype = options.get("dtype", "float32")
    engine = Engine(model, train, dtype, state, slow.sender.work, deepspeed)
    where = Storage.open(str(folder / options.get("continues", options["name"])))
    checkpoints = Checkpoints(
        where.child("checkpoints"),
        "test",
        keep=options.get("keep", 10),
        group=engine.rank_group(),
        limits=WriteLimits(shard_bytes=options.get("shard_bytes", SHARD_BYTES)),
    )
    progress, steps = Progress(), train.steps or STEPS
    weights = PromptWeights(len(planner.prompts), train.sampling, train.objective)
    selection, scored = None, {10, 20}
    if "selected" in options:
        config = ValidationConfig.model_validate(options["selected"])
        scored = config.steps(steps)
        selection = Selection(config, scored, where, checkpoints)
    restored = checkpoints.load() if selection is None else selection.load()
    if restored is not None:
        progress = restored.progress
        assert 0 < progress.step < steps
        engine.restore(restored.state, progress.step)
        weights.restore(restored.other)
    else:
        assert "continues" not in options
    until = steps if selection is None else selection.until(progress.step, steps)
    score = validation(engine, planner, where, model_folder, scored)

    def validate(step: int) -> Wanted:
        found = score(step)
        return Wanted() if found is None or selection is None else selection.add(step, found)

    stack = ExitStack()
    steps_recorded = options.get("profile")
    profile = None if steps_recorded is None else ProfileConfig(steps=steps_recorded)
    record = stack.enter_context(recording(profile, where, lambda *said: None))
    progress = fit(
        engine,
        plans_of(engine, planner, train, (progress.step, options.get("until", until)), weights),
        progress,
        Recipe(
            steps=steps,
            learning_rate=lambda step: learning_rate(
                train.learning_rate, train.schedule, step, steps
            ),
            every_steps=options.get("every", 1000),
            seed=3,
            objective=train.objective,
        ),
        LoopHooks(
            tracker=FlushTracker(where, f"flushes of {options['name']}.json"),
            checkpoints=checkpoints,
            ledger=Ledger(where, progress.step, [id for id, _ in planner.prompts]),
            weights=weights,
            report=lambda metrics: None,
            recording=record,
            **({"validate": validate} if selection or options.get("validated") else {}),
        ),
    )
    stack.close()
    until = steps if selection is None else selection.until(progress.step, steps)
    if progress.step < until or "until" in options:  # cut off: nothing is saved
        return engine.gather_weights()
    if selection is not None:
        selection.restore_best(engine, progress.step)
        best = selection.best
        assert best is not None
        where.write_json("selected.json", {"steps": progress.step, **asdict(best)})
    quantization = options.get("quantization", "none")
    base = Base(model_folder, None, model_folder, dtype, quantization)
    with slow.computing(model):
        verified = save_and_verify(
            engine, base, first_batch(planner), beginning, ArtifactWriter(where)
        )
    assert (verified is None) == (engine.rank != 0)
    if verified is not None:
        where.write_json("verified.json", asdict(verified))
        where.write_json("hangs.json", {"seconds": slow.now_s, "ended": len(slow.ended)})
    trained = engine.gather_weights()
    if not options.get("judged"):  # what a GPU's memory needs; nothing here uses the model again
        engine.release()
        tensors = [*model.parameters(), *model.buffers()]
        shards = [p.ds_tensor for p in model.parameters() if hasattr(p, "ds_tensor")]
        assert not sum(tensor.numel() for tensor in (*tensors, *shards))
    return trained


def run_rank(settings: Mapping[str, Any]) -> NoReturn:
    """Run the scenarios as one rank, in this process, which ends."""
    rank, ranks, folder = settings["rank"], settings["ranks"], Path(settings["folder"])
    said = os.open(settings["said"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    try:
        torch.set_num_threads(1)
        os.environ.update(LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE=str(ranks))
        meeting = f"file://{folder}/meeting-{ranks}"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=ranks)
        prepare_process("cpu")
        for options in settings["scenarios"]:
            run_scenario(options, settings["model"], folder)
        dist.destroy_process_group()
    except BaseException:  # noqa: BLE001 - what a process of its own would print
        traceback.print_exc()
        sys.stdout.flush()
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)  # threads of gloo that outlive their group have aborted the interpreter's end


def main() -> None:
    """For each line, JSON settings of all ranks, fork these; write their exit codes as JSON.

    Forked, as importing takes longer than most scenarios; nothing has been computed before.
    """
    for line in sys.stdin:
        ranks = []
        for settings in json.loads(line):
            if not (pid := os.fork()):
                run_rank(settings)
            ranks.append(pid)
        codes = []
        while ranks:
            pid, status = os.wait()
            ranks.remove(pid)
            codes.append(os.waitstatus_to_exitcode(status))
            if codes[-1]:  # the others would wait for it
                for other in ranks:
                    os.kill(other, signal.SIGKILL)
        sys.stdout.write(json.dumps(codes) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
