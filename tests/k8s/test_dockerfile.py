"""The Dockerfile passes its checks, and they refuse changed ones."""

import pytest
from dockerfile import TEXT, complaints


def test_dockerfile_passes() -> None:
    assert list(complaints(TEXT)) == []


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        ("3.11.14-slim-bookworm\n", "slim\n", "BASE is not pinned"),
        ("FROM ${BASE} AS runtime", "FROM debian:12 AS runtime", "another image than BASE"),
        ("-c constraints.txt -r", "-r", "not held to constraints.txt"),
        ("USER 1000:1000", "USER root", "does not run as 1000:1000"),
        ("USER 1000:1000", "RUN apt-get update\nUSER 1000:1000", "into the stage that is shipped"),
        ("GOMP_SPINCOUNT=50000", "GOMP_SPINCOUNT=0", "50000 in paft_ray.cluster.session"),
        ("    TQDM_DISABLE=1\n", "    OTHER=1\n", "TQDM_DISABLE is None"),
        ("RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled", "without a token"),
        ("WORKDIR /src\n", "WORKDIR src\n", "DL3000"),
        ("USER 1000:1000", "USER root", "DL3002"),
    ],
)
def test_changed_dockerfile_is_refused(before: str, after: str, complaint: str) -> None:
    assert before in TEXT
    said = list(complaints(TEXT.replace(before, after)))
    assert any(complaint in line for line in said), said
