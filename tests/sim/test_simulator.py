"""Real physics of all six tasks."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pi05 import simulator, tasks
from pi05.config import Convention
from pi05.errors import ConfigError
from pi05.simulator import Simulator, state_names
from tests.sim.conftest import CONVENTION

STATE_WIDTHS = {
    "pickcube": 19,
    "stackcube": 19,
    "pushcube": 16,
    "pullcube": 16,
    "placesphere": 17,
    "peginsertionside": 27,
}


@pytest.fixture(scope="module", params=list(tasks.TASKS))
def environment(request: pytest.FixtureRequest) -> Simulator:
    return Simulator(tasks.find(request.param), CONVENTION)


def course(simulator: Simulator, seed: int, steps: int = 80) -> list[dict[str, np.ndarray]]:
    """Return the physical states of an episode that presses the hand on the table where `seed` says.

    Contacts are what an environment that is not built anew remembers from one episode to the next.
    """
    simulator.reset(seed)
    rng = np.random.default_rng(seed)
    home = np.append(simulator.state()[:7], -1)
    pressed = home + np.array([rng.uniform(-0.3, 0.3), 0.5, 0, 0, 0, 0.3, 0, 0])
    states = [simulator.physics()]
    for step in range(steps):
        simulator.step((home + (pressed - home) * step / steps + rng.normal(scale=0.02, size=8)).astype(np.float32))
        states.append(simulator.physics())
    return states


def bits(states: list[dict[str, np.ndarray]]) -> list[dict[str, bytes]]:
    return [{name: value.tobytes() for name, value in state.items()} for state in states]


def test_every_task_builds_resets_steps_and_has_a_named_state(environment: Simulator) -> None:
    info = environment.reset(0)
    assert not info.success
    names = state_names(environment.task, CONVENTION)
    before = environment.state()
    assert (before.shape, before.dtype) == ((STATE_WIDTHS[environment.task.name],), np.float32)
    assert len(set(names)) == len(names) == len(before)
    environment.step(np.append(before[:7] + 0.1, -1).astype(np.float32))
    after = environment.state()
    assert np.isfinite(after).all()
    assert (after[:8] != before[:8]).all()


def test_the_same_seed_gives_the_same_bits_whatever_ran_before(environment: Simulator) -> None:
    first = course(environment, 5)
    other = course(environment, 6)
    assert bits(course(environment, 5)) == bits(first)
    assert bits(other) != bits(first)


def test_the_peg_has_the_size_of_its_seed() -> None:
    environment = Simulator(tasks.find("peginsertionside"), CONVENTION)
    size = state_names(environment.task, CONVENTION).index("peg_half_length")
    sizes = []
    for seed in (5, 6, 5):
        environment.reset(seed)
        sizes.append(environment.state()[size])
    assert sizes[0] == sizes[2] != sizes[1]


def test_object_and_goal_are_apart_at_first_and_both_in_the_state(environment: Simulator) -> None:
    environment.reset(1)
    positions = environment.positions()
    assert positions.distance > 0.03
    if environment.task.name == "peginsertionside":
        return  # there the object is the peg's head, the state has its middle
    state, names = environment.state(), state_names(environment.task, CONVENTION)
    tcp, first, *_, last = (i for i, name in enumerate(names) if name.endswith("_x"))
    np.testing.assert_array_equal(state[tcp : tcp + 3], positions.tcp)
    np.testing.assert_array_equal(state[first : first + 3], positions.object)
    np.testing.assert_array_equal(state[last : last + 2], positions.goal[:2])


def test_the_state_may_hold_joints_only() -> None:
    convention = Convention(cameras=(), state="joints")
    environment = Simulator(tasks.find("pushcube"), convention)
    environment.reset(0)
    assert environment.state().shape == (len(state_names(environment.task, convention)),) == (8,)


def test_one_environment_steps_in_lockstep_with_another_without_touching_it() -> None:
    alone, other = (Simulator(tasks.find("pushcube"), CONVENTION) for _ in range(2))

    class Lockstep(Simulator):
        def step(self, action: np.ndarray) -> simulator.StepInfo:
            other.step(-action)
            return super().step(action)

    together = Lockstep(tasks.find("pushcube"), CONVENTION)
    other.reset(6)
    assert bits(course(together, 5)) == bits(course(alone, 5))


def test_materials_are_put_back_so_that_a_camera_could_live_in_this_process() -> None:
    import sapien.render

    original = sapien.render.RenderMaterial
    with simulator.inert_materials():
        assert sapien.render.RenderMaterial is not original
    Simulator(tasks.find("pushcube"), CONVENTION).reset(0)
    assert sapien.render.RenderMaterial is original


def test_an_unknown_robot_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown robot 'panda_wrist'; did you mean 'panda_wristcam'\?"):
        Simulator(tasks.find("pushcube"), Convention(cameras=(), robot="panda_wrist"))


def test_another_control_rate_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"control_rate 10 is not offered.*use convention.control_rate=20"):
        Simulator(tasks.find("pushcube"), Convention(cameras=(), control_rate=10))


def turned(yaw: float) -> SimpleNamespace:
    quaternion = [np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]
    return SimpleNamespace(raw_pose=torch.tensor([[0.1, 0.2, 0.3, *quaternion]], dtype=torch.float32))


@pytest.mark.parametrize("yaw", [-3.0, -0.3, 0.0, 0.7, 2.0])
def test_a_cube_turned_by_a_right_angle_looks_the_same(yaw: float) -> None:
    expected = [np.sin(4 * yaw), np.cos(4 * yaw)]
    np.testing.assert_allclose(simulator._yaw4(turned(yaw)), expected, atol=1e-5)
    np.testing.assert_allclose(simulator._yaw4(turned(yaw + np.pi / 2)), expected, atol=1e-5)


def test_the_two_quaternions_of_an_orientation_are_written_alike() -> None:
    np.testing.assert_allclose(
        simulator._oriented(turned(2.0)), simulator._oriented(turned(2.0 + 2 * np.pi)), atol=1e-6
    )
