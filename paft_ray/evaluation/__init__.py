"""Evaluation: prompts x examples, and what is said about them.

figures.py     the one list of figures: key, heading, meaning, format, name in MLflow; pure
metrics.py     formulas of figures over a grid of answers; pure
answers.py     the scores table as dense arrays; pure
bootstrap.py   intervals, and paired differences of two models; pure
estimation.py  the whole grid's figures from a part of it; pure
cells.py       which part: evenly first, then more of the weakest prompts; pure
summary.py     from the scores table to `summary.json`; pure
scorer.py      one model, one prompt, some examples to scores; no Ray
grid.py        Ray Data: the whole grid over actors that hold the model
selection.py   the single prompt that a user would have picked
"""
