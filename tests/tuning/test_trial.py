"""Records of trials on storage."""

from pathlib import Path

from paft_ray.storage.paths import Storage
from paft_ray.tuning.trial import TrialRecord, read_record, read_records, write_record


def test_records_of_trials_stand_on_storage(tmp_path: Path) -> None:
    run = Storage.open(str(tmp_path))
    assert read_records(run) == []
    assert read_record(run, 0) is None
    begun = TrialRecord(1, {"train.steps": 4})
    over = TrialRecord(0, {"train.steps": 2}, "stopped", 3.5, about={"steps": 2})
    write_record(run, begun)
    write_record(run, over)
    assert read_records(run) == [over, begun]
    assert read_record(run, 1) == begun
    assert over.over and not begun.over
