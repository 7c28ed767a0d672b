"""Which renderer there is, what is said when there is none, and how a heavy mesh becomes a light one."""

import os
import subprocess
import sys

import numpy as np
import pytest

from pi05 import cameras, simulator, vulkan
from pi05.cameras import clustered, renderer
from pi05.config import Convention
from pi05.errors import ConfigError
from pi05.vulkan import Driver

BOTH = ("base_camera", "hand_camera")


def found(monkeypatch: pytest.MonkeyPatch, driver: Driver | None) -> None:
    monkeypatch.setattr(vulkan, "cpu_driver", lambda: driver)


def test_the_renderer_has_a_name_and_a_version(monkeypatch: pytest.MonkeyPatch) -> None:
    found(monkeypatch, Driver("lavapipe", (25, 0, 7)))
    assert renderer(BOTH) == "lavapipe 25.0.7"


def test_without_cameras_no_driver_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vulkan, "cpu_driver", lambda: pytest.fail("nobody needs it"))
    assert renderer(()) == cameras.NO_RENDERER == "none"
    simulator.check(Convention(cameras=()))


def test_a_machine_without_a_driver_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    found(monkeypatch, None)
    with pytest.raises(ConfigError, match=r"has none: run scripts/_setup render .*mesa-vulkan-drivers.*preset tiny"):
        simulator.check(Convention())


def test_a_driver_that_is_too_old_is_refused_with_both_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    found(monkeypatch, Driver("lavapipe", (22, 3, 6)))
    with pytest.raises(ConfigError, match=r"need lavapipe 24.3 or newer, this machine has lavapipe 22.3.6: run"):
        renderer(BOTH)


def test_a_robot_without_a_camera_on_its_hand_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found(monkeypatch, Driver("lavapipe", (25, 0, 7)))
    with pytest.raises(ConfigError, match=r"robot 'panda' has no hand_camera; use convention.robot=panda_wristcam"):
        simulator.check(Convention(robot="panda"))


def test_no_driver_is_found_where_there_is_none() -> None:
    environment = {**os.environ, "VK_ICD_FILENAMES": os.devnull, "VK_DRIVER_FILES": os.devnull}
    asked = subprocess.run([sys.executable, "-I", vulkan.__file__], env=environment, capture_output=True, check=True)
    assert asked.stdout.strip() == b""


def test_vertices_in_one_cell_become_one_and_flat_triangles_go() -> None:
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0.001, 0, 0], [1, 0.001, 0]], np.float32)
    triangles = np.array([[0, 1, 2], [4, 2, 3], [0, 3, 1], [1, 0, 2]])  # itself, its copy, a sliver, its back
    vertices, normals = clustered(corners, triangles, grid=0.1)
    assert (vertices.dtype, normals.dtype, vertices.shape) == (np.float32, np.float32, (6, 3))
    assert sorted(normals[:, 2].tolist()) == [-1, -1, -1, 1, 1, 1]
    assert {tuple(vertex) for vertex in vertices.tolist()} == {(0, 0, 0), (1, 0, 0), (0, 1, 0)}
