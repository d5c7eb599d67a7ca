"""Ray Train: the trainer, its workers as a rank group, heartbeats, elastic size."""
