"""What the stages of one command share: the context, opening a run, progress."""
