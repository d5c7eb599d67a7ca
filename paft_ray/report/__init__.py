"""The results of a run for people: tables on the screen, pictures and self-contained pages.

files.py      a run's files, read into a few records
verdict.py    whether the main model is better, by how much, and how sure that is
text.py       the results on the screen, and their limits in sentences
lengths.py    how long trainings were, in sentences
tables.py     the summary's figures as tables of the page and of model cards
axis_tables.py  each axis of variation, and its part of the spread, as tables
accuracy.py   accuracy over prompts, and the prompts ranked
asked.py      the prompts of each model
oddness.py    prompts that may be nonsense
flips.py      examples that are right under one wording and wrong under another
training.py   losses over steps, training prompts drawn, and how losses weighed them
rollouts.py   what models wrote to learn from: rewards, and texts to read
coverage.py   the prompts on a map, and how new the test wordings are
search.py     a search's results: trials, finalists, the goal over every dimension
axes.py       scales and their round numbers
pictures.py   accuracy.png, learning_curve.png, sampling_*.png, search.png
page.py       report.html
pool_page.py  pool.html of a prompt pool
pool.py       a pool built, with its page, and tracked
written.py    what LLMs wrote for an evaluation, in sentences
results.py    scores, summary, report and model cards of a run, written; recorded.py tracks them
frames.py     results for Python: a DataFrame, HTML for a notebook, a plot
rendering.py  the templates (`templates/*.j2`), and the policy by which a page fetches nothing

Not covered: the figures, which are in `evaluation.figures`.
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
