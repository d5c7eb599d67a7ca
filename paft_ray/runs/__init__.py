"""Shared by the stages of one command: the context, opening a run, settings, progress, the log."""
