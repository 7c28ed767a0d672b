"""Numbers -> small SVG drawings for the report: a curve, an interval, an episode seen from above.

Colours are classes, so that the page's style decides and light and dark both work. Pure.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from pi05ctl.stored.evaluations import Episode, Track

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 640, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 34, 14, 34


def curve(points: Points, label: str, beside: Points = (), held_out: Points = ()) -> str:
    """Return a line over training steps, its y axis logarithmic when the values span a factor of ten.

    Args:
        points: (step, value), at least two, in the order of the steps.
        label: What the values are, for the tooltips.
        beside: Points of another run, drawn dashed under it.
        held_out: Points of the same run over what it never saw.
    """
    axes = _axes([*points, *beside, *held_out])
    parts = [
        *axes.ticks(),
        *([axes.line("by-hand", beside)] if beside else []),
        axes.line("line", points),
        *([axes.line("held-out", held_out)] if held_out else []),
        *(_hover(*axes.place(*point), f"by hand, step {point[0]:,.0f}: {label} {point[1]:.4g}") for point in beside),
        *(_hover(*axes.place(*point), f"step {point[0]:,.0f}: {label} {point[1]:.4g}") for point in points),
        *(_hover(*axes.place(*point), f"step {point[0]:,.0f}: kept apart {point[1]:.4g}") for point in held_out),
    ]
    return _svg(_WIDTH, _HEIGHT, f"{label} over training steps", parts)


def curves(lines: Mapping[str, Points], label: str) -> str:
    """Return lines of several runs over training steps, each of a class of its own, `line-0` and on.

    Args:
        lines: (step, value) by run, in the order of the steps; one at least has some.
        label: What the values are.
    """
    axes = _axes([point for points in lines.values() for point in points])
    drawn = [axes.line(f"line {shade(number)}", points) for number, points in enumerate(lines.values())]
    hovers = [
        _hover(*axes.place(*point), f"{run}, step {point[0]:,.0f}: {label} {point[1]:.4g}")
        for run, points in lines.items()
        for point in points
    ]
    return _svg(_WIDTH, _HEIGHT, f"{label} of {len(lines)} runs over training steps", [*axes.ticks(), *drawn, *hovers])


def shade(number: int) -> str:
    """Return the class of the n-th line; there are six, and then they come again."""
    return f"line-{number % 6}"


@dataclass(frozen=True)
class _Axes:
    """Where values lie on the drawing.

    Attributes:
        steps, values: Where ticks are.
        right: Step at the right edge.
        low, high: At the lower and upper edge, as `scale` has them.
        logarithmic: Whether values are drawn by their logarithm.
    """

    steps: Sequence[float]
    values: Sequence[float]
    right: float
    low: float
    high: float
    logarithmic: bool

    def place(self, step: float, value: float) -> tuple[float, float]:
        """Return where a point is."""
        across = _LEFT + (_WIDTH - _LEFT - _RIGHT) * step / self.right
        up = (_scaled(value, self.logarithmic) - self.low) / ((self.high - self.low) or 1)
        return across, _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * up

    def line(self, name: str, through: Points) -> str:
        """Return a line of a class through points."""
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in (self.place(*point) for point in through))
        return f'<polyline class="{name}" points="{places}"/>'

    def ticks(self) -> list[str]:
        """Return the ticks of both axes."""
        across = [_x_tick(self.place(step, self.values[0])[0], step) for step in self.steps]
        return [*(_y_tick(self.place(0, value)[1], value) for value in self.values), *across]


def _axes(points: Points) -> _Axes:
    """Return axes that all points fit in; values that span a factor of ten are drawn by their logarithm."""
    found, last = [value for _, value in points], max(step for step, _ in points)
    least, most = min(found), max(found)
    logarithmic = least > 0 and most / least >= 10
    values = _decades(least, most) if logarithmic else _ticks(min(0, least), most)
    steps = _ticks(0, last)
    low, high = (_scaled(end, logarithmic) for end in (min(values[0], least), max(values[-1], most)))
    return _Axes(steps, values, max(steps[-1], last) or 1, low, high, logarithmic)


def _scaled(value: float, logarithmic: bool) -> float:
    return math.log10(value) if logarithmic else value


def episodes(shown: Sequence[Episode]) -> list[str]:
    """Return each episode seen from above, the robot below, all in one scale."""
    tracks = [track for episode in shown for track in episode.tracks.values()]
    xs = [x for track in tracks for x, _ in track]
    ys = [y for track in tracks for _, y in track]
    middle = ((min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2)
    size = max(max(xs) - min(xs), max(ys) - min(ys)) + 0.08
    return [_episode(episode, middle, size) for episode in shown]


def _episode(episode: Episode, middle: tuple[float, float], size: float) -> str:
    """Return one episode's paths."""
    side = 150

    def place(point: tuple[float, float]) -> str:
        # The robot looks along +x, with +y to its left: x is up on the page and y is to the left.
        across, down = (middle[1] - point[1]) / size, (middle[0] - point[0]) / size
        return f"{side * (0.5 + across):.1f},{side * (0.5 + down):.1f}"

    def path(name: str) -> str:
        return " ".join(place(point) for point in episode.tracks.get(name, ()))

    parts = [f'<polyline class="{name}" points="{path(name)}"/>' for name in ("tcp", "object") if path(name)]
    if "object" in episode.tracks:
        parts += [_mark(place(episode.tracks["object"][0]), "start"), _mark(place(episode.tracks["object"][-1]), "end")]
    if "goal" in episode.tracks:
        parts.append(_mark(place(_last(episode.tracks["goal"])), "goal"))
    outcome = "solved" if episode.success_once else "not solved"
    return _svg(side, side, f"seed {episode.seed}, {outcome}, seen from above", parts)


def _last(track: Track) -> tuple[float, float]:
    return track[-1]


def _mark(place: str, name: str) -> str:
    """Return a point: where the object starts and ends, and a ring for the goal."""
    x, y = place.split(",")
    return f'<circle class="{name}" cx="{x}" cy="{y}" r="{6 if name == "goal" else 3}"/>'


def _hover(x: float, y: float, text: str) -> str:
    return f'<circle class="hover" cx="{x:.1f}" cy="{y:.1f}" r="6"><title>{escape(text)}</title></circle>'


def _y_tick(y: float, value: float) -> str:
    line = f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return line + f'<text class="tick" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'


def _x_tick(x: float, value: float) -> str:
    y = _HEIGHT - _BOTTOM + 20
    return f'<text class="tick" x="{x:.1f}" y="{y}" text-anchor="middle">{value:,.0f}</text>'


def _ticks(low: float, high: float) -> list[float]:
    """Return some five round values from at most `low` to at most `high`."""
    span = (high - low) or 1.0
    unit = 10 ** math.floor(math.log10(span / 5))
    step = next(unit * factor for factor in (1, 2, 5, 10) if span / (unit * factor) <= 5)
    first = math.floor(low / step)
    return [step * number for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _decades(low: float, high: float) -> list[float]:
    """Return the values 1, 2 and 5 times a power of ten that lie around [low, high]."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [factor * 10.0**exponent for exponent in exponents for factor in (1, 2, 5)]
    below = max((value for value in values if value <= low), default=values[0])
    above = min((value for value in values if value >= high), default=values[-1])
    return [value for value in values if below <= value <= above]


def _svg(width: int, height: int, label: str, parts: Iterable[str]) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">' + "".join(parts) + "</svg>"
