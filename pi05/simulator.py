"""ManiSkill on the CPU: turns seeds and actions into states and success. The only door to mani_skill and sapien.

Knows the six tasks' scenes; knows nothing of datasets, policies or storage. ManiSkill is imported when the first
environment is made (about 7 s), so importing this module costs nothing. No Vulkan driver is needed while the
convention names no camera: materials, the one thing ManiSkill asks a renderer for while it builds a scene, are
replaced by inert stand-ins during each build. With cameras, images are rendered when they are asked for; physics has
the same bits either way.
"""

import contextlib
import functools
import gc
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from pi05.cameras import Cameras, renderer
from pi05.config import Convention
from pi05.errors import ConfigError, nearest
from pi05.tasks import Task

JOINT_NAMES = (*(f"joint_{i}" for i in range(1, 8)), "finger")
"""Of qpos[:8]: 7 joints in rad and the opening of one finger in m."""
STORED_JOINTS = (*JOINT_NAMES, "other_finger")
"""Of qpos, which datasets hold whole."""
ROBOTS = ("panda", "panda_wristcam")
"""The Panda arm, without and with a camera on its hand; the solvers can plan for these."""

CONVERTED_MODES = (
    *("pd_joint_delta_pos", "pd_joint_target_delta_pos", "pd_ee_delta_pos", "pd_ee_target_delta_pos"),
    *("pd_ee_delta_pose", "pd_ee_target_delta_pose", "pd_ee_pose"),
)
"""Control modes of the Panda that drive joints to positions, as pd_joint_pos does and with the same forces; those of
velocities do not."""

_NO_TIME_LIMIT = 1_000_000
_BEFORE_HOLE = 0.05
"""m from the hole within which a peg that points into it counts as aligned."""
_HARMLESS = (
    "is not in the task's list of supported robots",  # panda_wristcam: all six tasks are solved with it
    "is not installed with git",
    "No initial pose set for actor builder",  # every episode sets the pose
)


@dataclass(frozen=True)
class StepInfo:
    """What ManiSkill says about a step: `success`, and its other flags by name (is_grasped, is_obj_placed, ...)."""

    success: bool
    flags: dict[str, bool]


@dataclass(frozen=True)
class Positions:
    """Points in the robot task's world frame, float32 (3,) in m; the object stands at the goal when they are equal."""

    tcp: np.ndarray
    object: np.ndarray
    goal: np.ndarray

    @property
    def distance(self) -> float:
        """From object to goal, in m."""
        return float(np.linalg.norm(self.object - self.goal))


@dataclass(frozen=True)
class _Scene:
    """Where an environment keeps what its task is about: names and values of the poses, the object and its goal.

    `flags` are told beside ManiSkill's own, from the environment and what it says about a step.
    """

    names: tuple[str, ...]
    poses: Callable[[Any], list[np.ndarray]]
    object: Callable[[Any], np.ndarray]
    goal: Callable[[Any], np.ndarray]
    flags: Callable[[Any, dict[str, Any]], dict[str, bool]] = lambda _env, _info: {}


class Simulator:
    """One environment of a task.

    Args:
        task: Which of the six.
        convention: Robot, controller, rate, state layout and cameras.

    Raises:
        ConfigError: The convention asks for cameras, a robot or a rate that this simulator does not offer, or for
            cameras on a machine without a Vulkan driver.
    """

    def __init__(self, task: Task, convention: Convention) -> None:
        self.task, self.convention = task, convention
        self._env = make(task, convention).unwrapped
        self._scene = _SCENES[task.name]
        self._cameras = Cameras(self._env, convention.cameras)

    def reset(self, seed: int) -> StepInfo:
        """Build the scene anew from `seed`, so that an episode does not depend on those before it."""
        with materials(self.convention), _quiet():
            _, info = self._env.reset(seed=seed, options={"reconfigure": True})
        self._cameras.prepare()
        return self._told(info)

    def step(self, action: np.ndarray) -> StepInfo:
        """Advance one control step.

        Args:
            action: float32 (8,), 7 absolute joint targets in rad and the gripper in [-1, 1].
        """
        with _quiet():
            *_, info = self._env.step(np.asarray(action, np.float32))
        return self._told(info)

    def state(self) -> np.ndarray:
        """Return what the policy is told, float32 (S,), in the order of `state_names`."""
        joints = self._joints()[:8]
        return joints if self.convention.state == "joints" else np.concatenate([joints, self._poses()])

    def stored_state(self) -> np.ndarray:
        """Return what a dataset holds, float32 (S,), in the order of `stored_names`: every number of any convention."""
        return np.concatenate([self._joints(), self._poses()])

    def images(self) -> dict[str, np.ndarray]:
        """Render and return what each camera sees now, uint8 (image_size, image_size, 3) RGB.

        Two cameras take 60 ms, a step 2 ms: so nothing is rendered that nobody looks at. Empty without cameras.
        """
        return self._cameras.images() if self.convention.cameras else {}

    def positions(self) -> Positions:
        """Return where gripper, object and goal are, for distances and drawings."""
        tcp = _position(self._env.agent.tcp)
        return Positions(tcp, self._scene.object(self._env), self._scene.goal(self._env))

    def physics(self) -> dict[str, np.ndarray]:
        """Return the whole physical state, float32 (D,) an actor or articulation, keyed `actors/cube`.

        An actor is position, quaternion (wxyz), linear and angular velocity; an articulation adds qpos and qvel.
        """
        groups = self._env.get_state_dict()
        return {f"{kind}/{name}": value[0].numpy() for kind, group in groups.items() for name, value in group.items()}

    def close(self) -> None:
        """Free the scene."""
        self._env.close()

    def _told(self, info: dict[str, Any]) -> StepInfo:
        own = _step_info(info)
        return StepInfo(own.success, own.flags | self._scene.flags(self._env, info))

    def _joints(self) -> np.ndarray:
        """Return qpos, float32 (9,)."""
        return self._env.agent.robot.get_qpos()[0].numpy().astype(np.float32)

    def _poses(self) -> np.ndarray:
        """Return the gripper's position and the poses the task is about, float32."""
        return np.concatenate([_position(self._env.agent.tcp), *self._scene.poses(self._env)]).astype(np.float32)


class JointTargets:
    """Turns actions of another control mode into pd_joint_pos: steps them and asks where the joints were driven to.

    Stepped from the same seed, these targets give the same physics.

    Args:
        task: Which of the six.
        convention: Robot and rate.
        mode: One of CONVERTED_MODES.
    """

    def __init__(self, task: Task, convention: Convention, mode: str) -> None:
        self._convention = convention.model_copy(update={"cameras": ()})
        self._env = make(task, self._convention, mode).unwrapped

    def of(self, seed: int, actions: np.ndarray) -> np.ndarray:
        """Return actions (T, D) as absolute joint targets and gripper, float32 (T, 8).

        Raises:
            ValueError: The controller takes actions of another width.
        """
        width = self._env.single_action_space.shape[0]
        if actions.shape[1] != width:
            raise ValueError(f"actions of {actions.shape[1]} numbers, the controller takes {width}")
        with materials(self._convention), _quiet():
            self._env.reset(seed=seed, options={"reconfigure": True})
            return np.stack([self._target(action) for action in np.asarray(actions, np.float32)])

    def _target(self, action: np.ndarray) -> np.ndarray:
        self._env.step(action)
        arm = self._env.agent.controller.controllers["arm"]
        return np.append(arm._target_qpos[0].numpy(), action[-1]).astype(np.float32)  # private: tests/sim replays it


def state_names(task: Task, convention: Convention) -> tuple[str, ...]:
    """Return the name of each number that a policy is told."""
    return JOINT_NAMES if convention.state == "joints" else JOINT_NAMES + _pose_names(task)


def stored_names(task: Task) -> tuple[str, ...]:
    """Return the name of each number that a dataset holds; those of every convention are among them."""
    return STORED_JOINTS + _pose_names(task)


def _pose_names(task: Task) -> tuple[str, ...]:
    return _xyz("tcp") + _SCENES[task.name].names


def make(task: Task, convention: Convention, mode: str | None = None) -> Any:
    """Return ManiSkill's gymnasium environment of a task; every reset reconfigures it.

    Args:
        task: Which of the six.
        convention: What it offers.
        mode: Control mode; None takes the convention's.

    Raises:
        ConfigError: The convention asks for cameras, a robot or a rate that this simulator does not offer.
    """
    check(convention)
    gymnasium = _maniskill()
    with materials(convention), _quiet():
        env = gymnasium.make(
            task.env_id,
            robot_uids=convention.robot,
            control_mode=mode or convention.control_mode,
            obs_mode="none",  # nothing is rendered unless somebody asks
            reward_mode="none",
            sim_backend="physx_cpu",
            render_backend="cpu" if convention.cameras else "none",
            sensor_configs={"width": convention.image_size, "height": convention.image_size},
            reconfiguration_freq=1,
            max_episode_steps=_NO_TIME_LIMIT,
        )
    _check_rate(env.unwrapped.control_freq, convention)
    return env


def check(convention: Convention) -> None:
    """Raise ConfigError when a convention asks for what this simulator does not offer; needs no ManiSkill."""
    renderer(convention.cameras)
    if convention.robot not in ROBOTS:
        raise ConfigError(
            f"unknown robot {convention.robot!r}{nearest(convention.robot, ROBOTS)} Robots: {', '.join(ROBOTS)}"
        )
    if "hand_camera" in convention.cameras and convention.robot != "panda_wristcam":
        raise ConfigError(
            f"robot {convention.robot!r} has no hand_camera; use convention.robot=panda_wristcam, or leave hand_camera "
            "out of convention.cameras"
        )


def versions() -> dict[str, str]:
    """Return the versions that decide what a simulation computes."""
    from importlib.metadata import version

    return {name: version(name) for name in ("mani_skill", "sapien")}


def _check_rate(found: int, convention: Convention) -> None:
    """Raise ConfigError when the environment's control rate is not the convention's."""
    if found != convention.control_rate:
        raise ConfigError(
            f"convention.control_rate {convention.control_rate} is not offered: the simulator steps at {found} Hz; "
            f"use convention.control_rate={found}"
        )


@functools.cache
def _maniskill() -> ModuleType:
    """Import ManiSkill without its noise and return gymnasium, through which its environments are made."""
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # ManiSkill imports GitPython, which wants a git program
    os.environ.setdefault("LP_NUM_THREADS", "0")  # lavapipe's own threads cost a quarter more and bring nothing here
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a missing libvulkan, deprecations of what ManiSkill imports
        import gymnasium
        import mani_skill.envs
        import torch

        del mani_skill
    torch.set_num_threads(1)  # tensors of a few numbers: with one thread a step takes 0.7 ms instead of 4
    gc.freeze()  # each reset collects garbage: without what is imported by now it takes 0.02 s instead of 0.16
    logging.getLogger("mani_skill ").addFilter(lambda record: not any(text in record.msg for text in _HARMLESS))
    return gymnasium


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Let ManiSkill use what is deprecated: logger.warn, and NumPy functions on tensors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


class _InertMaterial:
    """Stands in for RenderMaterial and RenderTexture2D: takes any argument and any attribute, does nothing."""

    def __init__(self, *args: object, **options: object) -> None:
        pass


def materials(convention: Convention) -> contextlib.AbstractContextManager[None]:
    """Build scenes with real materials when there are cameras, without a driver when there are none."""
    return contextlib.nullcontext() if convention.cameras else inert_materials()


@contextlib.contextmanager
def inert_materials() -> Iterator[None]:
    """Let scenes be built without a Vulkan driver.

    The two classes are looked up in three modules; without a renderer their objects are made and thrown away, so
    physics does not depend on them. They are put back afterwards, so that a camera can live in the same process.
    """
    import sapien.pysapien.render
    import sapien.render
    import sapien.wrapper.urdf_loader

    modules = (sapien.render, sapien.pysapien.render, sapien.wrapper.urdf_loader)
    places = [(module, name) for module in modules for name in ("RenderMaterial", "RenderTexture2D")]
    originals = [getattr(module, name) for module, name in places]
    try:
        for module, name in places:
            setattr(module, name, _InertMaterial)
        yield
    finally:
        for (module, name), original in zip(places, originals, strict=True):
            setattr(module, name, original)


def _step_info(info: dict[str, Any]) -> StepInfo:
    """Keep the flags of ManiSkill's info, whose values are tensors over one environment."""
    values = {key: value[0].numpy() for key, value in info.items() if hasattr(value, "numpy")}
    flags = {key: bool(value) for key, value in values.items() if value.dtype == np.bool_}
    return StepInfo(flags.pop("success"), flags)


def _pose(actor: Any) -> np.ndarray:
    """Return position and quaternion (wxyz) of an actor or pose, float32 (7,)."""
    return getattr(actor, "pose", actor).raw_pose[0].numpy()


def _position(actor: Any) -> np.ndarray:
    """Return the position of an actor or pose, float32 (3,) in m."""
    return _pose(actor)[:3]


def _yaw4(actor: Any) -> np.ndarray:
    """Return sine and cosine of four times the yaw, (2,): equal for the four yaws at which a cube looks the same."""
    w, x, y, z = _pose(actor)[3:]
    yaw = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
    return np.array([np.sin(4 * yaw), np.cos(4 * yaw)])


def _oriented(pose: Any) -> np.ndarray:
    """Return position and quaternion (7,), of the two equal quaternions the one with w >= 0."""
    values = _pose(pose)
    return values if values[3] >= 0 else np.concatenate([values[:3], -values[3:]])


def _raised(position: np.ndarray, height: float) -> np.ndarray:
    return position + np.array([0, 0, height], np.float32)


def _at_height(position: np.ndarray, height: float) -> np.ndarray:
    return np.array([position[0], position[1], height], np.float32)


def _xyz(name: str) -> tuple[str, ...]:
    return tuple(f"{name}_{axis}" for axis in "xyz")


def _quaternion(name: str) -> tuple[str, ...]:
    return tuple(f"{name}_q{axis}" for axis in "wxyz")


def _slide() -> _Scene:
    """PushCube and PullCube: a cube and a target drawn on the table."""
    return _Scene(
        names=(*_xyz("cube"), "goal_x", "goal_y"),
        poses=lambda env: [_position(env.obj), _position(env.goal_region)[:2]],
        object=lambda env: _position(env.obj),
        goal=lambda env: _at_height(_position(env.goal_region), env.cube_half_size),
    )


def _pick() -> _Scene:
    return _Scene(
        names=(*_xyz("cube"), "cube_sin4yaw", "cube_cos4yaw", *_xyz("goal")),
        poses=lambda env: [_position(env.cube), _yaw4(env.cube), _position(env.goal_site)],
        object=lambda env: _position(env.cube),
        goal=lambda env: _position(env.goal_site),
    )


def _stack() -> _Scene:
    return _Scene(
        names=(*_xyz("red"), "red_sin4yaw", "red_cos4yaw", *_xyz("green")),
        poses=lambda env: [_position(env.cubeA), _yaw4(env.cubeA), _position(env.cubeB)],
        object=lambda env: _position(env.cubeA),
        goal=lambda env: _raised(_position(env.cubeB), 2 * float(env.cube_half_size[2])),
    )


def _place() -> _Scene:
    return _Scene(
        names=(*_xyz("sphere"), *_xyz("bin")),
        poses=lambda env: [_position(env.obj), _position(env.bin)],
        object=lambda env: _position(env.obj),
        goal=lambda env: _raised(_position(env.bin), env.radius + env.block_half_size[0]),
    )


def _insert() -> _Scene:
    """PegInsertionSide: the peg's size differs from seed to seed, so it belongs to the state."""
    return _Scene(
        names=(
            *(*_xyz("peg"), *_quaternion("peg"), "peg_half_length", "peg_radius"),
            *(*_xyz("hole"), *_quaternion("hole")),
        ),
        poses=lambda env: [_oriented(env.peg), env.peg_half_sizes[0, :2].numpy(), _oriented(env.box_hole_pose)],
        object=lambda env: _position(env.peg_head_pose),
        goal=lambda env: _position(env.box_hole_pose),
        flags=_peg_flags,
    )


def _peg_flags(env: Any, info: dict[str, Any]) -> dict[str, bool]:
    """Return whether the peg is held, and whether its head is before the hole or in it; ManiSkill tells neither."""
    depth, *aside = info["peg_head_pos_at_hole"][0].numpy()
    inside = np.abs(aside).max() <= float(env.box_hole_radii[0])
    return {
        "is_grasped": bool(env.agent.is_grasping(env.peg, max_angle=20)[0]),
        "is_peg_aligned": bool(inside and depth >= -_BEFORE_HOLE),
    }


_SCENES = {
    "pickcube": _pick(),
    "stackcube": _stack(),
    "pushcube": _slide(),
    "pullcube": _slide(),
    "placesphere": _place(),
    "peginsertionside": _insert(),
}
