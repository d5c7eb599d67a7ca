"""What tests share: a tiny real model on disk, a small task, and one Ray cluster."""

import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from factories import WORDS, run_config, write_prompts, write_reviews

if TYPE_CHECKING:
    from heads import Head

    from warm_checks import KeptProcess

# how long an example takes says how busy the machine is, not whether anything is wrong
PATIENT: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("quick", max_examples=50, **PATIENT)
settings.register_profile("thorough", max_examples=200, **PATIENT)
settings.load_profile(os.environ.get("PAFT_TEST_EXAMPLES", "quick"))

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# where transformers copies the Python files of models to, for all processes of a session
_MODULES = TemporaryDirectory(prefix="modules-")
os.environ["HF_MODULES_CACHE"] = _MODULES.name
# read when ray is imported, which some test modules do
os.environ["RAY_AUTH_MODE"] = "token"
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of moto's server, with a bucket `paft` and credentials in the environment."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        server.start()
        host, port = server.get_host_and_port()
        boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket="paft")
        yield f"{host}:{port}"
        server.stop()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers with random weights, and a byte-level tokenizer, as a folder."""
    from tiny import write_model

    return write_model(tmp_path_factory.mktemp("tiny-model"), WORDS)


@pytest.fixture(scope="session")
def review_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSONL file of 120 short reviews with their sentiment."""
    return write_reviews(tmp_path_factory.mktemp("data") / "reviews.jsonl")


@pytest.fixture(scope="session")
def _kept_checks() -> "Iterator[KeptProcess]":
    from warm_checks import KeptProcess

    process = KeptProcess()
    yield process
    process.end()


@pytest.fixture
def warm_checks(_kept_checks: "KeptProcess", monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets commands in this process share the process that checks models, which imports for 7 s."""
    monkeypatch.setattr("paft_ray.pipeline.perform.ModelCheckProcess", _kept_checks.fresh)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One Ray on this machine for all tests that need it; no test starts its own."""
    from paft_ray.cluster.session import ray_session

    with ray_session():
        yield


@pytest.fixture(scope="module")
def head() -> "Iterator[Head]":
    """A head with two CPUs on loopback, which requires a token."""
    from heads import running_head

    with running_head(cpus=2, token=secrets.token_hex(32)) as head:
        yield head


@pytest.fixture(scope="session")
def smollm(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of SmolLM2-135M-Instruct, converted from GGUF."""
    from smollm import KEPT, MODEL

    from paft_ray.models.base_model import prepare_base
    from paft_ray.storage.paths import Storage

    kept = os.environ.get(KEPT) or str(tmp_path_factory.mktemp("smollm"))
    return prepare_base(MODEL, None, Storage.open(kept))


@pytest.fixture(scope="session")
def loras(smollm: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of two LoRA adapters of SmolLM2, by name: of different ranks, on other modules."""
    from smollm import PLAIN, WIDE, write_lora

    folder = tmp_path_factory.mktemp("loras")
    return {
        "plain": write_lora(smollm, folder / "plain", PLAIN, seed=1),
        "wide": write_lora(smollm, folder / "wide", WIDE, seed=2),
    }


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of two MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.fixture
def small_run(tmp_path: Path, tiny_model: Path, review_file: Path) -> dict[str, Any]:
    """The configuration of a run of half a minute; all its paths are absolute."""
    texts = [
        "Review: {review}\nLabel:", "{review}\nIs this positive or negative?",
        "Text: {review}\nSentiment:", "How does this feel? {review} ->", "{review} || mood ||",
        "Classify: {review} =", "<film> {review} </film>", "Say the attitude of: {review}\nAnswer:",
    ]  # fmt: skip
    prompts = write_prompts(tmp_path / "prompts.jsonl", texts)
    return run_config(
        tiny_model, review_file, tmp_path / "storage",
        task={"max_length": 200, "validation_share": 0.2, "test_share": 0.2},
        prompts={"files": [str(prompts)], "split": {"validation": 2, "test": 2}},
        train={
            "steps": 20, "row_tokens": 512, "learning_rate": 1e-2,
            "checkpoint": {"every_steps": 5},
        },
        evaluation={"examples": 10},
        variants=[{"type": "paft"}],
    )  # fmt: skip
