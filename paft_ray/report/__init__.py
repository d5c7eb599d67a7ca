"""What a run found, for people: the table on the screen, two pictures, self-contained pages.

table.py      the results as text, and the sentences that keep them honest
files.py      a run's files, read into a few records
pictures.py   accuracy.png and learning_curve.png
page.py       report.html, from `report.html.j2` beside this folder
pool_page.py  pool.html of a prompt pool, from `pool.html.j2`

Covered: showing what files say. Not covered: the figures, which are `evaluation.metrics`.
"""

from paft_ray.report.page import write_report
from paft_ray.report.pool_page import POOL_PAGE, funnel_lines, write_pool_page
from paft_ray.report.table import card_figures, results_table

__all__ = [
    "POOL_PAGE",
    "card_figures",
    "funnel_lines",
    "results_table",
    "write_pool_page",
    "write_report",
]
