"""What a GPU shows: is every way to train right, within memory, and how quick is it.

For a bare machine with one GPU: needs torch (2.11 or later), transformers and peft, no network and
no Ray; rows of DeepSpeed and of the Trainer are left out where these are missing. Models are built
on the device from configurations, with random weights: 1B for what is right, 8B for speed.

Rows are measured in order of worth, each written to the folder as soon as it is there; what the
minutes do not reach is listed as not run, and measured by a second call with `--continue`. A row of
speed counts only where its loss and gradient norm agree with the others' on the same sequences.

    python jobs/benchmarks/gpu.py [--out gpu-results] [--minutes 6] [--only 'train/*'] [--continue]
    python jobs/benchmarks/gpu.py --rehearse        all of it on a CPU, with a tiny model
    python jobs/benchmarks/gpu.py --list
"""

import argparse
import fnmatch
import json
import os
import platform
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic kernels want

import gpu_correct as correct
import gpu_speed as speed
import torch
from gpu_models import Bench, NotHereError

_KINDS = ("varlen", "blocks", "sdpa", "flex_attention")
_LENGTHS = (4096, 1600, 8192)
_SHARES = (0.01, 0.5)
_LONGEST_S = 100.0
_AGREE = 0.02
_PACKAGES = ("torch", "transformers", "peft", "deepspeed", "accelerate", "triton")
_WITHOUT = ("gradient_norm", "holds", "steps", "tokens", "seconds", "losses")


@dataclass(frozen=True)
class Measurement:
    """One row."""

    name: str
    measure: Callable[[Bench], Mapping[str, Any]]
    same: str = ""
    """Rows with the same text here read the same sequences, and agree on loss and gradient."""


def measurements() -> list[Measurement]:
    """All rows, in order of worth."""
    first, *others = _LENGTHS
    rows = [
        Measurement(f"attention/{kind}", partial(correct.attention, kind=kind)) for kind in _KINDS
    ]
    rows += [
        _training("varlen", first, 0.01),
        _padded(first, 0.01),
        _training("varlen", first, 0.01, "unfused"),
        _training("blocks", first, 0.01),
    ]
    rows += [
        Measurement("step/twice", correct.same_step_twice),
        Measurement("step/checkpointing", correct.checkpointing),
        Measurement("memory/varying-rows", correct.rows_of_varying_length),
        Measurement("store/checkpoint", correct.checkpoint_and_restore),
        Measurement("store/adapter", correct.save_and_load),
    ]
    stages = [(stage, "none") for stage in range(4)] + [(2, "optimizer"), (3, "parameters")]
    rows += [
        Measurement(
            f"deepspeed/{stage}" + ("" if offload == "none" else f"-{offload}"),
            partial(correct.engine_of_deepspeed, stage=stage, offload=offload),
        )
        for stage, offload in stages
    ]
    rows += [_training("varlen", tokens, 0.01) for tokens in others]
    rows += [_training("varlen", tokens, 0.5) for tokens in _LENGTHS] + [_padded(first, 0.5)]
    rows += [
        Measurement("head", speed.head),
        Measurement("scoring", speed.scoring),
        Measurement("generation", speed.generation),
        _trainer(first, by_length=True),
        _trainer(first, by_length=False),
        _training("varlen", first, 0.01, "compiled"),
        _training("flex_attention", first, 0.01, "compiled"),
    ]
    done = {row.name for row in rows}
    rest = (
        _training(kind, tokens, share)
        for tokens in _LENGTHS
        for share in _SHARES
        for kind in ("blocks", "sdpa", "flex_attention")
    )
    return [*rows, *(row for row in rest if row.name not in done)]


def _training(kind: str, tokens: int, share: float, how: str = "") -> Measurement:
    measure = partial(speed.training, kind=kind, tokens=tokens, share=share, how=how)
    name = f"train/{kind}/{tokens}/{share:.0%}" + (f"/{how}" if how else "")
    return Measurement(name, measure, _work(tokens, share))


def _padded(tokens: int, share: float) -> Measurement:
    measure = partial(speed.padded_loop, tokens=tokens, share=share)
    return Measurement(f"rival/padded/{tokens}/{share:.0%}", measure, _work(tokens, share))


def _trainer(tokens: int, by_length: bool) -> Measurement:
    measure = partial(speed.hf_trainer, tokens=tokens, share=0.01, by_length=by_length)
    return Measurement(f"rival/trainer{'-by-length' if by_length else ''}/{tokens}/1%", measure)


def _work(tokens: int, share: float) -> str:
    return f"{tokens} tokens, {share:.0%} answers"


class Results:
    """Rows on disk: one file each, never half-written."""

    def __init__(self, folder: Path) -> None:
        """Use a folder, which is made."""
        self._folder = folder
        (folder / "rows").mkdir(parents=True, exist_ok=True)

    def write(self, name: str, record: Mapping[str, Any]) -> None:
        """Write a row."""
        path = self._path(name)
        path.with_suffix(".part").write_text(json.dumps({"row": name, **record}), encoding="utf-8")
        path.with_suffix(".part").replace(path)

    def read(self, name: str) -> dict[str, Any] | None:
        """Return a row, None where there is none."""
        path = self._path(name)
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def _path(self, name: str) -> Path:
        return self._folder / "rows" / f"{name.replace('/', '_').replace('%', '')}.json"

    def finish(self, rows: Sequence[Mapping[str, Any]], bench: Bench) -> str:
        """Write all rows as one file, and as a table, which is returned."""
        record = {"benchmark": "gpu", "made_with": made_with(bench), "rows": list(rows)}
        (self._folder / "results.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
        table = as_table(rows)
        (self._folder / "results.md").write_text(table, encoding="utf-8")
        return table


def made_with(bench: Bench) -> dict[str, Any]:
    """The machine and what is installed on it."""
    found: dict[str, Any] = {"python": platform.python_version(), "rehearsal": bench.rehearsal}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    if bench.on_gpu:
        about = torch.cuda.get_device_properties(bench.device)
        found |= {"gpu": about.name, "gpu_gb": round(about.total_memory / 1e9, 1)}
        found["cuda"] = torch.version.cuda
    return found


def measure(row: Measurement, bench: Bench) -> dict[str, Any]:
    """Measure a row; whatever it raises is its result."""
    started = time.perf_counter()
    try:
        figures = dict(row.measure(bench))
        status, more = "measured", {"figures": figures}
    except NotHereError as why:
        status, more = "not run", {"why": str(why)}
    except torch.OutOfMemoryError:
        peak = torch.cuda.max_memory_allocated() / 1e9
        status, more = "failed", {"why": f"out of memory, at most {peak:.1f} GB in use"}
    except Exception as error:  # noqa: BLE001 - the next row is measured all the same
        last = f"{type(error).__name__}: {error}".splitlines()[0]
        status, more = "failed", {"why": last, "traceback": traceback.format_exc()}
    bench.free()
    return {"status": status, "took_s": round(time.perf_counter() - started, 2), **more}


def judge(rows: Sequence[dict[str, Any]], same: Mapping[str, str]) -> None:
    """Say of each row of speed whether it counts, and how it stands to the padded loop."""
    for work in {text for text in same.values() if text}:
        found = [r for r in rows if same.get(r["row"]) == work and r["status"] == "measured"]
        if len(found) < 2:
            continue
        middle = {n: sorted(r["figures"][n] for r in found)[len(found) // 2] for n in _COMPARED}
        rival = next((r for r in found if r["row"].startswith("rival/")), None)
        for row in found:
            figures = row["figures"]
            figures["counts"] = all(
                abs(figures[n] - middle[n]) <= _AGREE * abs(middle[n]) for n in _COMPARED
            )
            if rival is not None and row is not rival:
                ratio = figures["tokens_per_second"] / rival["figures"]["tokens_per_second"]
                figures["times_padded"] = ratio


_COMPARED = ("loss", "gradient_norm")


def as_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table in Markdown."""
    lines = ["| row | result |", "|---|---|"]
    for row in rows:
        if row["status"] == "measured":
            figures = row["figures"]
            judged = {True: "holds", False: "**does not hold**"}.get(figures.get("holds"), "")
            doubted = "**does not count**" if figures.get("counts") is False else ""
            text = ", ".join(
                f"{name} {value:.4g}"
                for name, value in figures.items()
                if isinstance(value, int | float)
                and not isinstance(value, bool)
                and name not in _WITHOUT
            )
            result = "; ".join(filter(None, (judged, doubted, text)))
        else:
            result = f"{row['status']}: {row['why']}".replace("|", "/")
        lines.append(f"| {row['row']} | {result} |")
    return "\n".join(lines) + "\n"


class Watch:
    """Ends the program where a row hangs, and says so in its place; what was measured stays."""

    def __init__(self, results: Results, limit_s: float) -> None:
        """Watch no row yet."""
        self._results, self._limit_s = results, limit_s
        self._timer: threading.Timer | None = None

    def begin(self, name: str) -> None:
        """Watch a row."""
        self._timer = threading.Timer(self._limit_s, self._end, [name])
        self._timer.daemon = True
        self._timer.start()

    def over(self) -> None:
        """The row is there."""
        if self._timer is not None:
            self._timer.cancel()

    def _end(self, name: str) -> None:
        why = f"still running after {self._limit_s:.0f} s"
        self._results.write(name, {"status": "failed", "why": why})
        print(f"{name}: {why}; call again with --continue for the other rows", flush=True)
        os._exit(1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and return the exit code: 1 where a row failed or does not hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu-results"))
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN")
    parser.add_argument("--continue", dest="go_on", action="store_true")
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args(arguments)
    chosen = [m for m in measurements() if any(fnmatch.fnmatch(m.name, p) for p in options.only)]
    if not chosen:
        parser.error(f"--only: no row is named so: {' '.join(options.only)}; see --list")
    if options.list:
        print("\n".join(m.name for m in chosen))
        return 0
    if not options.rehearse and not torch.cuda.is_available():
        parser.error("there is no GPU here: use --rehearse to try it on a CPU")
    bench = Bench(torch.device("cpu" if options.rehearse else "cuda"), options.rehearse)
    results = Results(options.out)
    rows = list(_measured(chosen, bench, results, options))
    judge(rows, {m.name: m.same for m in chosen})
    print("\n" + results.finish(rows, bench), end="")
    wrong = [r["row"] for r in rows if r["status"] == "failed" or _is_wrong(r.get("figures", {}))]
    left = sum(row["status"] == "not run" for row in rows)
    print(f"\n{len(rows)} rows, {left} not run, {len(wrong)} failed: {options.out / 'results.md'}")
    return 1 if wrong else 0


def _is_wrong(figures: Mapping[str, Any]) -> bool:
    return figures.get("holds") is False or figures.get("counts") is False


def _measured(
    chosen: Sequence[Measurement], bench: Bench, results: Results, options: argparse.Namespace
) -> Any:
    """The records of all rows, as they come."""
    began, watch = time.monotonic(), Watch(results, _LONGEST_S)
    for row in chosen:
        stored = results.read(row.name) if options.go_on else None
        if stored is not None and stored["status"] != "not run":
            yield stored
            continue
        if time.monotonic() - began > 60 * options.minutes:
            record = {"status": "not run", "why": f"the {options.minutes:g} minutes were over"}
        else:
            watch.begin(row.name)
            record = measure(row, bench)
            watch.over()
        results.write(row.name, record)
        print(f"{row.name}: {record['status']}{_short(record)}", flush=True)
        yield {"row": row.name, **record}


def _short(record: Mapping[str, Any]) -> str:
    figures = record.get("figures", {})
    parts = [record.get("why", "")]
    if "tokens_per_second" in figures:
        parts.append(f"{figures['tokens_per_second']:,.0f} tokens/s")
    if figures.get("holds") is False:
        parts.append("does not hold")
    text = ", ".join(filter(None, parts))
    return f" ({text})" if text else ""


if __name__ == "__main__":
    sys.exit(main())
