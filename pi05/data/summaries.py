"""LeRobot's statistics of a feature (0.4.4), bit for bit: smallest, largest, mean, deviation, quantiles of an episode.

LeRobot keeps them with each episode and, merged, with the dataset. Its quantiles are those of a histogram with 5,000
bins. Its deviation of images is not theirs: the squares are computed in 8 bits and overflow. Whoever reads LeRobot's
datasets has its numbers, so these are the same; pi05 itself reads none of them.
"""

from collections.abc import Mapping
from functools import reduce
from typing import Any

import numpy as np

from pi05.data.shades import Shades, counted

Summary = dict[str, np.ndarray]

_QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
_BINS = 5000
_MARGIN = 1e-10
"""By which the outermost bins are wider than the values."""


def of_numbers(values: np.ndarray) -> Summary:
    """Return the summary of values (T, D), each of shape (D,); of (T,), of shape (1,)."""
    columns = values.reshape(len(values), -1)
    mean = columns.mean(axis=0)
    deviation = np.sqrt(np.maximum(0, (columns**2).mean(axis=0) - mean**2))
    low, high = columns.min(axis=0), columns.max(axis=0)
    histograms = []
    for column, least, most in zip(columns.T, low, high, strict=True):
        edges = _edges(least, most)
        histograms.append((np.histogram(column, bins=edges)[0].astype(float), edges))
    return _summary(low, high, mean, deviation, len(values)) | _quantiles(histograms, len(values))


def of_shades(shades: Shades, steps: int) -> Summary:
    """Return the summary of an episode's images from the shades of its frames, in [0, 1] and of shape (3, 1, 1)."""
    levels = np.arange(256)
    total = int(shades[0].sum())
    mean = shades @ levels / total
    deviation = np.sqrt(np.maximum(0, shades @ (levels**2 % 256) / total - mean**2))
    low = np.array([levels[row > 0].min() for row in shades], np.uint8)
    high = np.array([levels[row > 0].max() for row in shades], np.uint8)
    histograms = []
    for row, least, most in zip(shades, low, high, strict=True):
        edges = _edges(least, most)
        there = levels[row > 0]
        bins = np.searchsorted(edges, there, side="right") - 1
        histograms.append((np.bincount(bins, row[row > 0], _BINS), edges))
    found = _summary(low, high, mean, deviation, len(counted(steps))) | _quantiles(histograms, total)
    return {name: value if name == "count" else (value / 255.0).reshape(3, 1, 1) for name, value in found.items()}


def merged(one: Mapping[str, Summary], other: Mapping[str, Summary]) -> dict[str, Summary]:
    """Return the summaries of two parts of a dataset as LeRobot merges them; its quantiles become weighted means."""
    return {feature: _merge(one[feature], other[feature]) for feature in one}


def of_dataset(episodes: list[dict[str, Summary]]) -> dict[str, Summary]:
    """Return the summaries of a dataset, merged episode after episode: another order would round otherwise."""
    return reduce(merged, episodes)


def _merge(one: Summary, other: Summary) -> Summary:
    both = {name: np.stack([one[name], other[name]]) for name in one}
    squares = np.stack([one["std"] ** 2, other["std"] ** 2])  # in the type that each has
    total = both["count"].sum(axis=0)
    weights = both["count"].reshape(2, *[1] * (both["mean"].ndim - 1))
    mean = (both["mean"] * weights).sum(axis=0) / total
    spread = ((squares + (both["mean"] - mean) ** 2) * weights).sum(axis=0) / total
    found = {"min": both["min"].min(axis=0), "max": both["max"].max(axis=0), "mean": mean, "std": np.sqrt(spread)}
    return found | {"count": total} | {name: (both[name] * weights).sum(axis=0) / total for name in _QUANTILES}


def _summary(low: np.ndarray, high: np.ndarray, mean: np.ndarray, deviation: np.ndarray, count: int) -> Summary:
    return {"min": low, "max": high, "mean": mean, "std": deviation, "count": np.array([count])}


def _edges(low: Any, high: Any) -> np.ndarray:
    return np.linspace(low - _MARGIN, high + _MARGIN, _BINS + 1)


def _quantiles(histograms: list[tuple[np.ndarray, np.ndarray]], count: int) -> Summary:
    """Return quantiles, given the histogram of each dimension and its edges."""
    return {
        name: np.array([_quantile(share * count, *histogram) for histogram in histograms])
        for name, share in _QUANTILES.items()
    }


def _quantile(rank: float, counts: np.ndarray, edges: np.ndarray) -> np.generic:
    """Return the value of a rank: within its bin, values are taken to lie evenly."""
    below = counts.cumsum()
    place = int(np.searchsorted(below, rank))
    if place == 0:
        return edges[0]
    if place == len(below):
        return edges[-1]
    inside = below[place] - below[place - 1]
    if inside == 0:
        return edges[place]
    return edges[place] + (rank - below[place - 1]) / inside * (edges[place + 1] - edges[place])
