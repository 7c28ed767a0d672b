"""Evaluation of a camera policy, beside a loop that renders and steps one environment every step.

Same task, seeds, weights and cores, in turn: PushCube with both cameras, the micro preset with random weights (what a
policy has learned changes no time), 8 of 16 actions executed, every episode to its limit. The loop is what one writes
first: reset, and for every step render, step, and ask the policy for one episode every 8 steps. Its episodes must be
those of the evaluation: success, and every point of every path to a millimetre; actions to rounding, because a policy
call for one episode sums in another order than one for ten. A third column is the same loop on ManiSkill's environment
as it comes, which renders a wrist camera of a million vertices and whose pixels therefore differ a little.

Starting processes, importing and compiling is left out on both sides; resets are in.

    scripts/bench evaluation [ROUNDS]
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import gymnasium
import jax
import numpy as np

from pi05 import simulator, tasks
from pi05.data.stats import DataStats, NormStats
from pi05.data.tokenizer import TINY, Tokenizer
from pi05.data.transforms import Recipe
from pi05.evaluation.course import Course, Trial
from pi05.evaluation.rollout import rollout
from pi05.evaluation.workers import Workers, cores
from pi05.model import tree
from pi05.policy import Policy
from pi05.simulator import Simulator, StepInfo
from pi05.training.checkpoint import CheckpointMeta
from pi05ctl.spec.runspec import RunSpec, resolve

TASK = tasks.find("pushcube")
OPTIONS = resolve(RunSpec(kind="train", task=TASK.name, preset="micro"))
ENVIRONMENTS, EXECUTE, ROUNDS = 10, 8, 3
FIRST = tasks.EVAL_SEEDS.start
HOME = (0.0, np.pi / 8, 0.0, -np.pi * 5 / 8, 0.0, np.pi * 3 / 4, np.pi / 4)
"""The arm's joints after a reset, in rad."""


def policy(rows: int) -> Policy:
    """Return a policy with random weights whose actions move the arm by some centimetres a chunk."""
    stats = DataStats(
        state=_range(np.array([*HOME, 0.04]), 0.5),
        actions=_range(np.array([*[0.0] * 7, 0.0]), np.array([*[0.2] * 7, 1])),
    )
    recipe = Recipe(OPTIONS.model, OPTIONS.convention, stats, Tokenizer.load(TINY), TASK.sentence)
    meta = CheckpointMeta(
        run="train-pushcube-000000",
        task=TASK.name,
        sentence=TASK.sentence,
        step=0,
        dataset="none",
        convention=OPTIONS.convention,
        renderer=simulator.renderer(OPTIONS.convention.cameras),
        demo_seeds=(),
        model=OPTIONS.model,
        train=OPTIONS.train,
    )
    params = {path: jax.numpy.asarray(array) for path, array in tree.initial(OPTIONS.model, 0).items()}
    return Policy(params, recipe, meta, rows, OPTIONS.eval.sampling_steps, seed=0, temperature=1.0)


def loops(environment: Simulator, actor: Policy, seeds: list[int]) -> list[Trial]:
    """Run episodes as one would write it first."""
    return [_loop(environment, actor, seed) for seed in seeds]


def _loop(environment: Simulator, actor: Policy, seed: int) -> Trial:
    course = Course(environment, seed)
    chunk = np.zeros((0, 8))
    for step in range(TASK.eval_limit):
        look = course.look(images=True)
        if step % EXECUTE == 0:
            images = {name: image[None] for name, image in look.images.items()}
            chunk = actor.act([seed], step // EXECUTE, look.state[None], images)[0]
        course.step(chunk[step % EXECUTE])
    return course.trial()


class Stock(Simulator):
    """ManiSkill's environment as it comes: a step renders, and the wrist camera has all its vertices."""

    def __init__(self) -> None:
        super().__init__(TASK, OPTIONS.convention)
        self._env.close()
        size = OPTIONS.convention.image_size
        self._env = gymnasium.make(
            TASK.env_id,
            robot_uids=OPTIONS.convention.robot,
            control_mode=OPTIONS.convention.control_mode,
            obs_mode="rgb",
            reward_mode="none",
            sim_backend="physx_cpu",
            render_backend="cpu",
            sensor_configs={"width": size, "height": size},
            max_episode_steps=TASK.eval_limit,
        ).unwrapped

    def reset(self, seed: int) -> StepInfo:
        """Reset, which renders."""
        self._seen, info = self._env.reset(seed=seed, options={"reconfigure": True})
        return self._told(info)

    def step(self, action: np.ndarray) -> StepInfo:
        """Step, which renders."""
        self._seen, *_, info = self._env.step(np.asarray(action, np.float32))
        return self._told(info)

    def images(self) -> dict[str, np.ndarray]:
        """Return what was rendered."""
        sensors = self._seen["sensor_data"]
        return {name: sensors[name]["rgb"][0].numpy() for name in OPTIONS.convention.cameras}


def evaluation(fleet: Workers, actor: Policy, seeds: list[int]) -> list[Trial]:
    """Run episodes as the job does."""
    return rollout(fleet, actor, seeds, TASK.eval_limit, EXECUTE, _ignore)


def same(one: Trial, other: Trial) -> float:
    """Return the largest difference of two episodes' actions; fail when they are not the same episode."""
    ours, theirs = one.episode, other.episode
    assert ours.seed == theirs.seed
    assert (ours.success_once, ours.failure) == (theirs.success_once, theirs.failure)
    for name in ("tcp", "object"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), atol=0.0011)
    return float(np.abs(one.actions - other.actions).max())


def timed(run: Callable[[], list[Trial]]) -> tuple[float, list[Trial]]:
    """Return episodes a minute, and the episodes."""
    start = time.perf_counter()
    trials = run()
    return 60 * len(trials) / (time.perf_counter() - start), trials


def main() -> None:
    """Measure all in turn and print the ratio."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    many, single = policy(OPTIONS.eval.batch_size), policy(1)
    environment, stock = Simulator(TASK, OPTIONS.convention), Stock()
    rates: list[tuple[float, float, float]] = []
    difference = 0.0
    make = partial(Simulator, TASK, OPTIONS.convention)
    with Workers(make, ENVIRONMENTS, cores(), images=True) as fleet:
        rollout(fleet, many, range(FIRST, FIRST + ENVIRONMENTS), EXECUTE, EXECUTE, _ignore)  # compiles
        _warm(environment, single)
        _warm(stock, single)
        for number in range(rounds):
            seeds = [FIRST + number * ENVIRONMENTS + place for place in range(ENVIRONMENTS)]
            fast, trials = timed(partial(evaluation, fleet, many, seeds))
            slow, (alone,) = timed(partial(loops, environment, single, seeds[:1]))
            as_it_comes, _ = timed(partial(loops, stock, single, seeds[:1]))
            difference = max(difference, same(trials[0], alone))
            rates.append((fast, slow, as_it_comes))
            print(
                f"{fast:.1f} episodes/min, the loop {slow:.2f}, on ManiSkill as it comes {as_it_comes:.2f}", flush=True
            )
    ratio, stock_ratio = (statistics.median(row[0] / row[place] for row in rates) for place in (1, 2))
    print(f"same episodes; largest difference of an action {difference:.1e}; {cores()} cores")
    print(
        json.dumps(
            {
                "name": "evaluation",
                "ratio": round(ratio, 1),
                "ratio_stock": round(stock_ratio, 1),
                "episodes_per_minute": round(statistics.median(row[0] for row in rates), 1),
            }
        )
    )


def _ignore(trial: Trial) -> None:
    del trial


def _warm(environment: Simulator, actor: Policy) -> None:
    """Compile and load what the first episode would."""
    course = Course(environment, FIRST)
    look = course.look(images=True)
    actor.act([FIRST], 0, look.state[None], {name: image[None] for name, image in look.images.items()})


def _range(middle: np.ndarray, half: float | np.ndarray) -> NormStats:
    low, high = middle - half, middle + half
    return NormStats(mean=tuple(middle), std=tuple((high - low) / 4), q01=tuple(low), q99=tuple(high))


if __name__ == "__main__":
    main()
