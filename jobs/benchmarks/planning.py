"""CPU time of one rank to plan a step, with the batch shared among ranks and planned as a whole.

    python jobs/benchmarks/planning.py --model MODEL --task-path PATH --batch-size 4096 --ranks 512

All ranks are simulated in this process, one after the other; what they exchange is not sent.
"""

import argparse
import statistics
import time

from records import print_record
from train_setup import Setup, make_planner

ASKED = 16
"""Ranks, spread evenly, whose time is measured."""


def main() -> None:
    """Measure in turns, and print a row for each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder of a prepared base model")
    parser.add_argument("--task-path", required=True, help="PIQA, as `task.path`")
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--ranks", type=int, default=512)
    parser.add_argument("--row-tokens", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()
    setup = Setup(
        "", options.model, options.task_path, None, "float32",
        options.batch_size, options.row_tokens, options.steps,
    )  # fmt: skip
    planner, ranks = make_planner(setup), options.ranks
    planner.plan(0)
    shared, whole = [], []
    for step in range(options.steps):
        tables = [planner.share(step, rank, ranks).table for rank in range(ranks)]
        for rank in range(0, ranks, max(1, ranks // ASKED)):
            began = time.thread_time()
            planner.deal(step, planner.share(step, rank, ranks), tables, rank)
            shared.append(1000 * (time.thread_time() - began))
        began = time.thread_time()
        planner.plan(step)
        whole.append(1000 * (time.thread_time() - began))
    rows = [
        {"planned": name, "ms": round(statistics.median(found), 2), "most_ms": round(max(found), 2)}
        for name, found in (("shared among ranks", shared), ("whole on each rank", whole))
    ]
    for row in rows:
        print(
            f"{row['planned']:<20} {row['ms']:>8.2f} ms a rank and step (most {row['most_ms']:.2f})"
        )
    ratio = statistics.median(whole) / statistics.median(shared)
    print_record("planning", options, ["tokenizers", "numpy"], rows, {"whole / shared": ratio})


if __name__ == "__main__":
    main()
