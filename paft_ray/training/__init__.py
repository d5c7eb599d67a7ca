"""Training: which prompt, which rows, one engine, one loop, state that survives.

sampler.py      which example and which prompt for (step, slot); pure
plan.py         the global batch of step t dealt into rows for every rank; pure
schedule.py     learning rate of step t; pure
engine.py       configuration to DeepSpeed engine
checkpoint.py   rank-free state to and from storage
loop.py         the loop; no Ray
watched.py      the engine, saying where it stands
heartbeat.py    who is stuck, judged by the driver; pure but for a thread that sends
growth.py       when an elastic training begins anew as more ranks
ranks.py        Ray Train's workers into one process group; notice of SIGTERM and of drains
worker.py       what one rank does
trainer.py      Ray Train: `train(config, pool, variant)`
"""
