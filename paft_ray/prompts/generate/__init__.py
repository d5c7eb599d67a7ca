"""Candidate prompts written by LLMs: requests, clients, the runner, kept answers.

meta_prompt.py   the message by which an LLM is requested to write a prompt; pure
requests.py      requests as functions of seed, LLM, strategy and index; pure
units.py         units of requests, their answers on storage, rounds, the token budget
llm.py           the LLM of a configuration; models in this process
endpoint.py      clients of endpoints: many requests in flight, retries
chat_protocol.py the OpenAI chat protocol as endpoints speak it; pure
text_protocol.py the completions protocol: texts, and log-probabilities of prompts; pure
bounded.py       limits of an HTTP answer
retry_after.py   how long an endpoint asks to wait; pure
background.py    the event loop of requests in flight
fake.py          an LLM without a model
rate_limit.py    one limit for all actors of an endpoint
completions.py   one answer, and the candidate in it; pure
reasoning.py     what an LLM thought, taken out of its answer; pure
kept_answers.py  answers on storage, appended as they arrive
novelty.py       whether a text is unlike all before it; pure
results.py       candidates, failures, tokens and costs
asking.py        one LLM that is asked as work goes on
reflection.py    the message by which a prompt is improved; pure
runner.py        Ray Data: all LLMs at once, each in actors of its own
"""
