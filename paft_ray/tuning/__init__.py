"""The search for the settings of the most robust model, on **Ray Tune**.

space.py      samples of the search space, and the configurations that they stand for; pure
suggest.py    which sample comes next: random, grid, Optuna
settings.py   checks of a search before Ray starts; how many trials fit
pools.py      a pool for every way to generate, the same held-out prompts for all
trial.py      one trial: its record, and a Ray Train run inside a Tune function
tuner.py      Ray Tune: which trial runs when, and which stops early
monitor.py    the tracked runs of trials, kept by the driver
view.py       the table or lines on the screen while trials run
finalists.py  the best trials, the run that compares them, the content of `search.json`
search.py     a whole search: pools, trials, finalists, one evaluation on test prompts
"""
