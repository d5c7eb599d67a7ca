"""What a model says to a context, whoever computes it; no torch."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Continuation:
    """A generated text."""

    text: str
    """Up to the end token or the first text to stop at, without either."""
    tokens: int
    """Number of its tokens, including those that end it."""
    ended: bool
    """Whether it came to an end, and was not cut at the most tokens."""


@dataclass(frozen=True, slots=True)
class Likelihoods:
    """Log-likelihoods of the answers to one context, in nats."""

    whole: tuple[float, ...]
    """Of each answer, with its end token where it has one."""
    text: tuple[float, ...]
    """The same without the end token."""
