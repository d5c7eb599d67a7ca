"""Prompts: templates, lint, layouts, deduplication, a split without leaks, and the pool."""
