"""The loss of a training -> a PNG file. matplotlib draws it; it comes with ManiSkill and is loaded for this alone."""

import io
from collections.abc import Sequence
from typing import Any

from pi05ctl.errors import UsageError

Points = Sequence[tuple[int, float]]


def loss_png(losses: Points, by_hand: Points, title: str, held_out: Points = ()) -> bytes:
    """Return the loss over training steps as a picture.

    Args:
        losses: (step, loss) of the run.
        by_hand: The same of the run by hand, where they compare.
        title: Name of the run.
        held_out: (step, loss) over the episodes kept apart.

    Raises:
        UsageError: There are fewer than two losses, or matplotlib is not installed.
    """
    if len(losses) < 2:
        raise UsageError(f"{title} has {len(losses)} losses in its log, a curve needs 2; wait, or name a trained run")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(
            "plot needs matplotlib, which is not installed here: pip install matplotlib, or see the curve in the page "
            "that pi05ctl report writes"
        ) from error
    figure: Any = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    if by_hand:
        axes.plot(*zip(*by_hand, strict=True), "--", color="#b7791f", label="Pi0.5 on PickCube, run by hand")
    axes.plot(*zip(*losses, strict=True), color="#1f5fd0", label="this run")
    if held_out:
        axes.plot(*zip(*held_out, strict=True), color="#18794e", marker=".", label="episodes kept apart")
    axes.set(title=title, xlabel="step", ylabel="loss")
    if min(loss for _, loss in losses) > 0:
        axes.set_yscale("log")
    if by_hand or held_out:
        axes.legend(frameon=False)
    axes.grid(visible=True, which="both", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()
