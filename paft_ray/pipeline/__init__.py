"""Whole commands: variants, checks, plan, run, and one function per verb."""
