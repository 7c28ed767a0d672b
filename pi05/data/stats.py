"""Normalisation statistics: what the model's numbers mean, in the published file form.

Computed after the delta transform, over states and action chunks, without touching an image.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pi05.config import explain
from pi05.errors import DataError

MIN_RANGE = 0.01
"""Smallest q99 - q01, in rad or m: a constant dimension must not turn a rounding error into a large number."""
FILE_NAME = "norm_stats.json"

Numbers = Annotated[tuple[float, ...], Field(min_length=1)]


class NormStats(BaseModel):
    """Mean, standard deviation, 1 % and 99 % quantile of each dimension."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    mean: Numbers
    std: Numbers
    q01: Numbers
    q99: Numbers


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
        raise DataError(f"{path} holds no normalisation statistics: {explain(error)}") from error
