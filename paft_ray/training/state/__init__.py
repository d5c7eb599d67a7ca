"""The state from which a training continues: checkpoints, shards, pruning, retries."""
