"""A task: a data set, its fields, its answer, and its examples in three splits.

example.py   the records: `Example`, `Task`
example_table.py  examples as an Arrow file, mapped into memory
builtin.py   the published tasks, described as data
tables.py    JSONL, JSON, CSV, TSV and Parquet files to rows
values.py    a row's values: nested ones by a path, every kind as text
sources.py   files, saved data sets and the hub to rows, and which split serves as which
split.py     examples to train, validation and test
loading.py   rows to `Task`: mapping, ids, splits
grading.py   the answer in a generated text
"""

from paft_ray.tasks.example import Example, Task
from paft_ray.tasks.loading import load_task

__all__ = ["Example", "Task", "load_task"]
