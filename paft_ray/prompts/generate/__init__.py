"""Candidate prompts written by LLMs: requests, clients, the runner, kept answers."""
