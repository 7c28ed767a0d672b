"""Counts of solved episodes -> rates with intervals that hold: of one evaluation, of two on the same seeds, of one that
ended when its interval was narrow, of several training seeds; and the time to success.

Pure, and without numpy: the controller counts with it, too. All intervals cover 95 % unless said otherwise.
"""

import math
from collections.abc import Iterable, Sequence
from statistics import NormalDist, mean, median, stdev
from typing import NamedTuple

CONFIDENCE = 0.95
SEQUENTIAL = 0.03
"""Error that the limits of `narrow` are made for, so that those reported when it ends err in less than 5 % of all
evaluations; see `narrow`."""
_Z95 = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
_STUDENT = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622)
"""Quantiles of 97.5 % of Student's t with 1 to 9 degrees of freedom; the last serves for more, a little too wide."""
_BISECTIONS = 36
"""Halvings of [0, 1] after which a limit is as exact as a float needs."""
_WIDTHS = (0.06, 0.5)
"""Widths that `narrow` was tried for."""


class Interval(NamedTuple):
    """A value between its limits."""

    value: float
    low: float
    high: float


def wilson(successes: int, trials: int, z: float = _Z95) -> tuple[float, float]:
    """Return the Wilson score interval of a success rate, both ends in [0, 1].

    With p = successes / trials and n = trials, the ends are
    (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n).
    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927), 209-212.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} successes of {trials} trials; trials must be positive and not fewer")
    low, high = _score(successes / trials, trials, z)
    return 0.0 if successes == 0 else low, 1.0 if successes == trials else high


def paired(both: int, first: int, second: int, neither: int, comparisons: int = 1) -> Interval:
    """Return the success rate of the first less that of the second over the same episodes, in [-1, 1].

    Newcombe's method 10: the distances of two rates to their Wilson limits, squared and added, less what the two have
    in common, which is their correlation phi (its numerator is brought closer to 0 by n/2, where it is positive).
    Source: R. G. Newcombe, Improved confidence intervals for the difference between binomial proportions based on
    paired data, Statistics in Medicine 17 (1998), 2635-2650.

    Args:
        both, neither: Episodes that both solved, or neither.
        first, second: Episodes that only the first solved, or only the second.
        comparisons: How many intervals shall cover 95 % together; each is so much wider (Bonferroni).
    """
    n = both + first + second + neither
    z = NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / (2 * comparisons))
    p, q = (both + first) / n, (both + second) / n
    (p_low, p_high), (q_low, q_high) = wilson(both + first, n, z), wilson(both + second, n, z)
    phi = _phi(both, first, second, neither)

    def added(one: float, other: float) -> float:
        return math.sqrt(max(one**2 - 2 * phi * one * other + other**2, 0.0))

    return Interval(p - q, p - q - added(p - p_low, q_high - q), p - q + added(p_high - p, q - q_low))


def mcnemar(first: int, second: int) -> float:
    """Return the two-sided p-value of McNemar's exact test that two success rates over the same episodes are equal.

    Of the episodes that only one solved, each side then has a half: p is twice the smaller tail of a binomial with
    probability 1/2, at most 1; 1 without such an episode.
    Source: Q. McNemar, Note on the sampling error of the difference between correlated proportions or percentages,
    Psychometrika 12 (1947), 153-157; the exact form as in M. W. Fagerland, S. Lydersen, P. Laake, The McNemar test for
    binary matched-pairs data, BMC Medical Research Methodology 13 (2013), 91.

    Args:
        first, second: Episodes that only the first solved, or only the second.
    """
    n = first + second
    tail = sum(math.comb(n, k) for k in range(min(first, second) + 1))
    return min(1.0, 2 * tail / 2**n)


def exact(successes: int, trials: int, error: float = 1 - CONFIDENCE) -> tuple[float, float]:
    """Return the limits at which a success rate has more, or fewer, successes with probability error / 2.

    Source: C. J. Clopper, E. S. Pearson, The use of confidence or fiducial limits illustrated in the case of the
    binomial, Biometrika 26 (1934), 404-413.
    """
    return _lower(successes, trials, error / 2), 1 - _lower(trials - successes, trials, error / 2)


def narrow(solved: Iterable[bool], width: float) -> int | None:
    """Return after how many episodes, in their order, the limits are no further apart than `width`; None: never.

    Looking after each episode and ending at the first good look makes limits for a fixed number err too often: here
    Clopper and Pearson's of 95 % would err in up to 6.5 %. So the limits of SEQUENTIAL are used. That they, reported
    when the evaluation ends, here or at its largest number of episodes, cover the true rate in at least 95 % of
    evaluations, is no theorem but was computed, over all paths, for some 400 widths, several largest numbers each and
    every rate at which coverage can jump (docs/decisions.md; a test does it for some). It holds for the rule that was
    chosen beforehand, not for somebody who looks and ends an evaluation when it pleases.
    Source of the approach: J. Frey, Fixed-width sequential confidence intervals for a proportion, The American
    Statistician 64 (2010), 242-249, for Wald limits; here for those of `exact`.
    """
    successes, first = 0, fewest(width)
    for trials, one in enumerate(solved, start=1):
        successes += one
        if trials >= first:
            low, high = exact(successes, trials, SEQUENTIAL)
            if high - low <= width:
                return trials
    return None


def fewest(width: float) -> int:
    """Return how many episodes `narrow` takes at least: when all end alike, the limits are 0 and 1 - error^(1/n)."""
    return math.ceil(math.log(SEQUENTIAL / 2) / math.log(1 - width) - 1e-9)


def most(width: float) -> int:
    """Return how many episodes `narrow` takes at most: when half of them are solved."""
    low, high = 0, fewest(width)
    while _span(high, 2 * high) > width:
        low, high = high, 2 * high
    while high - low > 1:
        half = (low + high) // 2
        low, high = (half, high) if _span(half, 2 * half) > width else (low, half)
    return 2 * high


def check_width(width: float) -> None:
    """Raise ValueError when `narrow` was not tried for a width."""
    low, high = _WIDTHS
    if not low <= width <= high:
        raise ValueError(f"the width of an interval is a share from {low:g} to {high:g}, and not {width:g}; use 0.1")


def pooled(rates: Sequence[float], episodes: int) -> Interval:
    """Return the mean success rate of several training seeds, each evaluated on the same episodes.

    Two things vary: which episodes were drawn, and how a training turns out. The episodes are the same for all, so
    however many trainings there are, their number stays `episodes` (Wilson's limits of the mean over so many); the
    trainings are len(rates) (Student's limits, over the spread of their rates). The distances of both to the mean are
    squared and added. What one training does with one episode is in both: rather too wide than too narrow.
    Source of the sum: G. Y. Zou, A. Donner, Construction of confidence limits about effect measures, Statistics in
    Medicine 27 (2008), 1693-1702. With one rate these are Wilson's limits.
    """
    middle, count = mean(rates), len(rates)
    low, high = _score(middle, episodes, _Z95)
    spread = _STUDENT[min(count - 1, len(_STUDENT)) - 1] * stdev(rates) / math.sqrt(count) if count > 1 else 0.0
    below, above = math.hypot(middle - low, spread), math.hypot(high - middle, spread)
    return Interval(middle, max(middle - below, 0.0), min(middle + above, 1.0))


def middle(values: Sequence[float]) -> Interval | None:
    """Return the median of values and its interval, whatever their distribution; None for fewer than 6.

    The limits are two of the values themselves, with as few outside as a fair coin allows in 95 % of all cases.
    Times to success keep this interval in an evaluation that ends when its success rate is known well enough: that
    looks at whether episodes are solved and not at when.
    Source: W. R. Thompson, On confidence ranges for the median and other expectation distributions for populations of
    unknown distribution form, Annals of Mathematical Statistics 7 (1936), 122-128.
    """
    n, below, outside = len(values), 0.0, -1
    while (below := below + math.comb(n, outside + 1) / 2**n) <= (1 - CONFIDENCE) / 2:
        outside += 1
    if outside < 0:
        return None
    ordered = sorted(values)
    return Interval(median(ordered), ordered[outside], ordered[n - 1 - outside])


def _score(p: float, n: int, z: float) -> tuple[float, float]:
    """Return Wilson's limits of a rate p over n trials."""
    spread = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    centre, scale = p + z**2 / (2 * n), 1 + z**2 / n
    return (centre - spread) / scale, (centre + spread) / scale


def _phi(both: int, first: int, second: int, neither: int) -> float:
    """Return how two outcomes correlate, as `paired` wants it."""
    product = both * neither - first * second
    if product > 0:
        product = max(product - (both + first + second + neither) / 2, 0.0)
    margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    return product / math.sqrt(margins) if margins else 0.0


def _span(successes: int, trials: int) -> float:
    low, high = exact(successes, trials, SEQUENTIAL)
    return high - low


def _lower(successes: int, trials: int, error: float) -> float:
    """Return the rate at which `successes` or more of `trials` have probability `error`; 0 without a success."""
    if successes == 0:
        return 0.0
    low, high = 0.0, successes / trials
    for _ in range(_BISECTIONS):
        rate = (low + high) / 2
        low, high = (rate, high) if _at_least(successes, trials, rate) < error else (low, rate)
    return low


def _at_least(successes: int, trials: int, rate: float) -> float:
    """Return the probability of `successes` or more, for a rate below successes / trials: the terms fall from there."""
    log = math.lgamma(trials + 1) - math.lgamma(successes + 1) - math.lgamma(trials - successes + 1)
    term = math.exp(log + successes * math.log(rate) + (trials - successes) * math.log1p(-rate))
    total, odds = 0.0, rate / (1 - rate)
    for k in range(successes, trials + 1):
        total += term
        if term < 1e-15 * total:
            break
        term *= (trials - k) / (k + 1) * odds
    return total
