"""Examples on storage: the same on every node, small where they are pickled, and mapped."""

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from paft_ray.config.errors import ArtifactError
from paft_ray.runs.examples import store_examples
from paft_ray.storage.paths import Storage
from paft_ray.tasks import Example
from paft_ray.tasks.example_table import ExampleTable

EXAMPLES = [
    Example(
        f"{n:016x}", {"text": f"good \U0001f600 {n}", "a b.c[0]": ""}, "yes" * n, f"d.csv, line {n}"
    )
    for n in range(50)
]


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch) -> Storage:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if request.param == "local":
        return Storage.open(str(tmp_path / "storage"))
    address = request.getfixturevalue("s3")
    return Storage.open(f"s3://paft/{tmp_path.name}?endpoint_override={address}&scheme=http")


def test_examples_come_back_as_they_were(storage: Storage) -> None:
    stored = store_examples(storage, EXAMPLES)
    found = pickle.loads(pickle.dumps(stored)).open()
    assert list(found) == EXAMPLES
    assert [example.where for example in found] == [example.where for example in EXAMPLES]
    assert (len(found), found[-1], found[3:5]) == (50, EXAMPLES[-1], tuple(EXAMPLES[3:5]))
    assert list(found[0].fields) == list(EXAMPLES[0].fields)
    assert len(pickle.dumps(stored)) < 1000
    assert store_examples(storage, EXAMPLES) == stored
    moved = [replace(EXAMPLES[0], answer="other"), *EXAMPLES[1:]]
    assert store_examples(storage, moved).identity != stored.identity
    assert list(store_examples(storage, []).open()) == []


def test_copy_that_is_not_what_was_written_is_refused(storage: Storage, tmp_path: Path) -> None:
    stored = store_examples(storage, EXAMPLES)
    stored.open()
    [file] = tmp_path.glob("**/examples.arrow")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(ArtifactError, match="not what was written"):
        stored.open()


PROGRAM = """
import random, sys
from pathlib import Path
from paft_ray.models.load import load_tokenizer
from paft_ray.models.tokenization import TextEncoder
from paft_ray.prompts.template import parse
from paft_ray.tasks.example_table import ExampleTable
from paft_ray.training.batch_plan import Planner
from paft_ray.training.sampler import PromptSampler

def private():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024

tokenizer = load_tokenizer(sys.argv[2])
encoder = TextEncoder(tokenizer, "none", 400, "refuse", end_id=tokenizer.eos_token_id)
def planner(examples):
    prompts = [("p", parse("Say {text} =", ("text",)))]
    return Planner(examples, prompts, encoder, PromptSampler(1, 1), 1, 64, 4096, True)
planner(ExampleTable(Path(sys.argv[1]))[:64]).plan(0)
before = private()
whole = planner(ExampleTable(Path(sys.argv[1])))
for step in range(20):
    whole.plan(step)
print(len(whole.examples), private() - before)
"""


@pytest.mark.slow
def test_a_rank_grows_by_less_than_50_mib_for_a_million_examples(
    tmp_path: Path, tiny_model: Path
) -> None:
    pa = pytest.importorskip("pyarrow")
    count = 1_000_000
    numbers = pa.array(range(count)).cast(pa.large_string())
    import pyarrow.compute as pc

    tail = pa.scalar(" " + "a good film " * 20, pa.large_string())
    separator = pa.scalar("", pa.large_string())
    table = pa.table(
        {
            "id": pc.utf8_lpad(numbers, 16, "0"),
            "answer": pa.repeat(pa.scalar("good", pa.large_string()), count),
            "where": numbers,
            "field:text": pc.binary_join_element_wise(numbers, tail, separator),
        }
    )
    path = tmp_path / "examples.arrow"
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)
    assert ExampleTable(path)[count - 1].id == f"{count - 1:016}"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path), str(tiny_model)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found, grown = done.stdout.split()[-2:]
    assert int(found) == count
    assert float(grown) < 50, f"{grown} MiB for {path.stat().st_size / 2**20:.0f} MiB of examples"
