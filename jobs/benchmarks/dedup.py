"""Deduplication at scale: what it finds, what it costs, and what datasketch costs beside it.

    python jobs/benchmarks/dedup.py --sizes 100000 1000000 --json

Instructions are written from word banks, a fifth of them as near copies of others: edited in a few
places, with a true similarity of at least the threshold. Measured for every size: near copies that
were found, rows dropped without being similar to what they repeat, time, CPU-seconds by process,
the driver's memory and that of all processes; at the smallest size also whether partitions and the
order of rows make a difference, and what datasketch's LSH needs for the same texts.

CPU-seconds are of user and system. Cluster start and imports come first and are counted apart.
"""

import argparse
import random
import resource
import shutil
import tempfile
import threading
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from records import print_record

from paft_ray.cluster.session import ray_session
from paft_ray.prompts.dedup.deduplicate import Columns, InProcess, deduplicate
from paft_ray.prompts.dedup.distributed import OnRay
from paft_ray.prompts.dedup.similarity import shingles, similarity
from paft_ray.storage.fingerprint import fingerprint

THRESHOLD = 0.8
PLANTED_EVERY = 5
"""One row of so many is a near copy of one of the others since the last."""

_OPENINGS = (
    "please", "your task is to", "carefully", "as an expert,", "for this question,", "now",
    "I want you to", "without explaining anything,", "when you are ready,", "using common sense,",
    "quickly", "like a patient reader,", "honestly,", "step by step,", "before anything else,",
    "as an examiner would,", "for the record,", "in your own time,", "you are going to",
    "imagine you are a judge and", "with fresh eyes,", "as a careful annotator,", "today",
)  # fmt: skip
_VERBS = (
    "read what follows", "consider all that is given", "examine the material below",
    "weigh every detail", "study the input", "go through the text once", "take a close look",
    "review the case at hand", "think about what you see", "inspect the following lines",
    "look over the passage", "analyse the excerpt", "scan the note", "assess the message",
    "work through the example", "take in the whole statement",
)  # fmt: skip
_LINKS = ("and", "and then", "so that you can", "in order to", "until you can", "and finally")
_TASKS = (
    "decide", "judge", "say", "determine", "work out", "tell us", "report", "classify", "predict",
    "infer", "conclude", "explain in one word", "label", "rate", "estimate", "choose", "identify",
    "settle", "state plainly", "point out",
)  # fmt: skip
_ADJECTIVES = (
    "short", "angry", "recent", "medical", "legal", "cheerful", "ironic", "technical", "public",
    "private", "formal", "casual", "lengthy", "fictional", "historical", "financial", "political",
    "scientific", "spoken", "translated", "anonymous", "confusing", "polite", "hostile", "sincere",
    "detailed", "vague", "biased", "neutral", "sarcastic", "unfinished", "local", "foreign",
    "emotional", "practical", "urgent", "routine", "playful", "bitter", "elegant",
)  # fmt: skip
_NOUNS = (
    "review", "comment", "complaint", "headline", "tweet", "paragraph", "question", "dialogue",
    "contract", "recipe", "report", "letter", "story", "abstract", "speech", "advert", "manual",
    "forecast", "transcript", "interview", "proposal", "summary", "petition", "biography",
    "lecture", "poem", "warning", "invoice", "diagnosis", "verdict", "argument", "rumour",
    "caption", "survey", "testimony", "anecdote", "editorial", "bulletin", "diary entry",
    "press release", "riddle", "product description", "customer request", "travel guide",
    "job posting", "patent claim",
)  # fmt: skip
_TOPICS = (
    "a restaurant", "a film", "a hotel", "the weather", "football", "the stock market",
    "a surgery", "climate change", "an election", "a smartphone", "public transport", "a museum",
    "online banking", "a software update", "a court case", "gardening", "a new vaccine",
    "space travel", "a merger", "a school", "a border dispute", "home repair", "a concert",
    "chess", "a battery", "a famine", "electric cars", "a novel", "coffee", "a marathon",
    "data privacy", "a wedding", "taxes", "a volcano", "dental care", "a video game",
    "bee keeping", "a strike", "jazz", "an airline", "a power plant", "a painting", "social media",
    "a bakery", "housing", "a rescue mission",
)  # fmt: skip
_ASPECTS = (
    "positive or negative", "true or false", "relevant to the reader", "written by a human",
    "plausible physically", "supported by evidence", "meant as a joke", "about money", "offensive",
    "more fact than opinion", "consistent with itself", "answerable at all",
    "a cause or an effect", "worth forwarding", "grammatically acceptable",
    "addressed to children", "likely to be spam", "an exaggeration", "in agreement with the title",
    "missing something important", "entailed by the premise", "the better of two choices",
    "safe to publish", "up to date",
)  # fmt: skip
_ENDINGS = (
    "", "as briefly as you can", "with confidence", "and nothing else", "for a colleague",
    "before you reply", "so that nobody has to ask again", "as a teacher would do it in class",
    "while ignoring your first impression", "in the words that were asked for",
    "using one of the labels", "even if you are unsure", "without repeating the text",
    "as if it were the only one", "and keep the reason to yourself",
)  # fmt: skip


def write_instruction(number: int) -> str:
    """The instruction of this number, 10 to 35 words."""
    rng = random.Random(number)
    opening, verb, link, task, aspect, ending = (
        rng.choice(bank) for bank in (_OPENINGS, _VERBS, _LINKS, _TASKS, _ASPECTS, _ENDINGS)
    )
    first, second = rng.sample(_ADJECTIVES, 2)
    noun, topic = rng.choice(_NOUNS), rng.choice(_TOPICS)
    what = f"the {first} {noun} about {topic}"
    shape = rng.randrange(4)
    if shape == 0:
        text = f"{opening} {verb} {link} {task} whether {what} is {aspect} {ending}"
    elif shape == 1:
        text = f"{task} if {what}, however {second}, is {aspect} {ending}"
    elif shape == 2:
        other = rng.choice(_ASPECTS)
        text = f"{opening} {task} whether {what} is {aspect}, and if not, why it is {other}"
    else:
        text = f"given {what} and a {second} {rng.choice(_NOUNS)}, {verb} {link} {task} which of "
        text += f"them is {aspect} {ending}"
    text = " ".join(text.split())
    return f"{text[:1].upper()}{text[1:]}."


def copy_nearly(text: str, rng: random.Random) -> str:
    """The text with some small edits, not less similar to it than the threshold."""
    for edits in (3, 2, 2, 1, 1, 1):
        words = text.split()
        for _ in range(edits):
            place = rng.randrange(len(words))
            kind = rng.randrange(5)
            if kind == 0:
                words[place] = rng.choice(("any", "some", "really", "this", "given", "kindly"))
            elif kind == 1:
                words.insert(place, rng.choice(("also", "then", "just", "very", "once")))
            elif kind == 2 and len(words) > 4:
                words.pop(place)
            elif kind == 3:
                words[place] = words[place].upper() + ","
            else:
                words[place] += "s"
        copied = " ".join(words)
        if copied != text and similarity(copied, text) >= THRESHOLD:
            return copied
    return f"{text} Thanks"[: len(text) + 2]  # two letters of a sentence


def generate(batch: pa.Table) -> pa.Table:
    """Rows of the benchmark from their numbers; `copy_of` is what a near copy was made from."""
    rows = []
    for number in batch["id"].to_pylist():
        rng = random.Random(-1 - number)
        text, copy_of = write_instruction(number), None
        if number % PLANTED_EVERY == PLANTED_EVERY - 1:
            source = number - rng.randrange(1, PLANTED_EVERY)
            text, copy_of = copy_nearly(write_instruction(source), rng), f"{source:010d}"
        rows.append({"id": f"{number:010d}", "instruction": text, "copy_of": copy_of})
    schema = pa.schema(
        [("id", pa.string()), ("instruction", pa.string()), ("copy_of", pa.string())]
    )
    return pa.Table.from_pylist(rows, schema)


class Usage(threading.Thread):
    """CPU-seconds and memory of the processes that we started, read four times a second."""

    def __init__(self) -> None:
        """Start reading."""
        super().__init__(daemon=True)
        self._cpu: dict[int, tuple[str, float]] = {}
        self._stop_reading = threading.Event()
        self.peak_bytes = 0
        """Most that all processes held at once: their own memory and the object store."""
        self.start()

    def run(self) -> None:
        """Read until told to stop."""
        while not self._stop_reading.wait(0.25):
            self._read()

    def stop(self) -> None:
        """Read no more."""
        self._stop_reading.set()
        self.join()

    def cpu(self) -> dict[str, float]:
        """CPU-seconds so far of `workers`, `driver` and `ray` (everything else of the cluster)."""
        self._read()
        total: dict[str, float] = defaultdict(float)
        for kind, seconds in list(self._cpu.values()):
            total[kind] += seconds
        return total

    def _read(self) -> None:
        me = psutil.Process()
        held = psutil.disk_usage("/dev/shm").used
        for process in [me, *me.children(recursive=True)]:
            with suppress(psutil.Error):
                times, memory = process.cpu_times(), process.memory_info()
                held += memory.rss - memory.shared
                name = " ".join(process.cmdline())
                kind = "workers" if "ray::" in name or "default_worker" in name else "ray"
                kind = "driver" if process.pid == me.pid else kind
                self._cpu[process.pid] = (kind, times.user + times.system)
        self.peak_bytes = max(self.peak_bytes, held)


def read_rows(folder: str, columns: list[str]) -> dict[str, list[Any]]:
    """Columns of a result, in the order of ids."""
    return pq.read_table(folder, columns=columns).sort_by("id").to_pydict()


def summarise(folder: str) -> dict[str, Any]:
    """What was decided, as counts and a fingerprint."""
    rows = read_rows(folder, ["id", "kept", "repeats", "similarity"])
    kept = [id for id, keeps in zip(rows["id"], rows["kept"], strict=True) if keeps]
    return {
        "rows": len(rows["id"]),
        "kept": len(kept),
        "kept_fingerprint": fingerprint(kept),
        "all_fingerprint": fingerprint(rows),
    }


def check(folder: str) -> dict[str, Any]:
    """How many near copies were found, and how many rows were dropped without reason."""
    rows = read_rows(folder, ["id", "instruction", "copy_of", "kept", "repeats"])
    place = {id: index for index, id in enumerate(rows["id"])}
    texts, kept = rows["instruction"], rows["kept"]
    planted = [(i, place[of]) for i, of in enumerate(rows["copy_of"]) if of is not None]
    found = sum(not (kept[i] and kept[j]) for i, j in planted)
    dropped = [(i, place[of]) for i, of in enumerate(rows["repeats"]) if of is not None]
    false = sum(not kept[j] or similarity(texts[i], texts[j]) < THRESHOLD for i, j in dropped)
    return {
        "planted": len(planted),
        "recall": found / len(planted),
        "planted_median_similarity": float(
            np.median([similarity(texts[i], texts[j]) for i, j in planted[:2000]])
        ),
        "dropped": len(dropped),
        "false_drops": false / max(1, len(dropped)),
    }


def run_in_one_process(folder: str) -> dict[str, Any]:
    """The same texts without Ray, and whether the same is kept."""
    rows = pq.read_table(folder, columns=["id", "instruction", "kept"]).sort_by("id")
    started = time.process_time()
    texts = [rows.drop_columns(["kept"])]
    result = pa.concat_tables(deduplicate(texts, THRESHOLD, InProcess(), Columns()))
    seconds = time.process_time() - started
    return {"cpu_s": seconds, "same_kept": result["kept"] == rows["kept"]}


def run_datasketch(folder: str) -> dict[str, Any]:
    """Keep what datasketch's LSH finds nothing similar to, one text after another."""
    from datasketch import MinHash, MinHashLSH

    rows = read_rows(folder, ["id", "instruction", "copy_of"])
    started, wall = time.process_time(), time.perf_counter()
    index = MinHashLSH(threshold=THRESHOLD, num_perm=128)
    kept = set()
    for id, text in zip(rows["id"], rows["instruction"], strict=True):
        sketch = MinHash(num_perm=128)
        sketch.update_batch([shingle.encode() for shingle in shingles(text)])
        if not index.query(sketch):
            index.insert(id, sketch)
            kept.add(id)
    seconds, wall = time.process_time() - started, time.perf_counter() - wall
    pairs = [(a, b) for a, b in zip(rows["id"], rows["copy_of"], strict=True) if b is not None]
    found = sum(not (a in kept and b in kept) for a, b in pairs)
    return {"cpu_s": seconds, "wall_s": wall, "kept": len(kept), "recall": found / len(pairs)}


class Bench:
    """Runs and measures."""

    def __init__(self, usage: Usage, folder: Path) -> None:
        """Results go into a folder of their own each."""
        self._usage, self._folder = usage, folder

    def data(self, size: int) -> Any:
        """The rows, ready in the object store."""
        import ray.data

        blocks = max(4, size // 25_000)
        numbers = ray.data.range(size, override_num_blocks=blocks)
        return numbers.map_batches(generate, batch_format="pyarrow", batch_size=None).materialize()

    def run(self, name: str, data: Any, partitions: int | None = None) -> dict[str, Any]:
        """Deduplicate and write the rows; what that took."""
        before, peak_before = self._usage.cpu(), driver_peak_mib()
        self._usage.peak_bytes = 0
        started = time.perf_counter()
        decided = deduplicate(data, THRESHOLD, OnRay(partitions), Columns())
        decided.write_parquet(self.path(name))
        wall = time.perf_counter() - started
        after = self._usage.cpu()
        return {
            "wall_s": round(wall, 2),
            "cpu_s": {
                kind: round(after[kind] - before[kind], 2) for kind in ("workers", "driver", "ray")
            },
            "driver_peak_mib": [peak_before, driver_peak_mib()],
            "peak_gib": round(self._usage.peak_bytes / 2**30, 2),
        }

    def path(self, name: str) -> str:
        """Where the rows of a run are."""
        return str(self._folder / name)

    def ask(self, function: Any, name: str) -> dict[str, Any]:
        """Look at the rows of a run in another process: this one's memory is measured."""
        import ray

        remote: Any = ray.remote(function)
        return ray.get(remote.remote(self.path(name)))


def driver_peak_mib() -> int:
    """The most memory that this process has had, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def measure(sizes: list[int], folder: Path) -> dict[str, Any]:
    """All figures; one line of them is printed as it comes."""
    usage = Usage()
    started = time.perf_counter()
    with ray_session():
        bench = Bench(usage, folder)
        bench.run("start", bench.data(2_000), partitions=4)
        start = {"what": "start and imports", "wall_s": round(time.perf_counter() - started, 2)}
        rows = [
            show({**start, "cpu_s": {kind: round(spent, 2) for kind, spent in usage.cpu().items()}})
        ]
        smallest, largest = min(sizes), max(sizes)
        took: dict[int, dict[str, Any]] = {}
        same = set()
        for size in sorted(sizes):
            data = bench.data(size)
            took[size] = bench.run(f"{size}", data)
            found = {**bench.ask(summarise, f"{size}"), **bench.ask(check, f"{size}")}
            rows.append(show({"what": "ours", "size": size, **took[size], **found}))
            if size == smallest:
                same.add(found["kept_fingerprint"])
                variants: list[tuple[str, Any, int | None]] = [
                    (f"{parts} partitions", data, parts) for parts in (1, 4, 16)
                ]
                variants.append(("shuffled", data.random_shuffle(seed=7), None))
                for name, rows_of, parts in variants:
                    figures = bench.run(f"{size} {name}", rows_of, parts)
                    found = bench.ask(summarise, f"{size} {name}")
                    same.add(found["kept_fingerprint"])
                    rows.append(show({"what": name, "size": size, **figures, **found}))
            del data
        one = bench.ask(run_in_one_process, f"{smallest}")
        rows.append(show({"what": "deduplicate, one process", "size": smallest, **one}))
        baseline = bench.ask(run_datasketch, f"{smallest}")
        rows.append(show({"what": "datasketch", "size": smallest, **baseline}))
    usage.stop()
    ours = took[smallest]["cpu_s"]["workers"]
    return {
        "rows": rows,
        "same_kept_everywhere": len(same) == 1,
        "ratios": {
            "ours/datasketch cpu": round(ours / baseline["cpu_s"], 3),
            "1M/100k wall": round(took[largest]["wall_s"] / took[smallest]["wall_s"], 2),
        },
    }


def show(row: dict[str, Any]) -> dict[str, Any]:
    """Print a row of figures and hand it on."""
    print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    return row


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--json", action="store_true", help="a last line with all figures as JSON")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="dedup-"))
    try:
        figures = measure(arguments.sizes, folder)
    finally:
        shutil.rmtree(folder)
    print(figures["ratios"], "same kept everywhere:", figures["same_kept_everywhere"])
    if arguments.json:
        packages = ("ray", "pyarrow", "datasketch")
        print_record(
            "dedup",
            arguments,
            packages,
            figures["rows"],
            figures["ratios"],
            same_kept_everywhere=figures["same_kept_everywhere"],
        )


if __name__ == "__main__":
    main()
