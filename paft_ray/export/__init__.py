"""Exports of a run: adapter, merged model, pyfunc, tasks for lm-evaluation-harness."""
