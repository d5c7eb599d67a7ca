"""Models: what can be known without torch, text to tokens, base model and adapter, scoring.

files.py          configuration, tensors and tokenizer of a model, read without torch
base.py           where a base model lies; converted and fetched once per node
trial.py          model, adapter and lengths tried before work, in a process beside the driver
tokenization.py   rendered text and answer to token ids; rows (packing)
model.py          base model, any peft method, save and load of the adapter
peft_check.py     whether `model.peft` fits peft and the model; switch_check.py: the other switches
quantized.py      frozen weights in 4 bits; switches.py: checkpointed activations, compiled layers
warm_start.py     an adapter that training begins with
full.py           all weights trained, and stored as a model of its own
scoring.py        answer log-likelihoods and generation for a batch
"""
