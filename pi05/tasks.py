"""The six tasks as a table: environment, sentence, limits and seeds.

Source of ids, sentences and limits: the ManiSkill 3.0.1 environments and the sentences of the RDT benchmark, so that
results compare. The limits are those within which at least 99 % of demonstrations finish; ManiSkill's own defaults
(50 and 100 steps) cut off more than 90 % of them.
"""

from dataclasses import dataclass

from pi05.errors import ConfigError, nearest

DEMO_SEEDS = range(0, 1_000_000)
"""Seeds that demonstrations may use."""
EVAL_SEEDS = range(1_000_000, 2_000_000)
"""Seeds that evaluations may use; disjoint from DEMO_SEEDS."""


@dataclass(frozen=True)
class Task:
    """One manipulation task.

    Attributes:
        name: What the user types.
        env_id: ManiSkill's environment id.
        sentence: The instruction, kept in the dataset and never typed by hand.
        demos: Demonstrations of a full dataset.
        eval_limit: Episode limit of an evaluation, in control steps of 1/20 s.
        demo_steps: Longest demonstration measured, in control steps.
        goal_hidden: Whether ManiSkill hides the goal from the sensor cameras.
    """

    name: str
    env_id: str
    sentence: str
    demos: int
    eval_limit: int
    demo_steps: int
    goal_hidden: bool = False


_TABLE = (
    Task(
        "pickcube",
        "PickCube-v1",
        "Grasp a red cube and move it to a target goal position.",
        demos=200,
        eval_limit=200,
        demo_steps=88,
        goal_hidden=True,
    ),
    Task(
        "stackcube",
        "StackCube-v1",
        "Pick up a red cube and stack it on top of a green cube and let go of the cube without it falling",
        demos=200,
        eval_limit=250,
        demo_steps=126,
    ),
    Task(
        "pushcube",
        "PushCube-v1",
        "Push and move a cube to a goal region in front of it.",
        demos=200,
        eval_limit=150,
        demo_steps=77,
    ),
    Task("pullcube", "PullCube-v1", "Pull a cube onto a target.", demos=200, eval_limit=150, demo_steps=86),
    Task(
        "placesphere",
        "PlaceSphere-v1",
        "Place the sphere into the shallow bin.",
        demos=188,
        eval_limit=250,
        demo_steps=134,
    ),
    Task(
        "peginsertionside",
        "PegInsertionSide-v1",
        "Pick up a orange-white peg and insert the orange end into the box with a hole in it.",
        demos=200,
        eval_limit=400,
        demo_steps=203,
    ),
)

TASKS = {task.name: task for task in _TABLE}


def find(name: str) -> Task:
    """Return the task called `name`; raise ConfigError naming the nearest one otherwise."""
    if name not in TASKS:
        raise ConfigError(f"unknown task {name!r}{nearest(name, TASKS) or ';'} tasks are {', '.join(TASKS)}")
    return TASKS[name]
