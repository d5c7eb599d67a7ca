"""What the competitors of `train.py` have in common: settings, data, and taking turns."""

import os
import resource
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from multiprocessing.connection import Connection

import psutil
import torch

from paft_ray.config import BuiltinTaskConfig
from paft_ray.models.load import load_tokenizer
from paft_ray.models.tokenization import TextEncoder
from paft_ray.prompts.files import read_prompt_files
from paft_ray.prompts.template import parse
from paft_ray.tasks import load_task
from paft_ray.training.batch_plan import Planner
from paft_ray.training.sampler import PromptSampler

PEFT = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}
LEARNING_RATE = 5e-4
CLIPPING = 1.0
REFERENCE = "engine"
"""The competitor that is in every group."""
Turn = tuple[float, float, int, list[float], int]
"""Wall seconds, CPU-seconds, useful tokens, losses, most bytes of memory that it had so far."""
PROMPTS = (
    "Goal: {goal}\nA. {sol1}\nB. {sol2}\nAnswer:",
    "Which of the two solutions works in the real world?\nQuestion: {goal}\nA. {sol1}\nB. {sol2}\n"
    "Answer:",
    "{goal}\n\nA: {sol1}\nB: {sol2}\n\nUse your common sense and choose A or B. Choice:",
    "Decide with common sense which option reaches the goal.\nOption A: {sol1}\nOption B: {sol2}\n"
    "Goal: {goal}\nThe option is",
)


@dataclass(frozen=True)
class Setup:
    """What a competitor is told; JSON-ready."""

    name: str
    location: str
    """Folder of the prepared base model."""
    task_path: str
    prompts: str | None
    dtype: str
    batch_size: int
    row_tokens: int
    steps: int
    """Optimizer steps in all."""

    @property
    def device(self) -> torch.device:
        """Where all competitors train."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass
class Turns:
    """A competitor's end of the line: waits for its turn, and measures what it does in it."""

    connection: Connection
    _left: int = 0
    _started: tuple[float, float] | None = None
    _tokens: int = 0
    _losses: list[float] = field(default_factory=list)

    def before_step(self) -> None:
        """Return when there is a step to do."""
        if not self._left:
            self.finish()
            self._left = self.connection.recv()
            self._started = time.perf_counter(), cpu_seconds()
        self._left -= 1

    def after_step(self, tokens: int, loss: float) -> None:
        """Record a step."""
        self._tokens += tokens
        self._losses.append(loss)

    def finish(self) -> None:
        """Report the turn that just ended, if there was one."""
        if self._started is None:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        wall, cpu = time.perf_counter() - self._started[0], cpu_seconds() - self._started[1]
        self.connection.send((wall, cpu, self._tokens, self._losses, peak_memory()))
        self._started, self._tokens, self._losses = None, 0, []


def peak_memory() -> int:
    """Most bytes that this process had: resident ones, or on a GPU those of tensors."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def cpu_seconds() -> float:
    """CPU time of this process with all threads; in a Ray worker also that of Ray's own ones."""
    return sum(sum(process.cpu_times()[:2]) for process in _processes())


@cache
def _processes() -> list[psutil.Process]:
    """Found once: looking through all processes of a machine takes as long as part of a step."""
    if "RAY_RAYLET_PID" not in os.environ:
        return [psutil.Process()]
    raylet = psutil.Process(int(os.environ["RAY_RAYLET_PID"]))
    driver = raylet.parent() or raylet
    train = psutil.Process()
    return [driver, *(p for p in driver.children(recursive=True) if p != train), train]


def make_planner(setup: Setup) -> Planner:
    """The examples and prompts of every step; what all competitors train on."""
    options = {"type": "builtin", "name": "piqa", "path": setup.task_path}
    task = load_task(BuiltinTaskConfig.model_validate(options), seed=0)
    texts = read_prompt_files(setup.prompts) if setup.prompts else PROMPTS
    encoder = TextEncoder(load_tokenizer(setup.location), max_length=512, overlong="trim")
    return Planner(
        examples=task.train,
        prompts=[(str(number), parse(text, task.slots)) for number, text in enumerate(texts)],
        encoder=encoder,
        sampler=PromptSampler(seed=0, prompts=len(texts)),
        seed=0,
        batch_size=setup.batch_size,
        row_tokens=setup.row_tokens,
        packing=True,
    )


@dataclass
class Found:
    """What was measured in one dtype."""

    turns: dict[str, list[Turn]] = field(default_factory=dict)
    """Of every competitor; of the reference those of all groups."""
    beside: dict[str, list[Turn]] = field(default_factory=dict)
    """The reference's turns in the same rounds."""
    rates: list[float] = field(default_factory=list)
    """Matrix rates."""


def groups(setups: Sequence[Setup], resident: int) -> list[list[Setup]]:
    """Split competitors so that few are in memory at once, one of them always."""
    names = [setup.name for setup in setups]
    reference = setups[names.index(REFERENCE) if REFERENCE in names else 0]
    others = [setup for setup in setups if setup is not reference]
    size = max(1, resident - 1)
    starts = range(0, max(1, len(others)), size)
    return [[reference, *others[start : start + size]] for start in starts]


def speeds_of(turns: Sequence[Turn]) -> list[float]:
    """Useful tokens per second of every turn."""
    gpu = torch.cuda.is_available()
    return [tokens / (wall if gpu else cpu) for wall, cpu, tokens, _, _ in turns]


def relative(found: Found) -> dict[str, float]:
    """Speed of every competitor as a multiple of the reference's, the median over rounds."""
    return {
        name: statistics.median(
            own / its
            for own, its in zip(speeds_of(turns), speeds_of(found.beside[name]), strict=True)
        )
        for name, turns in found.turns.items()
    }
