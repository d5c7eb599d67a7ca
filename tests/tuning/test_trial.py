"""Records of trials on storage."""

from pathlib import Path

from paft_ray.serving.record import MadeFrom, TrainingRecord
from paft_ray.storage.paths import Storage
from paft_ray.tuning.trial import TrialRecord, read_record, read_records, write_record

STORED = Path(__file__).parents[1] / "fixtures/stored_run/storage/runs/searched"
TRAINED = TrainingRecord(
    variant="trial_000", seed=0, steps=2, tokens=70, answer_tokens=7, trimmed=0, seconds=1.5,
    prompts=3, workers=1, dtype="float32", last_loss=0.5, made_from=MadeFrom("t", "m", "p"),
)  # fmt: skip


def test_records_of_trials_stand_on_storage(tmp_path: Path) -> None:
    run = Storage.open(str(tmp_path))
    assert read_records(run) == []
    assert read_record(run, 0) is None
    begun = TrialRecord(1, {"train.steps": 4})
    over = TrialRecord(0, {"train.steps": 2}, "stopped", 3.5, about=TRAINED)
    write_record(run, begun)
    write_record(run, over)
    assert read_records(run) == [over, begun]
    assert read_record(run, 1) == begun
    assert over.over and not begun.over


def test_records_that_are_read_are_written_as_they_were(tmp_path: Path) -> None:
    stored, copy = Storage.open(str(STORED)), Storage.open(str(tmp_path))
    for record in read_records(stored):
        write_record(copy, record)
    names = stored.child("trials").names()
    assert len(names) == 2
    for name in names:
        assert (tmp_path / "trials" / name).read_bytes() == (STORED / "trials" / name).read_bytes()
