"""A task: a data set, its fields, its answer, and its examples in three splits.

example.py   the records: `Example`, `Task`
example_table.py  examples as an Arrow file, mapped into memory
builtin.py   the published tasks, described as data
tables.py    JSONL, JSON, CSV, TSV and Parquet files to rows
values.py    a row's values: nested ones by a path, every kind as text
row_choices.py  the choices that stand in a row, and which is right
sources.py   files, saved data sets and the hub to rows, and which split serves as which
collecting.py  rows to fields and answers; columns.py: what columns hold, for a person
split.py     examples to train, validation and test
loading.py   rows to `Task`: mapping, ids, splits
guessing.py  a task's section of a configuration, from its rows
wordings/    wordings of every kind of task, a line each; `prompts.stock` makes prompts of them
grading.py   what a prediction is worth: one grader for each `task.grade`
gradable.py  refusals of answers that could not be graded
demonstrations.py  training examples in front of a question
grade_process.py, grade_script.py  a grader of the user's own, in a process of its own
"""

from paft_ray.tasks.example import Example, Task
from paft_ray.tasks.loading import load_task

__all__ = ["Example", "Task", "load_task"]
