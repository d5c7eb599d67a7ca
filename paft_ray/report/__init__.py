"""What a run found, for people: the table on the screen, two pictures, one self-contained page.

table.py      the results as text, and the sentences that keep them honest
files.py      a run's files, read into a few records
pictures.py   accuracy.png and learning_curve.png
page.py       report.html, from `report.html.j2` beside this folder

Covered: showing what a run's files say. Not covered: the figures, which are `evaluation.metrics`.
"""

from paft_ray.report.page import write_report
from paft_ray.report.table import results_table

__all__ = ["results_table", "write_report"]
