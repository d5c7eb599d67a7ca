"""The search for the settings of the most robust model, on **Ray Tune**.

space.py    samples of the search space, and the configurations that they stand for; pure
goal.py     the figure that is to be high, and the trials' records
pools.py    a pool for every way to generate, the same held-out prompts for all
trial.py    one trial: a Ray Train run inside a Tune function
tuner.py    Ray Tune: which trial runs when, and which is asked to stop
search.py   the whole: pools, trials, finalists, one evaluation on test prompts
view.py     what a person sees while it runs
"""
