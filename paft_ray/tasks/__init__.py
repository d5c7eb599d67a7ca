"""A task: a data set, its fields, its answer, and its examples in three splits.

base.py      the records: `Example`, `Task`
builtin.py   the published tasks, described as data
sources.py   files, saved data sets and the hub to rows
load.py      rows to `Task`: mapping, ids, splits
"""

from paft_ray.tasks.example import Example, Task
from paft_ray.tasks.loading import load_task

__all__ = ["Example", "Task", "load_task"]
