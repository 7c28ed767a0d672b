"""Metrics of single steps to what a report says, and the checks that stop a run which cannot succeed.

    seconds   |step|step|step|save      |step|step|wait for data|step|
    counted   |     seconds_per_step    |          seconds_per_step   |      without save, with the wait
    told                                 save_seconds, data_seconds

Knows numbers and a clock; what a step is and who is told, it does not.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import jax

from pi05.errors import NotLearning
from pi05.metrics import METRICS, written

Metrics = dict[str, float]
LEARNED = 0.05
"""Share of the loss of predicting nothing that a run must have explained by its patience."""
IN_A_ROW = 3
"""Steps without a finite loss or gradient, one after the other, that end a run."""
_MEANS = ("loss", "loss_real", "explained")


@dataclass(frozen=True)
class Work:
    """What one step is.

    Attributes:
        samples: Of the whole batch.
        flops: Model FLOPs of the whole batch; 0: not told.
        peak: FLOP/s of all devices together; None: not known.
    """

    samples: int
    flops: float = 0.0
    peak: float | None = None


@dataclass(frozen=True)
class Skipped:
    """A step that changed nothing.

    Attributes:
        step: Its number.
        loss, grad_norm: At least one of them is not finite.
    """

    step: int
    loss: float
    grad_norm: float


class Meter:
    """Collects device scalars without waiting for them and averages them when asked.

    Args:
        work: What one step is.
        patience: Step by which something must have been learned; 0 never checks.
        clock: Seconds, monotonic.
    """

    def __init__(self, work: Work, patience: int, clock: Callable[[], float]) -> None:
        self._work, self._patience, self._clock = work, patience, clock
        self._pending: list[tuple[int, dict[str, jax.Array]]] = []
        self._pauses: Metrics = {}
        self._waited = 0.0
        self._since = clock()
        self._in_a_row: list[Skipped] = []

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Remember the metrics of one step; they may still be computing."""
        self._pending.append((step, metrics))

    @contextlib.contextmanager
    def pause(self, name: str) -> Iterator[None]:
        """Count what happens inside as the metric `name`, and not as seconds of a step."""
        begin = self._clock()
        try:
            yield
        finally:
            self._pauses[name] = self._pauses.get(name, 0.0) + self._clock() - begin

    def waited(self, seconds: float) -> None:
        """Count seconds in which the devices had nothing to do because data were missing."""
        self._waited += seconds

    def read(self) -> tuple[Metrics, list[Skipped]]:
        """Return what the steps since the last call say together, and those of them that were skipped."""
        rows = jax.device_get(self._pending)
        found = [(step, {name: float(value) for name, value in row.items()}) for step, row in rows]
        skipped = [Skipped(step, row["loss"], row["grad_norm"]) for step, row in found if not _finite(row)]
        result = _together([row for _, row in found if _finite(row)]) | self._pace(len(rows)) | self._pauses
        result["skipped"] = found[-1][1].get("skipped", 0.0)
        self._count_in_a_row([step for step, _ in found], skipped)
        self._pending, self._pauses, self._waited, self._since = [], {}, 0.0, self._clock()
        return result, skipped

    def check(self, step: int, metrics: Metrics) -> None:
        """Stop a run that cannot succeed.

        Raises:
            NotLearning: Steps were skipped one after the other, the parameters are not finite, or nothing was learned
                by `patience`.
        """
        self._refuse_what_is_skipped_again_and_again()
        norm = metrics.get("param_norm", 0.0)
        if not math.isfinite(norm):
            raise NotLearning(
                f"param_norm is {norm} at step {step}; no checkpoint of these weights was written. Resume from the "
                "last one with a lower train.optimizer.peak_lr"
            )
        if self._patience and step >= self._patience and metrics.get("explained", LEARNED) < LEARNED:
            raise NotLearning(
                f"after {step} steps the loss {metrics['loss']:.3f} is still that of predicting nothing (explained "
                f"{metrics['explained']:.1%}, at least {LEARNED:.0%} is required by step {self._patience}). Try "
                "another train.seed, a lower train.optimizer.peak_lr or a longer train.optimizer.warmup_steps"
            )

    def _pace(self, steps: int) -> Metrics:
        """Return how fast the steps were; what stopped them is no part of it."""
        seconds = (self._clock() - self._since - sum(self._pauses.values())) / steps
        pace = {"seconds_per_step": seconds, "data_seconds": self._waited}
        if seconds > 0:
            pace["samples_per_second"] = self._work.samples / seconds
        if self._work.flops:
            pace["tflop_per_step"] = self._work.flops / 1e12
        if self._work.flops and self._work.peak and seconds > 0:
            pace["mfu"] = self._work.flops / seconds / self._work.peak
        return pace

    def _count_in_a_row(self, steps: Sequence[int], skipped: Sequence[Skipped]) -> None:
        """Go on with the row of skipped steps that the last call ended with; one that is long enough is kept."""
        by_step = {one.step: one for one in skipped}
        for step in steps:
            if len(self._in_a_row) == IN_A_ROW:
                return
            self._in_a_row = [*self._in_a_row, by_step[step]] if step in by_step else []

    def _refuse_what_is_skipped_again_and_again(self) -> None:
        if len(self._in_a_row) < IN_A_ROW:
            return
        values = ", ".join(f"step {one.step} (loss {one.loss}, grad_norm {one.grad_norm})" for one in self._in_a_row)
        files = ", ".join(f"skipped/{one.step}.json" for one in self._in_a_row)
        raise NotLearning(
            f"{IN_A_ROW} steps in a row were not finite and changed nothing: {values}. The rows of their batches are "
            f"in {files} of this run. Resume with another train.seed or a lower train.optimizer.peak_lr "
            "(pi05ctl resume RUN --set train.seed=1), or look at those rows"
        )


def line(step: int, metrics: Metrics) -> str:
    """Return the line for people: `Step 500: loss=0.0275, grad_norm=0.3594, ...`."""
    return f"Step {step}: " + ", ".join(f"{name}={written(name, metrics[name])}" for name in METRICS if name in metrics)


def _finite(row: Metrics) -> bool:
    return math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"])


def _together(rows: Sequence[Metrics]) -> Metrics:
    """Return the means of some steps and the norms of the last; nothing where all were skipped."""
    if not rows:
        return {}
    return rows[-1] | {name: sum(row[name] for row in rows) / len(rows) for name in _MEANS}
