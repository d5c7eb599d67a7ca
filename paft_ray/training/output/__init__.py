"""Saving and verifying the result of a training."""
