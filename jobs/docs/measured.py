"""Tables of the performance pages, made from what the benchmarks recorded.

A block `<!-- train: A,B -->` holds the table of the records A.json and B.json in
`jobs/benchmarks/results/`; the kinds of tables are the keys of `TABLES`.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from names import MODELS, TASKS

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
Record = Mapping[str, Any]
_DTYPES = {"float32": "fp32", "bfloat16": "bf16"}
_GRIDS = {
    "base": "base model",
    "single": "trained on one prompt",
    "bound": "a dozen bound prompts",
    "paft": "PAFT",
    "written-paft": "PAFT, under written prompts",
}
_COMPETITORS = {
    "plain padded PyTorch loop": "plain",
    "HF Trainer + DeepSpeed": "hf",
    "HF Trainer + DeepSpeed, by length": "hf_by_length",
    "TRL SFTTrainer": "trl",
    "TRL SFTTrainer, packed": "trl_packed",
    "ours without DeepSpeed and Ray": "loop",
}
_EARLIER = "SmolLM2-135M-Instruct.Q4_1.gguf"
"""The model of records that name none."""
_OURS = "ours, inside Ray Train"
_LEARNING = {
    "packed": "every text after its own copy of the question",
    "shared": "the question once",
}


def block(kind: str, names: str) -> list[str]:
    """The lines of a table of records.

    Args:
        kind: A key of `TABLES`.
        names: Names of records, with commas between them.
    """
    records = []
    for name in names.split(","):
        path = RESULTS / f"{name}.json"
        if not path.exists():
            raise SystemExit(f"{path} is missing: record it, or name another")
        records.append(json.loads(path.read_text(encoding="utf-8")))
    return TABLES[kind](records)


def _table(heads: Sequence[str], rows: Iterator[Sequence[str]]) -> list[str]:
    line = "| {} |".format
    lines = [line(" | ".join(row)) for row in rows]
    return [line(" | ".join(heads)), f"|{'---|' * len(heads)}", *lines]


def _model(record: Record) -> str:
    file = str(record["made_with"].get("model", _EARLIER)).rpartition("/")[2]
    return MODELS.get(file, file)


def _task(name: str) -> str:
    first, _, rest = name.partition(" ")
    return TASKS.get(first, first) + (", answers of several tokens" if rest == "phrases" else "")


def _train(records: Sequence[Record]) -> list[str]:
    """Competitors: useful tokens per CPU-second, paired ratios, matrix rate, memory, loss."""
    several = len(records) > 1
    sized = any("peak_gb" in row for record in records for row in record["rows"])

    def rows() -> Iterator[list[str]]:
        for record in records:
            for row in record["rows"]:
                name, dtype = row["competitor"], row["dtype"]
                speed = f"{row['tokens_per_second']:.0f} ({row['least']:.0f} to {row['most']:.0f})"
                other = "by length" in name or "packed" in name
                ratio = record["ratios"].get(f"{dtype}: ours/{_COMPETITORS.get(name)}")
                yield [
                    *([f"{_model(record)}, {_DTYPES[dtype]}"] if several else []),
                    f"**{name}**" if name == _OURS else name,
                    speed,
                    "" if ratio is None else f"{ratio:.2f}",
                    f"{row['share_of_matrix_rate']:.0%}",
                    *([f"{row['peak_gb']:.2f} GB"] if sized else []),
                    "other batches" if other else f"{row['final_loss']:.3f}",
                ]

    heads = ["trained by", "tokens per CPU-second", "ours over this", "of the matrix rate"]
    more = ["model"] if several else []
    return _table([*more, *heads, *(["memory at most"] if sized else []), "loss"], rows())


def _scoring(records: Sequence[Record]) -> list[str]:
    """Ours beside lm-eval at the quicker of its batch sizes."""

    def rows() -> Iterator[list[str]]:
        for record in records:
            by_setting: dict[tuple[str, str], list[Record]] = {}
            for row in record["rows"]:
                by_setting.setdefault((row["task"], row["dtype"]), []).append(row)
            for (task, dtype), found in by_setting.items():
                [ours] = [row for row in found if row["competitor"] == "ours"]
                rivals = [row for row in found if row["competitor"].startswith("lm-eval")]
                best = max(rivals, key=lambda row: row["pairs_per_cpu_second"])
                yield [
                    f"{_model(record)}, {_task(task)}, {_DTYPES[dtype]}",
                    f"{ours['pairs_per_cpu_second']:.1f}",
                    f"{best['pairs_per_cpu_second']:.1f}",
                    f"{record['ratios'][f'{task}, {dtype}: ours/lm-eval']:.1f}",
                    f"{best['other_answers']} of {best['pairs']}",
                ]

    return _table(["pairs per CPU-second", "ours", "lm-eval", "ratio", "other answers"], rows())


def _estimate(records: Sequence[Record]) -> list[str]:
    """Estimates from a part of a grid: ours, and in brackets as many answers spread evenly."""

    def rows() -> Iterator[list[str]]:
        [record] = records
        found = {(row["grid"], row["way"]): row for row in record["rows"]}
        for grid in dict.fromkeys(grid for grid, _ in found):
            ours, evenly = found[grid, "looks"], found[grid, "evenly"]
            task, _, subject = grid.partition("-")

            def off(figure: str, ours: Record = ours, evenly: Record = evenly) -> str:
                pair = (100 * each[figure]["rms_error"] for each in (ours, evenly))
                return "{:.1f} ({:.1f})".format(*pair)

            within = (f"{each['p05']['within_2_points']:.0%}" for each in (ours, evenly))
            yield [
                f"{_task(task)}, {_GRIDS[subject]}",
                f"{100 * ours['p05']['full']:.1f}",
                off("p05"),
                "{} ({})".format(*within),
                f"{100 * ours['min']['full']:.1f}",
                off("min"),
                f"{100 * ours['std']['full']:.1f}",
                off("std"),
                off("mean"),
            ]

    heads = ["SmolLM2-135M", "5% quantile", "off by", "within 2 points", "worst", "off by", "std"]
    return _table([*heads, "off by", "mean off by"], rows())


def _a_second(row: Record) -> str:
    return f"{row['rollouts_per_second']:.1f} ({row['least']:.1f} to {row['most']:.1f})"


def _learning(records: Sequence[Record]) -> list[str]:
    """Gradients of rollouts, with the question once or before every text."""

    def rows() -> Iterator[list[str]]:
        for record in records:
            tokens = record["made_with"]["tokens"]
            ratio = record["ratios"]["shared / packed, rollouts per second"]
            for row in record["rows"]:
                shown = f"{ratio:.1f}" if row["by"] == "shared" else "1"
                yield [str(tokens), _LEARNING[row["by"]], _a_second(row), shown]

    return _table(["tokens a text", "gradients with", "rollouts per second", "ratio"], rows())


def _writing(records: Sequence[Record]) -> list[str]:
    """Texts that others write, beside transformers as we call it."""

    def rows() -> Iterator[list[str]]:
        for record in records:
            for row in record["rows"]:
                pair = f"{row['by']} / transformers"
                units = ("rollouts per second", "tokens per CPU-second")
                ratios = [
                    1.0 if row["by"] == "transformers" else record["ratios"][f"{pair}, {unit}"]
                    for unit in units
                ]
                yield [row["by"], _a_second(row), *(f"{ratio:.2f}" for ratio in ratios)]

    return _table(["written by", "rollouts per second", "ratio", "per CPU-second"], rows())


def _planning(records: Sequence[Record]) -> list[str]:
    """CPU time of a rank to plan a step."""
    [record] = records
    made = record["made_with"]
    what = f"{made['batch_size']:,} examples a step, {made['ranks']} ranks"

    def rows() -> Iterator[list[str]]:
        for row in record["rows"]:
            yield [row["planned"], f"{row['ms']:.1f}", f"{row['most_ms']:.1f}"]

    return _table([what, "CPU-ms a rank and step, median", "highest"], rows())


def _gpu(records: Sequence[Record]) -> list[str]:
    """Rows of `gpu.py` about speed: ours by tokens of a row, with 1% of them answers."""
    [record] = records
    found = {row["row"]: row["figures"] for row in record["rows"] if row["status"] == "measured"}

    def rows() -> Iterator[list[str]]:
        for tokens in (1600, 4096, 8192):
            ours, theirs = (
                found[f"train/varlen/{tokens}/1%"],
                found.get(f"rival/padded/{tokens}/1%"),
            )
            beside = theirs and (
                f"{theirs['tokens_per_second']:,.0f} tokens/s, {theirs['gb_beyond_weights']:.1f} GB"
            )
            yield [
                f"{tokens:,}",
                f"{ours['tokens_per_second']:,.0f}",
                f"{ours['mfu']:.0%}",
                f"{ours['gb_beyond_weights']:.1f} GB",
                beside or "",
            ]

    heads = ["tokens a row", "tokens/s", "MFU", "memory beyond the weights"]
    return _table([*heads, "padded loop of transformers and peft"], rows())


TABLES: dict[str, Callable[[Sequence[Record]], list[str]]] = {
    "train": _train,
    "scoring": _scoring,
    "estimate": _estimate,
    "learning": _learning,
    "writing": _writing,
    "planning": _planning,
    "gpu": _gpu,
}
"""Kind of a block to the function that makes its table."""
