"""What a training keeps on storage to continue: checkpoints, shards, pruning, retries."""
