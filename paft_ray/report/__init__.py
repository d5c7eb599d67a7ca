"""What a run found, for people: the table on the screen, two pictures, self-contained pages.

files.py      a run's files, read into a few records
text.py       the results on the screen, and the sentences that keep them honest
tables.py     the summary's figures as tables of the page and of model cards
accuracy.py   accuracy over prompts, and the prompts ranked
flips.py      examples that are right under one wording and wrong under another
training.py   losses over steps, training prompts drawn, and what losses made of them
coverage.py   the prompts on a map, and how new the test wordings are
search.py     what a search found: trials, finalists, the goal over every dimension
axes.py       scales and their round numbers
pictures.py   accuracy.png, learning_curve.png, sampling_*.png, search.png
page.py       report.html, of all these
pool_page.py  pool.html of a prompt pool
rendering.py  the templates (`templates/*.j2`), and the policy by which a page fetches nothing

Covered: showing what files say. Not covered: the figures, which are `evaluation.figures`.
"""

from paft_ray.report.files import SEARCH_FILE
from paft_ray.report.page import write_report
from paft_ray.report.pool_page import POOL_PAGE, funnel_lines, write_pool_page
from paft_ray.report.search import search_table
from paft_ray.report.tables import card_figures
from paft_ray.report.text import results_table

__all__ = [
    "POOL_PAGE",
    "SEARCH_FILE",
    "card_figures",
    "funnel_lines",
    "results_table",
    "search_table",
    "write_pool_page",
    "write_report",
]
