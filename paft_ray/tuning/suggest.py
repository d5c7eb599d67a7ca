"""Suggests the next sample of a search, with its number; no Ray.

Tune's own search spaces and its `OptunaSearch` are not used: their draws would change the samples
of stored searches, give the same sample twice, and report the figure of a stopped trial to
Optuna as that of a finished one.
"""

from collections.abc import Mapping
from typing import Any

from paft_ray.config import (
    Choice,
    Config,
    DimensionConfig,
    LogRandInt,
    LogUniform,
    OptunaSearch,
    RandInt,
    TuningConfig,
)
from paft_ray.config.errors import ConfigError
from paft_ray.storage.fingerprint import fingerprint
from paft_ray.tuning.space import Sample, apply, count_trials, draws, sample_key, samples
from paft_ray.tuning.trial import State

_OPTUNA_DRAWS = 20
"""Draws of Optuna without a new sample after which a random one is taken."""


class Suggester:
    """Gives samples in the order of their numbers; trials that have begun keep theirs."""

    def __init__(self, tuning: TuningConfig, config: Config, begun: Mapping[int, Sample]) -> None:
        """Start with trial 0.

        Args:
            tuning: The search.
            config: The configuration that its samples change.
            begun: Samples of the trials that have begun, by number.
        """
        self._begun, self._next = begun, 0
        by_optuna = isinstance(tuning.search, OptunaSearch)
        self._optuna = _Optuna(tuning, config, begun) if by_optuna else None
        self._fixed = [] if by_optuna else samples(tuning, config.seed)
        self.total = count_trials(tuning, config.seed)

    def suggest(self) -> tuple[int, Sample] | None:
        """The next trial; None when there are no more."""
        number, known = self._next, self._begun.get(self._next)
        if number >= self.total:
            return None
        if self._optuna is not None:
            sample = self._optuna.suggest(number, known)
        else:
            sample = known or self._fixed[number]
        if sample is None:
            return None
        self._next += 1
        return number, sample

    def ended(self, number: int, state: State, goal: float | None) -> None:
        """Take the state and the figure of a trial that has ended into account."""
        if self._optuna is not None:
            self._optuna.ended(number, state, goal)


class _Optuna:
    """A study in memory: when a search resumes, trials that are over report again and fill it."""

    def __init__(self, tuning: TuningConfig, config: Config, begun: Mapping[int, Sample]) -> None:
        import optuna

        assert isinstance(tuning.search, OptunaSearch)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        # with the number of trials that have begun: else a resumed search would draw these again
        seed = int(fingerprint("optuna", config.seed, len(begun))[:8], 16)
        sampler = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=tuning.search.startup_trials
        )
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._config, self._space = config, tuning.space
        self._distributions = {p: _distribution(d) for p, d in sorted(tuning.space.items())}
        self._running: dict[int, Any] = {}
        self._seen = set(map(sample_key, begun.values()))
        self._random = draws(tuning.space, config.seed)

    def suggest(self, number: int, known: Sample | None) -> Sample | None:
        """A new sample, or the known one; None where there is no new one.

        Where Optuna repeats earlier samples, a random one is taken.
        """
        for _ in range(0 if known else _OPTUNA_DRAWS):
            trial = self._study.ask(self._distributions)
            sample = {path: self._outer(path, value) for path, value in trial.params.items()}
            if self._is_new(sample):
                self._running[number] = trial
                return sample
            self._finish(trial, "failed", None)
        sample = known or next(filter(self._is_new, self._random), None)
        if sample is not None:
            self._study.enqueue_trial({p: self._inner(p, v) for p, v in sample.items()})
            self._running[number] = self._study.ask(self._distributions)
        return sample

    def ended(self, number: int, state: State, goal: float | None) -> None:
        if number in self._running:
            self._finish(self._running.pop(number), state, goal)

    def _finish(self, trial: Any, state: State, goal: float | None) -> None:
        from optuna.trial import TrialState

        if state == "finished" and goal is not None:
            self._study.tell(trial, goal)
        elif state == "stopped" and goal is not None:
            trial.report(goal, 0)
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._study.tell(trial, state=TrialState.FAIL)

    def _is_new(self, sample: Sample) -> bool:
        """Return whether a sample is new and a valid configuration."""
        if sample_key(sample) in self._seen:
            return False
        self._seen.add(sample_key(sample))
        try:
            apply(self._config, sample)
        except ConfigError:
            return False
        return True

    def _inner(self, path: str, value: Any) -> Any:
        """The value for Optuna: of a choice its index, since the value may be a mapping."""
        dimension = self._space[path]
        return dimension.values.index(value) if isinstance(dimension, Choice) else value

    def _outer(self, path: str, value: Any) -> Any:
        dimension = self._space[path]
        return dimension.values[value] if isinstance(dimension, Choice) else value


def _distribution(dimension: DimensionConfig) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(dimension, Choice):
        return CategoricalDistribution(range(len(dimension.values)))
    log = isinstance(dimension, LogRandInt | LogUniform)
    if isinstance(dimension, RandInt | LogRandInt):
        return IntDistribution(dimension.low, dimension.high, log=log)
    return FloatDistribution(dimension.low, dimension.high, log=log)
