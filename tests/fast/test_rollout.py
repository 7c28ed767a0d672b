"""The rollout's logic on a simulator of a few lines; real physics is in tests/sim."""

from collections.abc import Sequence

import numpy as np
import pytest

from pi05.config import Convention
from pi05.data.dataset import Attempt, Dataset, DatasetMeta
from pi05.errors import ConfigError, DataError
from pi05.evaluation.rollout import OracleActor, rollout
from pi05.results import Episode
from pi05.simulator import Positions, StepInfo

LIMIT = 10


class Line:
    """A point on a line, moved by the first joint, solved while it is at 3; `seed` is where it starts."""

    def __init__(self) -> None:
        self.position = 0.0
        self.actions: list[float] = []

    def reset(self, seed: int) -> StepInfo:
        self.position, self.actions = float(seed), []
        return self._info()

    def step(self, action: np.ndarray) -> StepInfo:
        assert np.isfinite(action).all(), "a real simulator would crash"
        self.position += float(action[0])
        self.actions.append(float(action[0]))
        return self._info()

    def state(self) -> np.ndarray:
        return np.array([self.position, -1.0], np.float32)

    def positions(self) -> Positions:
        point = np.array([self.position, 0, 0], np.float32)
        return Positions(point, point, np.array([3, 0, 0], np.float32))

    def _info(self) -> StepInfo:
        return StepInfo(self.position == 3, {"is_left": self.position < 3})


class Walker:
    """Walks towards 3 and stops there, or (`overshoots`) walks on; remembers what it was asked."""

    def __init__(self, horizon: int = 4, *, overshoots: bool = False) -> None:
        self.horizon, self.overshoots = horizon, overshoots
        self.asked: list[tuple[tuple[int, ...], int, int]] = []

    def act(self, seeds: Sequence[int], query: int, states: np.ndarray) -> np.ndarray:
        self.asked.append((tuple(seeds), query, len(states)))
        chunks = np.zeros((len(seeds), self.horizon, 8), np.float32)
        for chunk, (position, _) in zip(chunks, states, strict=True):
            distance = self.horizon if self.overshoots else int(3 - position)
            chunk[: max(distance, 0), 0] = 1
        return chunks


def ignore(episode: Episode) -> None:
    del episode


def run(seeds: Sequence[int], actor: Walker, environments: int = 3, execute_steps: int = 4) -> list[Episode]:
    simulators = [Line() for _ in range(environments)]
    return rollout(simulators, actor, seeds, LIMIT, execute_steps, ignore)


def test_episodes_come_in_waves_and_run_to_the_limit() -> None:
    actor = Walker()
    episodes = run([0, 1, 2, -1], actor)
    assert [episode.seed for episode in episodes] == [0, 1, 2, -1]
    assert {episode.steps for episode in episodes} == {LIMIT}
    assert actor.asked == [
        *(((0, 1, 2), query, 3) for query in range(3)),
        *(((-1,), query, 1) for query in range(3)),
    ]


def test_success_is_told_from_its_first_step_and_the_last() -> None:
    stays, leaves, never = run([1], Walker())[0], run([1], Walker(overshoots=True))[0], run([9], Walker())[0]
    assert (stays.success_once, stays.success_at_end, stays.first_success_step) == (True, True, 2)
    assert (leaves.success_once, leaves.success_at_end, leaves.first_success_step) == (True, False, 2)
    assert (never.success_once, never.success_at_end, never.first_success_step) == (False, False, None)


def test_an_episode_that_starts_solved_counts_from_step_zero() -> None:
    assert run([3], Walker())[0].first_success_step == 0


def test_an_episode_carries_its_path_and_final_flags() -> None:
    episode = run([1], Walker())[0]
    assert [point[0] for point in episode.object] == [1, 2, *[3] * 9]
    assert episode.goal == (3, 0, 0)
    assert (episode.distance, episode.flags) == (0, {"is_left": False})


def test_results_do_not_depend_on_how_many_environments_share_a_wave() -> None:
    assert run([0, 1, 2, 5], Walker(), environments=1) == run([0, 1, 2, 5], Walker(), environments=4)


def test_only_the_first_steps_of_a_chunk_are_executed() -> None:
    actor = Walker(horizon=4)
    episode = run([0], actor, execute_steps=2)[0]
    assert [query for _, query, _ in actor.asked] == [0, 1, 2, 3, 4]
    assert episode.first_success_step == 3


def test_each_episode_is_reported_when_its_wave_is_done() -> None:
    seen: list[int] = []
    rollout([Line(), Line()], Walker(), [1, 2, 3], LIMIT, 4, lambda episode: seen.append(episode.seed))
    assert seen == [1, 2, 3]


def test_a_stop_ends_the_rollout_between_queries() -> None:
    calls = iter([None, None, None, KeyboardInterrupt()])

    def check_stop() -> None:
        if error := next(calls):
            raise error

    seen: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        rollout([Line()], Walker(), [1, 2], LIMIT, 4, lambda episode: seen.append(episode.seed), check_stop)
    assert seen == [1]


def test_actions_that_are_not_finite_are_refused_before_physics_sees_them() -> None:
    class Broken(Walker):
        def act(self, seeds: Sequence[int], query: int, states: np.ndarray) -> np.ndarray:
            chunks = super().act(seeds, query, states)
            chunks[1, 2, 5] = np.nan if query else 0
            return chunks

    with pytest.raises(DataError, match=r"not finite for seeds \[2\] at query 1.*eval.step"):
        run([1, 2], Broken())


def test_executing_more_than_the_horizon_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"eval.execute_steps 5 is longer than the policy's horizon 4"):
        run([1], Walker(horizon=4), execute_steps=5)


def test_a_chunk_of_another_shape_is_refused() -> None:
    class Flat(Walker):
        def act(self, seeds: Sequence[int], query: int, states: np.ndarray) -> np.ndarray:
            return super().act(seeds, query, states)[..., :7]

    with pytest.raises(DataError, match=r"shape \(1, 4, 7\), required are \(1, H, 8\)"):
        run([1], Flat())


def dataset() -> Dataset:
    """Two demonstrations, of seeds 1 and 0, that walk to 3."""
    actions = np.zeros((7, 8), np.float32)
    actions[[0, 1, 3, 4, 5], 0] = 1
    meta = DatasetMeta(
        task="pushcube",
        convention=Convention(cameras=()),
        renderer="none",
        seeds=(1, 0),
        attempts=tuple(Attempt(seed=seed, success=True, steps=3, seconds=0.1) for seed in (0, 1)),
        versions={},
    )
    return Dataset(meta, np.zeros((7, 2), np.float32), actions, np.array([0, 3, 7]), ("x", "one"))


@pytest.mark.parametrize("execute_steps", [1, 3, 8])
def test_the_oracle_replays_each_seed_and_holds_its_last_action(execute_steps: int) -> None:
    actor = OracleActor(dataset(), execute_steps)
    episodes = rollout([Line(), Line()], actor, [1, 0], LIMIT, execute_steps, ignore)
    assert [(episode.first_success_step, episode.success_at_end) for episode in episodes] == [(2, True), (3, True)]


def test_the_oracle_refuses_a_seed_it_has_no_demonstration_of() -> None:
    with pytest.raises(DataError, match="no demonstration of seed 4"):
        rollout([Line()], OracleActor(dataset(), 8), [4], LIMIT, 8, ignore)
