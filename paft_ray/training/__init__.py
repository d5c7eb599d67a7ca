"""Training: one engine and one loop over plans that are pure functions of the step.

sampler.py         example and prompt of (step, slot); pure
prompt_weights.py  draw probabilities and loss weights from past losses; pure
draws.py           the examples and prompts of a global batch
batch_plan.py      the global batch of a step, dealt into rows for every rank; pure
planning.py        the planner that a configuration describes
prompt_dataset.py  draws by position for Hugging Face's Trainer, TRL and loops of your own
objective.py       the loss that a step minimises
schedule.py        learning rate of a step; pure
engine.py          configuration to engine: DeepSpeed's, or a plain one
deepspeed_engine.py  DeepSpeed's engine: configuration and start
plain.py           the same steps in plain torch
zero.py            dividing a model, and whole tensors of weights that ZeRO keeps in parts
loop.py            the training loop; no Ray
speed.py           tokens, FLOPs, memory and seconds of steps
profiling.py       a trace of some steps
local.py           training in this process, without Ray and DeepSpeed
validation.py      scores of the model while it is trained
selection.py       the best step by these scores, and an early end
ledger.py          draws and their losses, on storage
job.py             the data that a rank receives; no Ray
identity.py        fingerprint and folder of a training
lengths.py         refusal of examples that are too long
paraphrased.py     training examples in other words, written once for all trainings
estimates.py       memory and storage that a training needs
gpu_fit.py         whether it fits a GPU, and with which settings; pure
reinforcement/     texts that the model writes itself, graded, and what is learned from them
state/             checkpoints, shards, pruning, retries
distributed/       Ray Train: trainer, launch, worker, rank group, heartbeat, elastic size
output/            saving and verifying the result
"""
