"""Training: which prompt, which rows, one engine, one loop, state that survives.

sampler.py      which example and which prompt for (step, slot); pure
weighting.py    what past losses make of draws and weights; pure
plan.py         the global batch of step t dealt into rows for every rank; pure
objective.py    what a step minimises
schedule.py     learning rate of step t; pure
engine.py       configuration to DeepSpeed engine
zero.py         whole tensors of what ZeRO keeps in parts
shards.py       who keeps which part of the state, in which files; pure
checkpoint.py   rank-free state to and from storage
retention.py    which checkpoint counts, and which nobody needs any more
patience.py     how long storage that fails is waited for
ledger.py       what was drawn and what it cost, on storage
loop.py         the loop; no Ray
handover.py     a trained engine saved as a verified adapter, with its card and pyfunc
verification.py whether what was written is what was trained
job.py          what a training and each of its ranks is told; no Ray
heartbeat.py    who is stuck, judged by the driver; pure but for a thread that sends
growth.py       when an elastic training begins anew as more ranks
ranks.py        Ray Train's workers into one process group; notice of SIGTERM and of drains
worker.py       what one rank does
launch.py       Ray Train: starts ranks, looks after them, starts them again
trainer.py      `train(context, prompts, training, pool)`
"""
