"""Reinforcement: the model writes texts for its questions, and learns from their grades.

rollouts.py    a question under a prompt at a step, and what was written for it
rewards.py     grades of texts, weighted
advantages.py  how much better a text is than the others of its question
steps.py       the batch plan of a step, once its rollouts are graded
kept.py        rollouts on storage
"""
