"""What the cameras of a scene see: turns a ManiSkill environment into images, when they are asked for.

An environment renders nothing by itself here (its observation mode is `none`), so a step costs its physics alone.
What ManiSkill hides from sensors (PickCube's goal) is shown before every render: a policy that cannot see the goal
scores 0.6 %. Knows nothing of tasks, states or datasets.
"""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from pi05 import vulkan
from pi05.errors import ConfigError, nearest

NO_RENDERER = "none"
"""The renderer of data without cameras."""
OLDEST_MESA = (24, 3)
"""The first lavapipe with VK_KHR_external_semaphore_fd, which SAPIEN asks for."""

_SET_UP = (
    "run scripts/_setup render (Debian 13, Ubuntu: apt-get install libvulkan1 mesa-vulkan-drivers; Debian 12: the same "
    "from bookworm-backports; an image: scripts/images sim --mesa bookworm-backports), or use preset tiny, which "
    "has no camera"
)
_HEAVY_LINK = "camera_link"
_GRID = 0.001
"""Of the wrist camera's 425,160 triangles, three quarters of the scene's, all that lie within a mm of each other become
one. A render takes half the time; 14 pixels of 50,176 change, by at most 4 of 255."""

_SIMPLE: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = {}
"""Vertices and normals of the simplified parts of mesh files, made once a process."""


def renderer(cameras: Sequence[str]) -> str:
    """Return what draws the images of these cameras: "lavapipe 25.0.7", or "none" when there are no cameras.

    Raises:
        ConfigError: This machine has no Vulkan driver that SAPIEN can use.
    """
    if not cameras:
        return NO_RENDERER
    driver = vulkan.cpu_driver()
    if driver is None:
        raise ConfigError(f"cameras need a Vulkan driver for the CPU, and this machine has none: {_SET_UP}")
    if driver.name == "lavapipe" and driver.version < OLDEST_MESA:
        raise ConfigError(f"cameras need lavapipe 24.3 or newer, this machine has {driver}: {_SET_UP}")
    return str(driver)


class Cameras:
    """The cameras of an environment.

    Args:
        env: ManiSkill's environment (BaseEnv), built with a renderer.
        names: Which of its cameras, in this order.

    Raises:
        ConfigError: The environment has no camera of that name.
    """

    def __init__(self, env: Any, names: Sequence[str]) -> None:
        self._env, self._names = env, names

    def prepare(self) -> None:
        """Make a scene that was just built cheap to render, and compare its cameras with those that are wanted."""
        for name in self._names:
            if name not in self._env.scene.sensors:
                known = ", ".join(self._env.scene.sensors)
                hint = nearest(name, self._env.scene.sensors) or ";"
                raise ConfigError(
                    f"the scene has no camera {name!r}{hint} there are: {known}".replace("? there", "? There")
                )
        if not self._names:
            return  # built without a renderer: there is nothing to make cheap
        for scene in self._env.scene.sub_scenes:
            for entity in scene.entities:
                if entity.name == _HEAVY_LINK:
                    _simplify(entity)

    def images(self) -> dict[str, np.ndarray]:
        """Render, and return uint8 (height, width, 3) a camera."""
        env = self._env
        for hidden in env._hidden_objects:  # private to ManiSkill: tests/sim compares pixels
            hidden.show_visual()
        env.scene.update_render(update_sensors=True, update_human_render_cameras=False)
        sensors = {name: env.scene.sensors[name] for name in self._names}
        for sensor in sensors.values():
            sensor.capture()
        return {name: _rgb(sensor) for name, sensor in sensors.items()}


def _rgb(sensor: Any) -> np.ndarray:
    """Return what a camera captured, a copy that outlives the next render."""
    seen = sensor.get_obs(rgb=True, depth=False, position=False, segmentation=False)
    return seen["rgb"][0].numpy().copy()


def _simplify(entity: Any) -> None:
    """Give an entity meshes of few triangles instead of those it has."""
    from sapien.render import RenderBodyComponent, RenderShapeTriangleMesh

    body = entity.find_component_by_type(RenderBodyComponent)
    simple = RenderBodyComponent()
    simple.name = body.name
    for shape in body.render_shapes:
        for number, part in enumerate(shape.parts):
            key = (shape.filename, number)
            if key not in _SIMPLE:
                _SIMPLE[key] = clustered(np.asarray(part.vertices), np.asarray(part.triangles))
            vertices, normals = _SIMPLE[key]
            mesh = RenderShapeTriangleMesh(
                vertices=vertices,
                triangles=np.arange(len(vertices), dtype=np.uint32).reshape(-1, 3),
                normals=normals,
                uvs=np.zeros((len(vertices), 2), np.float32),
                material=part.material,
            )
            mesh.local_pose = shape.local_pose
            simple.attach(mesh)
    entity.remove_component(body)
    entity.add_component(simple)


def clustered(vertices: np.ndarray, triangles: np.ndarray, grid: float = _GRID) -> tuple[np.ndarray, np.ndarray]:
    """Return a mesh whose vertices within one cell of a grid became one; what lost its area is gone.

    Args:
        vertices: float32 (V, 3) in m.
        triangles: int (F, 3).
        grid: Side of a cell in m.

    Returns:
        float32 (3 G, 3) corners of G triangles, one after the other, and their normals of the same shape.
    """
    cells = np.floor(vertices / grid + 0.5).astype(np.int64)
    _, first, cell = np.unique(cells, axis=0, return_index=True, return_inverse=True)
    faces = cell.reshape(-1)[triangles]
    faces = faces[(faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])]
    turn = (np.argmin(faces, axis=1)[:, None] + np.arange(3)) % 3  # the smallest corner first, so that equals are equal
    faces = np.unique(np.take_along_axis(faces, turn, axis=1), axis=0)
    corners = vertices[first][faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return corners.reshape(-1, 3).astype(np.float32), np.repeat(normals, 3, axis=0).astype(np.float32)


if __name__ == "__main__":
    try:
        print(renderer(["any"]))  # noqa: T201  # what pi05ctl doctor and the probe read
    except ConfigError as error:
        sys.exit(str(error))
