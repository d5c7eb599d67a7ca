"""Reinforcement: the model writes texts for its questions, and learns from their grades.

The model's own labels, in the place of answers, are learned in the same way.

rollouts.py    a question under a prompt at a step, and what was written for it
backends.py    what writes them; estimates.py: memory and time of that
rewards.py     grades of texts, weighted
advantages.py  how much better a text is than the others of its question
dealing.py     the model's own texts in rows
steps.py       the batch plan of a step, once its rollouts are graded
own_labels.py  the batch plan of a step on labels of the model's own; labellers.py chooses
consensus.py   labels by a vote of several prompts
prefix.py      labels that the model writes: the first tokens of a text
kept.py        rollouts on storage
"""
