"""What a number is compared with: success rates that others report, the aims, and the loss of the run by hand.

Rates in % of episodes. All but the aims and the demonstrations are public reports that were not repeated here; they
are of policies that see through cameras.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Anchor:
    """What one method reaches.

    Attributes:
        name: Of the method.
        short: Of the method, for a table.
        rates: By task, in %.
        note: Of what it is.
        notes: Of what a single rate is, by task.
    """

    name: str
    short: str
    rates: dict[str, float]
    note: str = ""
    notes: dict[str, str] | None = None

    def remark(self, task: str) -> str:
        """Return what to know about its rate on a task."""
        own = (self.notes or {}).get(task, "")
        return "; ".join(text for text in (self.note, own) if text)


OTHERS = (
    Anchor(
        "RDT-1B",
        "RDT",
        {"pickcube": 77, "stackcube": 74, "pushcube": 100, "peginsertionside": 13},
        "300,000 iterations, 250 trials",
    ),
    Anchor(
        "Diffusion Policy",
        "DP",
        {"pickcube": 40, "stackcube": 80, "pushcube": 88, "peginsertionside": 0},
        "joint positions",
    ),
    Anchor(
        "Pi0, trained by others",
        "Pi0",
        {
            "pickcube": 2.5,
            "stackcube": 60,
            "pushcube": 70,
            "pullcube": 87.5,
            "placesphere": 27.5,
            "peginsertionside": 0,
        },
        "base camera, 40 episodes",
        {"pickcube": "goal hidden", "stackcube": "their talk says 70"},
    ),
    Anchor("Pi0.5, run by hand", "by hand", {"pickcube": 0}, "30,000 steps, 0 of 50, goal hidden"),
)
AIM = {"pickcube": 90, "stackcube": 85, "pushcube": 98, "pullcube": 98, "placesphere": 60, "peginsertionside": 30}
"""Of a full Pi0.5 run."""
ORACLE = 100
"""Demonstrations replayed through the evaluation: less means that the evaluation is broken."""
LOSS_BY_HAND = (
    (0, 0.0833),
    (500, 0.0275),
    (1_000, 0.0199),
    (1_500, 0.0173),
    (2_000, 0.0160),
    (10_000, 0.0078),
    (20_000, 0.0051),
    (29_900, 0.0045),
)
"""(step, loss) of Pi0.5 on PickCube, batch 64, run by hand."""


def of(task: str) -> tuple[Anchor, ...]:
    """Return the methods that have a rate on a task, in their order."""
    return tuple(anchor for anchor in OTHERS if task in anchor.rates)


def short(task: str) -> str:
    """Return them for a table: `RDT 77, DP 40, Pi0 2.5`."""
    return ", ".join(f"{anchor.short} {anchor.rates[task]:g}" for anchor in of(task))
