"""A lock's file that holds something else than a live lock stops nobody."""

import socket
import time
from pathlib import Path

import pytest
from input_rows import Row, read_rows

from paft_ray.config.errors import ConfigError
from paft_ray.storage.lock import LOCK_FILE, lock
from paft_ray.storage.paths import Storage

ROWS = [row for row in read_rows() if row.section == "locks"]


@pytest.mark.timeout(20, func_only=True)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_lock_file_stops_only_where_its_holder_lives(row: Row, tmp_path: Path) -> None:
    text = row.lock.replace("HOST", socket.gethostname()).replace("NOW", str(time.time()))
    (tmp_path / LOCK_FILE).write_text(text, encoding="utf-8")
    said = ""
    try:
        with lock(Storage.open(str(tmp_path)), "run 'x'"):
            pass
    except ConfigError as error:
        said = str(error)
    assert bool(said) == (row.want == "refused"), said
    assert all(word in said for word in row.words), said
