"""Shared by the stages of one command: the context, opening a run, settings, progress, the log.

context.py   configuration, task, storage and identities of one command
opening.py   the lock, the recorded configuration, tracking, seconds of stages
subjects.py  the models under `evaluation.subjects`, and the identity of their files
examples.py  examples of a stage, for the processes of all nodes
paraphrases.py  these in other words, likewise
settings.py  checks of settings that a search may change too
progress.py  the protocol of progress, and its screens; notebook.py: that of a notebook
progress_record.py  how far a run is, on its storage
log.py       the run's log file
"""
