"""The rollout's logic on a simulator of a few lines; real physics is in tests/sim."""

from collections.abc import Sequence

import numpy as np
import pytest

from pi05.config import Convention
from pi05.data.dataset import Attempt, Dataset, DatasetMeta
from pi05.errors import ConfigError, DataError
from pi05.evaluation.course import Station
from pi05.evaluation.rollout import OracleActor, rollout
from pi05.results import Episode
from tests.line import LIMIT, Line, Walker, ignore


def station(environments: int) -> Station:
    return Station([Line() for _ in range(environments)], False)


def run(seeds: Sequence[int], actor: Walker, environments: int = 3, execute_steps: int = 4) -> list[Episode]:
    trials = rollout(station(environments), actor, seeds, LIMIT, execute_steps, ignore)
    return [trial.episode for trial in trials]


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


def test_images_are_rendered_when_the_policy_looks_and_not_otherwise() -> None:
    blind, seeing, actor = [Line(), Line()], [Line(), Line()], Walker()
    rollout(Station(blind, False), Walker(), [0, 1], LIMIT, 4, ignore)
    rollout(Station(seeing, True), actor, [0, 1], LIMIT, 4, ignore)
    assert [line.rendered for line in blind] == [0, 0]
    assert [line.rendered for line in seeing] == [3, 3], "10 steps, of which 4 are executed at a time"
    assert [image["base_camera"][:, 0, 0, 0].tolist() for image in actor.seen] == [[100, 101], [103, 103], [103, 103]]


def test_the_actions_of_an_episode_repeat_it() -> None:
    trial = rollout(station(1), Walker(), [1], 9, 4, ignore)[0]
    assert (trial.actions.dtype, trial.actions.shape) == (np.float32, (9, 8))
    line = Line()
    line.reset(1)
    assert [line.step(action).success for action in trial.actions] == [False, *[True] * 8]


def test_each_episode_is_reported_when_its_wave_is_done() -> None:
    seen: list[int] = []
    rollout(station(2), Walker(), [1, 2, 3], LIMIT, 4, lambda trial: seen.append(trial.episode.seed))
    assert seen == [1, 2, 3]


def test_a_stop_ends_the_rollout_between_queries() -> None:
    calls = iter([None, None, None, KeyboardInterrupt()])

    def check_stop() -> None:
        if error := next(calls):
            raise error

    seen: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        rollout(station(1), Walker(), [1, 2], LIMIT, 4, lambda trial: seen.append(trial.episode.seed), check_stop)
    assert seen == [1]


def test_actions_that_are_not_finite_are_refused_before_physics_sees_them() -> None:
    class Broken(Walker):
        def act(self, *asked) -> np.ndarray:
            chunks, query = super().act(*asked), asked[1]
            chunks[1, 2, 5] = np.nan if query else 0
            return chunks

    with pytest.raises(DataError, match=r"not finite for seeds \[2\] at query 1.*eval.step"):
        run([1, 2], Broken())


def test_executing_more_than_the_horizon_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"eval.execute_steps 5 is longer than the policy's horizon 4"):
        run([1], Walker(horizon=4), execute_steps=5)


def test_a_chunk_of_another_shape_is_refused() -> None:
    class Flat(Walker):
        def act(self, *asked) -> np.ndarray:
            return super().act(*asked)[..., :7]

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
    trials = rollout(station(2), actor, [1, 0], LIMIT, execute_steps, ignore)
    episodes = [trial.episode for trial in trials]
    assert [(episode.first_success_step, episode.success_at_end) for episode in episodes] == [(2, True), (3, True)]


def test_the_oracle_refuses_a_seed_it_has_no_demonstration_of() -> None:
    with pytest.raises(DataError, match="no demonstration of seed 4"):
        rollout(station(1), OracleActor(dataset(), 8), [4], LIMIT, 8, ignore)
