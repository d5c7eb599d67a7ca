"""What leaves a run: an adapter, a merged model, a pyfunc, tasks for lm-evaluation-harness."""
