"""Language models: their files, tokens and rows, loading, adapters and scoring.

files.py         a model's files and identity, without torch
gguf_header.py   the header of a GGUF file, in bounded time
base_model.py    base models on every node; GGUF converted once
pretrained.py    the one place that reads models with transformers, and whom it trusts
narrow.py        frozen weights in 16 bits
load.py          models, tokenizers and adapters, loaded and saved
full.py          a model whose weights were all trained, stored
base_check.py    a base model's files against its architecture and tokenizer
warm_start.py    an adapter with which training begins
tokenization.py  texts and answers to tokens
chat.py          chat templates, rendered in one way; thinking.py switches reasoning off
chat_files.py    a chat template as it lies in a model's folder, without torch
targets.py       the modules that an adapter has where none are named
packing.py       sequences to rows; pure
sharing.py       rows whose sequences share a common beginning; pure
transfer.py      arrays to a device, all in one copy
attention.py     attention inside the sequences of a row; varlen.py by kernels of GPUs
head.py          logits in fp32, and long ones in chunks
said.py          what a model says to a context, without torch
logprobs.py      log-probabilities of answers
generation.py    texts that a model writes
sampling.py      texts drawn from its whole distribution, with their log-probabilities
row_check.py     whether rows keep sequences apart; row_probes.py what that is tried with
text_check.py    whether texts are continued alike in batches and alone
dtype.py         the arithmetic that `auto` means
kept.py          a base model that trainings share
flops.py         operations that a row needs, and what a device can do
quantized.py     frozen weights in 4 bits
gpu.py           what torch and CUDA read when they start
watch.py         weights read and layers computed, reported as they are
switches.py      activation checkpointing and compilation
switch_check.py  whether these work together, and here
vllm.py          vLLM in this process; vllm_limits.py what it cannot serve
peft_check.py    checks of `model.peft`
meta.py          checks with a model without weights
check_process.py the process in which they run, beside the driver
activations.py   what a token leaves for the backward pass
cpu/             kernels for CPUs
cuda/            norms and LoRA in fewer passes, for GPUs
"""
