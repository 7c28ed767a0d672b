"""What the cameras of real scenes see, and that seeing changes nothing."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from pi05 import cameras, tasks
from pi05.config import Convention
from pi05.simulator import Simulator
from tests.sim.conftest import SEEING

Images = dict[str, np.ndarray]

COURSE = """
import hashlib, sys
import numpy as np
from pi05 import tasks
from pi05.config import Convention
from pi05.simulator import Simulator

def course(task, convention):
    simulator = Simulator(tasks.find(task), convention)
    simulator.reset(7)
    random = np.random.default_rng(7)
    action = np.append(simulator.stored_state()[:7], -1)
    digest = hashlib.sha256()
    for step in range(40):
        if step % 20 == 0:
            for image in simulator.images().values():
                assert image.std() > 0
        simulator.step((action + random.normal(scale=0.05, size=8)).astype(np.float32))
        for name, values in sorted(simulator.physics().items()):
            digest.update(values.tobytes())
    return digest.hexdigest()

for task in tasks.TASKS:
    print(task, course(task, Convention.model_validate_json(sys.argv[1])))
"""


@pytest.fixture(scope="module")
def pickcube() -> Simulator:
    return Simulator(tasks.find("pickcube"), SEEING)


def same(one: Images, other: Images) -> bool:
    return one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)


def digest(images: Images) -> str:
    return hashlib.sha256(b"".join(image.tobytes() for image in images.values())).hexdigest()


def test_both_cameras_see_the_scene_of_every_task() -> None:
    for task in tasks.TASKS.values():
        simulator = Simulator(task, SEEING)
        simulator.reset(0)
        images = simulator.images()
        assert list(images) == ["base_camera", "hand_camera"]
        assert {(image.shape, image.dtype.name) for image in images.values()} == {((64, 64, 3), "uint8")}
        assert min(image.std() for image in images.values()) > 10


def test_one_camera_of_another_size_can_be_asked_for() -> None:
    simulator = Simulator(tasks.find("pushcube"), Convention(cameras=("hand_camera",), image_size=32))
    simulator.reset(0)
    assert {name: image.shape for name, image in simulator.images().items()} == {"hand_camera": (32, 32, 3)}


def test_the_goal_is_visible_after_every_reset_and_whoever_hid_it(pickcube: Simulator) -> None:
    for seed in (0, 1, 2):
        pickcube.reset(seed)
        env = pickcube._env
        shown = pickcube.images()
        assert env._hidden_objects == [env.goal_site]
        env.goal_site.hide_visual()  # as ManiSkill does before it renders a sensor
        assert same(pickcube.images(), shown)
        env._hidden_objects = []
        env.goal_site.hide_visual()
        assert not np.array_equal(pickcube.images()["base_camera"], shown["base_camera"])


def test_nothing_is_rendered_that_nobody_asks_for(pickcube: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    pickcube.reset(0)
    sensors, taken = pickcube._env.scene.sensors, []
    for name, sensor in sensors.items():
        monkeypatch.setattr(sensor, "capture", lambda name=name, real=sensor.capture: (taken.append(name), real()))
    for _ in range(3):
        pickcube.step(np.append(pickcube.state()[:7], 1).astype(np.float32))
        assert taken == []
    pickcube.images()
    assert taken == ["base_camera", "hand_camera"]


def test_a_seed_has_one_picture_whatever_was_rendered_before_and_beside_it(pickcube: Simulator) -> None:
    pickcube.reset(3)
    first = pickcube.images()
    assert same(pickcube.images(), first)
    other = Simulator(tasks.find("pickcube"), SEEING)
    other.reset(4)
    assert not same(other.images(), first)
    pickcube.reset(4)
    pickcube.reset(3)
    assert same(pickcube.images(), first)
    other.reset(3)
    assert same(other.images(), first)


def test_another_process_with_other_threads_renders_the_same_bits(pickcube: Simulator) -> None:
    pickcube.reset(3)
    script = (
        "from tests.sim.test_cameras import *; simulator = Simulator(tasks.find('pickcube'), SEEING)\n"
        "simulator.reset(3); print(digest(simulator.images()))"
    )
    environment = {**os.environ, "LP_NUM_THREADS": "2"}
    other = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == digest(pickcube.images())


def test_the_light_mesh_of_the_wrist_camera_can_hardly_be_told_from_the_real_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    simulator = Simulator(tasks.find("pickcube"), Convention())
    simulator.reset(0)
    light = simulator.images()
    monkeypatch.setattr(cameras, "_simplify", lambda _: None)
    simulator.reset(0)
    real = simulator.images()
    assert np.array_equal(light["hand_camera"], real["hand_camera"])
    difference = np.abs(light["base_camera"].astype(int) - real["base_camera"]).max(axis=-1)
    assert 0 < (difference > 0).sum() < 50, "if nothing differs, nothing was simplified"
    assert difference.max() <= 8


def test_physics_has_the_same_bits_without_a_driver_and_with_cameras() -> None:
    def courses(convention: Convention, **environment: str) -> str:
        command = [sys.executable, "-c", COURSE, convention.model_dump_json()]
        run = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
        return run.stdout

    without = courses(Convention(cameras=(), state="joints_and_poses"), VK_ICD_FILENAMES=os.devnull)
    assert without.count("\n") == len(tasks.TASKS)
    assert courses(SEEING) == without
