"""Whole commands: variants, checks, plan, run, and one function per verb.

api.py        the Python API: one function per verb; results.py: what they return
prompt_data.py  data for other trainers from a configuration
verbs.py      the verbs: what each does, and what it needs
verb_checks.py  what each verb refuses before anything is written
perform.py    a verb prepared, which only checks, and then performed
preflight.py  checks of a configuration before the first write, without Ray and torch
endpoints.py  checks of endpoints, and what measuring them takes
written.py    checks of what LLMs write for an evaluation, and what that takes
subjects.py   checks of the models under `evaluation.subjects`
recorded.py   what is recorded under a name, against what is to run
backend.py    whether vLLM is there, and can serve what is measured
trust.py      models whose own Python files may run
nodes.py      checks on every node of a joined cluster
gpus.py       memory of this node's GPUs
plan.py       the work and the needs of a run, without doing it; plan_cluster.py: on its nodes,
              needs.py: of its trainings
run.py        pool, trainings, evaluation, report
variants.py   the prompts that each variant trains on
listing.py    `paft runs`: what is on a storage
comparing.py  `paft compare`: models of several runs in one paired table
status.py     `paft status`: results of a run, or how far it is; deleting.py: `paft delete`
first_config.py `paft init`: a configuration from a look at data (first_look.py), written with
              comments and wordings (first_text.py)
robustness.py `paft robustness`: how brittle a model is; question.py makes its configuration,
              behind_url.py asks a URL for its model
"""
