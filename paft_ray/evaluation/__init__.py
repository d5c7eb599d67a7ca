"""Evaluation: subjects x prompts x examples, scored, and the figures of their answers.

figure.py          what a figure is; pure
cost_figures.py    those of what answers and trainings cost; pure
figures.py         the one list of figures: key, heading, meaning, format, name in MLflow; pure
metrics.py         formulas of figures over a grid of answers; pure
answers.py         the scores table as dense arrays; pure
axes.py            how much each axis of variation moves a model's answers; pure
components.py      how much of the spread of grades each axis makes; pure
bootstrap.py       intervals, and paired differences of two models; pure
estimate.py        the whole grid's figures from a part of it; pure
estimate_cells.py  which part: evenly first, then more of the weakest prompts; pure
goal.py            the figure by which trials and checkpoints are chosen; pure
summary.py         from the scores table to `summary.json`; pure
scores.py          what a model said, graded: records and their table
predictors.py      scores of one model under one prompt on some examples; no Ray
units.py           the grid cut into units, and what each is kept under; no Ray
actor_pool.py      Ray Data: actors that score units (actors.py), and stay for later ones
pairs.py           one pair after another, as they are asked for
grid.py            Ray Data: the whole grid over actors that hold the model
served.py          scores by vLLM; parity.py whether they are those of transformers
endpoint.py        what a model behind an endpoint is asked, and the scores of its answers; pure
endpoint_runner.py sends that from the driver, and keeps every answer; no Ray
subjects.py        the base model, what was trained and other models, evaluated on test prompts
optimize.py        the search for one good prompt by an LLM; optimized.py keeps it
one_prompt.py      models under one prompt that was found for them
paraphrased.py     the examples in other words, as conditions
comparators.py     several prompts for one answer, chosen at test time
selection.py       the training prompt that a careful user would have picked for a model
"""
