"""Training data with a prompt drawn afresh at every step, for other people's training loops.

Covered: a torch `Dataset` whose items depend on their position alone, and what Hugging Face's
`Trainer` and TRL's `SFTTrainer` need to read it. A position is `step * batch_size + slot`, so that
a trainer that reads positions in their order draws what `paft train` draws, with any number of
loader workers, ranks and accumulated batches, and after a checkpoint. A trainer that would read
them in another order is refused before its first step.

Not covered: objectives other than the likelihood of answers, and draws by past losses, which need
what the trainer finds.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import islice
from operator import index
from typing import Any, TypedDict

import torch
from torch.utils.data import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from paft_ray.config import CrossEntropy, TrainConfig
from paft_ray.config.errors import ConfigError
from paft_ray.storage.fingerprint import fingerprint
from paft_ray.training.batch_plan import Planner
from paft_ray.training.draws import Draw

IGNORED = -100
"""Label of a token that is not learned, as transformers has it."""
POSITION = "position"
"""Column of the table of positions that a trainer reads."""
_DRAWS = "PromptDraws"
"""Key in the state that a trainer saves with its checkpoints."""


class Item(TypedDict):
    """A rendered example, ready to train on."""

    input_ids: list[int]
    labels: list[int]
    """The answer's tokens at their places, `IGNORED` elsewhere; the model shifts them itself."""


class PromptDataset(Dataset[Item]):
    """Every example of a training under the prompt that is drawn for it, by position.

        data = paft_ray.prompt_dataset("reviews.yaml")
        arguments = SFTConfig("out", per_device_train_batch_size=8, **data.sft_arguments)
        SFTTrainer(data.base, arguments, peft_config=lora, **data.for_trainer()).train()

    In a loop of your own, `DataLoader(data, batch_size=..., collate_fn=data.collate)` without
    shuffling gives the batches of `paft train`, as long as the parts of a batch make it up.
    """

    def __init__(self, planner: Planner, train: TrainConfig, steps: int, base: str = "") -> None:
        """Describe a training of some steps.

        Args:
            planner: Draws examples and prompts, and encodes them.
            train: The section `train` that the planner was made with.
            steps: Optimizer steps.
            base: Location of the base model whose tokenizer the planner has.

        Raises:
            ConfigError: What is drawn depends on more than a position.
        """
        refuse_undrawable(train)
        self.steps, self.batch_size, self.base = steps, planner.batch_size, base
        self._planner = planner

    def __len__(self) -> int:
        """Return the number of positions: steps times the examples of a step."""
        return self.steps * self.batch_size

    def __getitem__(self, position: int) -> Item:
        """Return the example at a position under its prompt."""
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[Item]:
        """Return several items at once, as torch's loader asks for them."""
        items: list[Item] = []
        for step, slots in self._by_step(positions):
            for (sequence,), _ in self._planner.draw(step, slots):
                answer = list(sequence.targets)
                ids = [*sequence.input_ids, answer[-1]]
                ignored = [IGNORED] * (len(ids) - len(answer))
                items.append({"input_ids": ids, "labels": ignored + answer})
        return items

    def draw(self, position: int) -> Draw:
        """Return which example is put through which prompt at a position."""
        [(step, slots)] = self._by_step([position])
        [(_, draw)] = self._planner.draw(step, slots)
        return draw

    def _by_step(self, positions: Sequence[int]) -> list[tuple[int, list[int]]]:
        """Steps with the slots that are asked for, in the order of the positions."""
        found: list[tuple[int, list[int]]] = []
        for position in map(index, positions):
            if not 0 <= position < len(self):
                raise IndexError(f"position {position} is not one of {len(self)}")
            step, slot = divmod(position, self.batch_size)
            if not found or found[-1][0] != step:
                found.append((step, []))
            found[-1][1].append(slot)
        return found

    @property
    def identity(self) -> str:
        """Fingerprint of all that determines the items; how many there are is no part of it."""
        planner, encoder = self._planner, self._planner.encoder
        varying = planner.varying
        return fingerprint(
            "draws",
            [planner.seed, planner.batch_size, planner.answer_prefix],
            planner.sampler.sampling.model_dump(mode="json"),
            [example.id for example in planner.examples],
            [[id, template.text] for id, template in planner.prompts],
            [encoder.chat_template, encoder.max_length, encoder.overlong, encoder.system],
            [dict(encoder.chat_template_kwargs), encoder.end_id],
            None if varying is None else varying.variation.model_dump(mode="json"),
        )

    def collate(self, items: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Pad items to a batch of `input_ids`, `attention_mask` and `labels`."""
        longest = max(len(item["input_ids"]) for item in items)
        shape = len(items), longest
        pad: Any = self._planner.encoder.tokenizer.pad_token_id
        ids = torch.full(shape, 0 if pad is None else pad)
        mask, labels = torch.zeros(shape, dtype=torch.long), torch.full(shape, IGNORED)
        for row, item in enumerate(items):
            length = len(item["input_ids"])
            ids[row, :length] = torch.tensor(item["input_ids"])
            labels[row, :length] = torch.tensor(item["labels"])
            mask[row, :length] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    @property
    def arguments(self) -> dict[str, Any]:
        """What `TrainingArguments` has to say so that positions are read in their order."""
        return {
            "max_steps": self.steps,
            "train_sampling_strategy": "sequential",
            "remove_unused_columns": False,
        }

    @property
    def sft_arguments(self) -> dict[str, Any]:
        """The same for TRL's `SFTConfig`, which must not tokenise again."""
        return {**self.arguments, "dataset_kwargs": {"skip_prepare_dataset": True}}

    def for_trainer(self) -> dict[str, Any]:
        """Return what `Trainer` and `SFTTrainer` are called with: data, collator and a check.

        The data are positions, and the collator draws: it runs in the loader's workers. Batches of
        tokenised rows with `input_ids` and `labels`, as of an `eval_dataset`, are padded.
        """
        from datasets import Dataset as Table

        collator = DrawingCollator(self)
        return {
            "train_dataset": Table.from_dict({POSITION: range(len(self))}),
            "data_collator": collator,
            "callbacks": [OrderCheck(self, collator)],
        }


class DrawingCollator:
    """Draws and pads the examples of some positions."""

    def __init__(self, dataset: PromptDataset) -> None:
        """Draw from a dataset once its order is checked."""
        self._dataset, self.checked = dataset, False

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Return a batch."""
        if POSITION not in rows[0]:
            return self._dataset.collate(rows)
        if not self.checked:
            raise ConfigError(
                "the order in which the trainer reads was not checked: pass it all of "
                "for_trainer(), callbacks included"
            )
        return self._dataset.collate(self._dataset.__getitems__([row[POSITION] for row in rows]))


class OrderCheck(TrainerCallback):
    """Refuses, before the first step, a trainer whose steps would read other positions."""

    def __init__(self, dataset: PromptDataset, collator: DrawingCollator) -> None:
        """Check the trainer that uses a collator of a dataset."""
        self._dataset, self._collator = dataset, collator

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Look at settings, at every batch's positions, and at what a checkpoint was made with.

        Raises:
            ConfigError: Some step would not read the positions of that step.
        """
        self._collator.checked = False
        self._check_settings(args, state)
        _check_order(kwargs["train_dataloader"], args, state.max_steps)
        saved: Any = state.stateful_callbacks
        made_with = {"args": {}, "attributes": {"identity": self._dataset.identity}}
        if state.global_step and saved.get(_DRAWS) != made_with:
            raise ConfigError(
                f"the checkpoint of step {state.global_step} was made with other draws: another "
                "seed, batch size, pool, data or tokenisation; continue it with the same, or begin "
                "anew"
            )
        saved[_DRAWS] = made_with  # beside the state of callbacks, which a checkpoint keeps
        self._collator.checked = True

    def _check_settings(self, args: TrainingArguments, state: TrainerState) -> None:
        parts = {
            "per_device_train_batch_size": args.train_batch_size,
            "gradient_accumulation_steps": args.gradient_accumulation_steps,
            "processes": args.world_size,
        }
        if math.prod(parts.values()) != self._dataset.batch_size:
            given = " x ".join(f"{name} ({value})" for name, value in parts.items())
            raise ConfigError(
                f"{given} is not the {self._dataset.batch_size} examples of a step "
                "(train.batch_size): change one of them"
            )
        if state.max_steps > self._dataset.steps:
            raise ConfigError(
                f"the trainer takes {state.max_steps} steps, and {self._dataset.steps} are drawn: "
                f"set max_steps={self._dataset.steps}, or raise train.steps"
            )
        for name in ("ignore_data_skip", "auto_find_batch_size"):
            if getattr(args, name):
                raise ConfigError(f"{name} reads positions again that were trained on: turn it off")


def _check_order(loader: Any, args: TrainingArguments, steps: int) -> None:
    """Compare the positions of this rank's batches with those that are next.

    Raises:
        ConfigError: They differ.
    """
    size, rank, ranks = args.train_batch_size, args.process_index, args.world_size
    batches = islice(loader.batch_sampler, steps * args.gradient_accumulation_steps)
    for number, positions in enumerate(batches):
        first = (number * ranks + rank) * size
        if list(positions) != list(range(first, first + size)):
            raise ConfigError(
                f"the trainer reads positions {_few(positions)} where {first} to "
                f"{first + size - 1} are next: pass it **arguments of the data set "
                "(train_sampling_strategy='sequential'), and leave accelerator_config and "
                "parallelism as they are"
            )


def _few(positions: Sequence[int]) -> str:
    shown = ", ".join(map(str, positions[:4]))
    return f"{shown}, ..." if len(positions) > 4 else shown


def refuse_undrawable(train: TrainConfig) -> None:
    """Refuse what a loss outside of our loop cannot learn, or what depends on past losses."""
    if not isinstance(train.objective, CrossEntropy):
        raise ConfigError(
            f"train.objective: another trainer learns the likelihood of answers, not "
            f"{train.objective.type}: use cross_entropy, or `paft train`"
        )
    if not math.isinf(train.sampling.temperature):
        raise ConfigError(
            f"train.sampling.temperature ({train.sampling.temperature:g}) draws by past losses, "
            "which another trainer does not tell: leave it out, or use `paft train`"
        )
    if train.variation.paraphrases is not None:
        raise ConfigError(
            "train.variation.paraphrases are written by `paft train`: leave them out, or use it"
        )
