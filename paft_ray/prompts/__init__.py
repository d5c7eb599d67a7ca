"""Prompts: templates, lint, layouts, deduplication, a split without leaks, and the pool.

template.py    cleaning, parsing and rendering templates; pure
lint.py        what is wrong with a template or an instruction; pure
paraphrases.py requests for the examples in other words, and what is usable; pure
rewrite.py     asks for these, and keeps the answers; no Ray
slips.py       typing errors and the like, as an axis
variation.py   further ways to put a question: choices, demonstrations, slips; pure
layouts.py     the grammar of layouts, and the layout of any template; pure
leakage.py     whether two prompts share a wording or a layout; pure
split.py       which prompts are held out, and which train; pure
files.py       templates from files; stock.py: of the package; given.py: of a variant
candidates.py  from answers and files to unique candidates, counted
probe.py       how likely the base model makes the right answers under a prompt
coverage.py    order, map and distance of wordings
pool.py        the pool: its records, its assembly, its table
shown.py       prompts, and examples under them, for a person to look at
tested.py      those that an evaluation asks through
build.py       Ray Data: the whole way to a pool on storage
generate/      what LLMs are asked, and their answers
dedup/         similarity, the decision what to keep, and the same on Ray
"""
