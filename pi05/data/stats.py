"""Normalisation statistics: what the model's numbers mean, in the published file form.

Computed after the delta transform, over states and action chunks, without touching an image.
"""

import math
from pathlib import Path
from typing import Annotated, Self

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pi05.config import explain
from pi05.errors import DataError

MIN_RANGE = 0.01
"""Smallest q99 - q01, in rad or m: a constant dimension must not turn a rounding error into a large number."""
FILE_NAME = "norm_stats.json"

Numbers = Annotated[tuple[float, ...], Field(min_length=1)]


class NormStats(BaseModel):
    """Mean, standard deviation, 1 % and 99 % quantile of each dimension: finite, as many of each, in order."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    mean: Numbers
    std: Numbers
    q01: Numbers
    q99: Numbers

    @model_validator(mode="after")
    def _are_statistics(self) -> Self:
        rows = {"mean": self.mean, "std": self.std, "q01": self.q01, "q99": self.q99}
        if len(set(map(len, rows.values()))) > 1:
            found = ", ".join(f"{name} {len(row)}" for name, row in rows.items())
            raise ValueError(f"of each there must be as many numbers, found {found}")
        for name, row in rows.items():
            for place, number in enumerate(row):
                if not math.isfinite(number) or (name == "std" and number < 0):
                    wanted = "a finite number" if not math.isfinite(number) else "at least 0"
                    raise ValueError(f"{name}[{place}] is {number:g}, {wanted} is required")
        for place, (low, high) in enumerate(zip(self.q01, self.q99, strict=True)):
            if low > high:
                raise ValueError(
                    f"q01[{place}] is {low:g} and q99[{place}] is {high:g}: the first must be the lower one"
                )
        return self


class DataStats(BaseModel):
    """Statistics of states and of action chunks (joints relative to the chunk's first state where so configured)."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    state: NormStats
    actions: NormStats


class _File(BaseModel):
    norm_stats: DataStats


def statistics(values: Float[np.ndarray, "... d"]) -> NormStats:
    """Return exact statistics over all axes but the last; the quantile range has a floor of MIN_RANGE."""
    flat = np.asarray(values, np.float64).reshape(-1, values.shape[-1])
    q01, q99 = np.quantile(flat, [0.01, 0.99], axis=0)
    widen = np.maximum(MIN_RANGE - (q99 - q01), 0) / 2
    return NormStats(
        mean=tuple(flat.mean(axis=0)), std=tuple(flat.std(axis=0)), q01=tuple(q01 - widen), q99=tuple(q99 + widen)
    )


def write(folder: Path, stats: DataStats) -> None:
    """Write `folder/norm_stats.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE_NAME).write_text(_File(norm_stats=stats).model_dump_json(indent=2))


def read(folder: Path) -> DataStats:
    """Read `folder/norm_stats.json`; raise DataError when it is missing or of another form."""
    path = folder / FILE_NAME
    try:
        return _File.model_validate_json(path.read_bytes()).norm_stats
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing: a checkpoint carries the statistics it was trained with") from error
    except ValidationError as error:
        raise DataError(
            f"{path} cannot be used: {explain(error)}. Put back the file that training wrote; the weights beside it "
            "are not at fault"
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error
