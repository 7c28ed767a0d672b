"""Metrics of single steps to what a log line says, and the checks that stop a run which cannot succeed."""

import math
from collections.abc import Callable

import jax

from pi05.errors import NotLearning

Metrics = dict[str, float]
LEARNED = 0.05
"""Share of the loss of predicting nothing that a run must have explained by its patience."""


class Meter:
    """Collects device scalars without waiting for them and averages them when asked.

    Args:
        patience: Step by which something must have been learned; 0 never checks.
        clock: Seconds, monotonic.
    """

    def __init__(self, patience: int, clock: Callable[[], float]) -> None:
        self._patience, self._clock = patience, clock
        self._pending: list[dict[str, jax.Array]] = []
        self._since = clock()

    def add(self, metrics: dict[str, jax.Array]) -> None:
        """Remember the metrics of one step; they may still be computing."""
        self._pending.append(metrics)

    def read(self, step: int) -> Metrics:
        """Return the means since the last call, the step's norms and rate, and the seconds a step took.

        Raises:
            NotLearning: A loss or gradient is not finite, or nothing was learned by `patience`.
        """
        rows = jax.device_get(self._pending)
        last = {name: float(value) for name, value in rows[-1].items()}
        means = {name: sum(float(row[name]) for row in rows) / len(rows) for name in ("loss", "loss_real", "explained")}
        now = self._clock()
        result = {**last, **means, "seconds_per_step": (now - self._since) / len(rows)}
        self._refuse_what_cannot_succeed(step, result)
        self._pending, self._since = [], now
        return result

    def _refuse_what_cannot_succeed(self, step: int, metrics: Metrics) -> None:
        for name in ("loss", "grad_norm", "param_norm"):
            if not math.isfinite(metrics[name]):
                raise NotLearning(
                    f"{name} is {metrics[name]} at step {step}; no checkpoint of these weights was written. Lower "
                    "train.optimizer.peak_lr, or resume from the last checkpoint with another train.seed"
                )
        if self._patience and step >= self._patience and metrics["explained"] < LEARNED:
            raise NotLearning(
                f"after {step} steps the loss {metrics['loss']:.3f} is still that of predicting nothing (explained "
                f"{metrics['explained']:.1%}, at least {LEARNED:.0%} is required by step {self._patience}). Try "
                "another train.seed, a lower train.optimizer.peak_lr or a longer train.optimizer.warmup_steps"
            )


def line(step: int, metrics: Metrics) -> str:
    """Return the line for people: `Step 500: loss=0.0275, grad_norm=0.3594, ...`."""
    order = ("loss", "grad_norm", "param_norm", "loss_real", "explained", "learning_rate", "seconds_per_step")
    return f"Step {step}: " + ", ".join(f"{name}={_short(name, metrics[name])}" for name in order)


def _short(name: str, value: float) -> str:
    return f"{value:.2e}" if name == "learning_rate" else f"{value:.4f}"
