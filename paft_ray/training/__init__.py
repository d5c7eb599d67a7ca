"""Training: which prompt, which rows, one engine, one loop, state that survives.

sampler.py      which example and which prompt for (step, slot); pure
plan.py         the global batch of step t dealt into rows for every rank; pure
schedule.py     learning rate of step t; pure
engine.py       configuration to DeepSpeed engine
shards.py       who keeps which part of the state, in which files; pure
checkpoint.py   rank-free state to and from storage
retention.py    which checkpoint counts, and which nobody needs any more
patience.py     how long storage that fails is waited for
loop.py         the loop; no Ray
trainer.py      Ray Train: `train(config, pool, variant)`
"""
