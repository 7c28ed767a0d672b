"""Numbers -> small SVG drawings for the report: a curve, an interval, an episode seen from above.

Colours are classes, so that the page's style decides and light and dark both work. Pure.
"""

import math
from collections.abc import Iterable, Sequence
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
    values = [value for _, value in (*points, *beside, *held_out)]
    logarithmic = min(values) > 0 and max(values) / min(values) >= 10
    y_ticks = _decades(min(values), max(values)) if logarithmic else _ticks(min(0, *values), max(values))
    last = max(step for step, _ in (*points[-1:], *beside))
    x_ticks = _ticks(0, last)
    scale = math.log10 if logarithmic else float
    low, high = scale(min(y_ticks[0], min(values))), scale(max(y_ticks[-1], max(values)))
    right = max(x_ticks[-1], last)

    def place(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + (_WIDTH - _LEFT - _RIGHT) * x / right
        up = (scale(y) - low) / ((high - low) or 1)
        return across, _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * up

    def line(name: str, through: Points) -> str:
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in through))
        return f'<polyline class="{name}" points="{places}"/>'

    parts = [
        *(_y_tick(place(0, tick)[1], tick) for tick in y_ticks),
        *(_x_tick(place(tick, values[0])[0], tick) for tick in x_ticks),
        *([line("by-hand", beside)] if beside else []),
        line("line", points),
        *([line("held-out", held_out)] if held_out else []),
        *(_hover(*place(*point), f"by hand, step {point[0]:,.0f}: {label} {point[1]:.4g}") for point in beside),
        *(_hover(*place(*point), f"step {point[0]:,.0f}: {label} {point[1]:.4g}") for point in points),
        *(_hover(*place(*point), f"step {point[0]:,.0f}: kept apart {point[1]:.4g}") for point in held_out),
    ]
    return _svg(_WIDTH, _HEIGHT, f"{label} over training steps", parts)


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
