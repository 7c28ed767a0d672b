"""Makes a dataset of ours of a LeRobot folder of others: `python -m pi05.data.importing FOLDER --task T --out DATASET`.

What is used, converted and left out is told on stderr, a line each. What cannot be used is one line on stdout that
names the field, and the exit code of its error. Pictures stay the files they are unless their size or form is another
one; videos become PNG. Knows no storage: whoever calls says where to.
"""

import argparse
import contextlib
import logging
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pi05 import tasks
from pi05.config import Convention
from pi05.data import dataset as datasets
from pi05.data import meaning, video
from pi05.data.blocks import png
from pi05.data.dataset import Attempt, DatasetMeta, Demo
from pi05.data.foreign import Episode, ForeignFolder, Pick
from pi05.data.images import as_given, fit, pixels, square
from pi05.data.keys import Keys, keys
from pi05.data.meaning import Layout
from pi05.data.writer import LEROBOT
from pi05.errors import DataError, JobError
from pi05.simulator import JOINT_NAMES, ROBOTS, STORED_JOINTS
from pi05.tasks import Task

log = logging.getLogger("pi05")

RENDERER = "unknown, imported"
"""What drew the pictures of others."""
_LOOKED_AT = 20
"""Episodes whose first picture is searched for the goal."""
_TOLD_EVERY = 50
"""Episodes between two words on how far it is."""


@dataclass(frozen=True)
class Wish:
    """What is imported, and how.

    Attributes:
        folder: LeRobot dataset.
        task: Whose demonstrations they are.
        maps: Which feature is which of ours, each `theirs=ours`.
        size: Height and width that pictures get, in pixels; None keeps theirs.
        rate: Rows a second, where info.json has a wrong number; None believes it.
        mode: Control mode of the actions.
        instruction: Only episodes of this instruction; None: of the only one there is.
        as_is: Take numbers and pictures that do not look like ours.
        identity: Of the folder's content, for the dataset's meta data.
    """

    folder: Path
    task: Task
    maps: tuple[str, ...] = ()
    size: int | None = None
    rate: float | None = None
    mode: str = "pd_joint_pos"
    instruction: str | None = None
    as_is: bool = False
    identity: str = ""


def import_folder(wish: Wish, out: Path) -> DatasetMeta:
    """Write the dataset into `out`, and return its meta data.

    Raises:
        DataError: The folder is damaged, or something of it cannot be used: which field, what is required, what to do.
    """
    folder = ForeignFolder(wish.folder)
    found = keys(folder, wish.maps)
    _check_rate(folder, wish.rate)
    choice = _Choice.of(folder, wish)
    numbers = _numbers(folder, found, wish)
    pictures = _Pictures(folder, found, wish, choice)
    convention = _convention(folder, numbers, pictures)
    meta = _meta(wish, folder, choice, convention, pictures.goal_visible() if convention.cameras else True)
    datasets.write(out, wish.task, numbers.names, _demos(choice, numbers, pictures, convention), meta)
    return meta


@dataclass(frozen=True)
class _Choice:
    """The episodes of a folder, and why each is left out, "" for those that are used."""

    episodes: tuple[Episode, ...]
    reasons: tuple[str, ...]

    @classmethod
    def of(cls, folder: ForeignFolder, wish: Wish) -> "_Choice":
        """Choose; raise DataError when none is left, or when there are several instructions to choose from."""
        sentences = {one.sentence for one in folder.episodes if one.sentence}
        if wish.instruction is None and len(sentences) > 1:
            raise DataError(
                f"{folder.path} has {len(sentences)} instructions; say which is {wish.task.name}, with --instruction: "
                + "; ".join(repr(one) for one in sorted(sentences)[:5])
            )
        reasons = tuple(_reason(one, wish) for one in folder.episodes)
        left_out = {reason: reasons.count(reason) for reason in reasons if reason}
        if all(reasons):
            raise DataError(f"{folder.path} has no episode that can be used: {_counted(left_out)}")
        for reason, count in left_out.items():
            log.warning("left out: %d of %d episodes, %s", count, len(reasons), reason)
        if other := sentences - {wish.task.sentence}:
            log.info("the instruction becomes the task's own, %r, instead of %r", wish.task.sentence, min(other))
        return cls(folder.episodes, reasons)

    @property
    def kept(self) -> list[tuple[int, Episode]]:
        """The episodes that are used, with their numbers."""
        pairs = enumerate(zip(self.episodes, self.reasons, strict=True))
        return [(number, one) for number, (one, reason) in pairs if not reason]


def _reason(episode: Episode, wish: Wish) -> str:
    """Return why an episode is left out, or ""."""
    steps = episode.end - episode.begin
    if wish.instruction is not None and episode.sentence != wish.instruction:
        return "its instruction is another one"
    if steps < 2:
        return f"it has {steps} step, two are required"
    if steps > wish.task.eval_limit:
        return f"it is longer than an evaluation of {wish.task.name} allows ({wish.task.eval_limit} steps)"
    return ""


def _counted(reasons: dict[str, int]) -> str:
    return "; ".join(f"{count} times {reason}" for reason, count in reasons.items())


def _check_rate(folder: ForeignFolder, said: float | None) -> None:
    """Raise DataError unless there are as many rows a second as the simulator has control steps."""
    wanted, found = Convention().control_rate, folder.info.get("fps") if said is None else said
    if found != wanted:
        raise DataError(
            f"{folder.path} has {found} rows a second (fps), the simulator is controlled {wanted} times; record at "
            f"{wanted}. If that number is wrong (ManiSkill's converter writes 30 whatever it was), say --rate {wanted}"
        )


@dataclass(frozen=True)
class _Numbers:
    """States (N, S), named, and actions (N, 8) of all rows, float32."""

    states: np.ndarray
    actions: np.ndarray
    names: tuple[str, ...]


def _numbers(folder: ForeignFolder, found: Keys, wish: Wish) -> _Numbers:
    """Return the numbers as ours are; raise DataError when they cannot be."""

    def of_state(names: Sequence[str], width: int) -> Layout:
        return meaning.state_layout(names, width, wish.task)

    states, layout = _arranged(folder, "state", found.state, of_state)
    actions, _ = _arranged(folder, "action", found.action, meaning.action_layout)
    starts = np.array([0, *(one.end for one in folder.episodes)])
    actions = meaning.targets(actions, states, starts, wish.mode)
    if doubts := meaning.doubts(states, actions, starts):
        if not wish.as_is:
            raise DataError(f"{folder.path}: {'; '.join(doubts)}. To take the numbers all the same: --as-is")
        log.warning("taken as they are: %s", "; ".join(doubts))
    joints = STORED_JOINTS if len(layout.fingers) == 2 else JOINT_NAMES
    names = (*joints, *(name for name, _ in layout.others))
    return _Numbers(states.astype(np.float32), actions.astype(np.float32), names)


def _arranged(
    folder: ForeignFolder, what: str, picks: Sequence[Pick], layout_of: Callable[[Sequence[str], int], Layout]
) -> tuple[np.ndarray, Layout]:
    """Return picked numbers in our order, and where they were."""
    matrix = folder.matrix(picks)
    named = [folder.names(pick) for pick in picks]
    names = [name for part in named for name in part] if all(named) else []
    try:
        layout = layout_of(names, matrix.shape[1])
    except DataError as error:
        raise DataError(f"{folder.path}, {' + '.join(map(str, picks))}: {error}") from error
    if layout.columns != list(range(matrix.shape[1])):
        log.info("%s: its numbers become %s", what, ", ".join(names[column] for column in layout.columns))
    return matrix[:, layout.columns], layout


class _Pictures:
    """The pictures of a folder, camera by camera."""

    def __init__(self, folder: ForeignFolder, found: Keys, wish: Wish, choice: _Choice) -> None:
        self._folder, self._features, self._wish, self._choice = folder, found.cameras, wish, choice
        self.cameras = tuple(found.cameras)
        for camera, feature in found.cameras.items():
            if self._is_video(camera):
                log.warning("%s: %s is a video, whose loss of small things stays in the images", camera, feature)

    def size(self) -> int:
        """Return how many pixels images get: what is wished, else theirs, of several cameras the fewest."""
        _, first = self._choice.kept[0]
        sizes = {camera: self._side(camera, first) for camera in self.cameras}
        wanted = self._wish.size or min(sizes.values())
        for camera, size in sizes.items():
            if size != wanted:
                log.info("%s: images of %d pixels become %d", camera, size, wanted)
        return wanted

    def goal_visible(self) -> bool:
        """Return whether the goal is to be seen; DataError when nothing can be learned without."""
        task = self._wish.task
        if not task.goal_hidden:
            return True
        kept = [one for _, one in self._choice.kept[:_LOOKED_AT]]
        if any(meaning.goal_shown([self._first(camera, one) for one in kept]) for camera in self.cameras):
            return True
        said = (
            f"{task.env_id} cannot be learned from these images: its goal, a green ball, is not in them (ManiSkill "
            f"hides it from sensor cameras; looked at: the first image of {len(kept)} episodes), and the best policy "
            "without it solves less than 1 %. Import ManiSkill's recordings (h5) instead: they are rendered here, with "
            "the goal"
        )
        if not self._wish.as_is:
            raise DataError(f"{self._folder.path}: {said}")
        log.warning("taken as it is: %s", said)
        return False

    def encoded(self, camera: str, episode: Episode, size: int) -> list[bytes]:
        """Return the images of an episode; those of the right form are the files they were."""
        with self._named(camera):
            if self._is_video(camera):
                return [png(fit(square(picture), size)) for picture in self.decoded(camera, episode)]
            contents = self._folder.images(self._features[camera], episode)
            return [c if as_given(c, size) else png(fit(square(pixels(c)), size)) for c in contents]

    def decoded(self, camera: str, episode: Episode) -> Generator[np.ndarray]:
        """Yield the pictures of an episode as they come."""
        feature = self._features[camera]
        if self._is_video(camera):
            clip = self._folder.clip(feature, episode)
            rate = float(self._folder.info.get("fps") or Convention().control_rate)
            yield from video.frames(clip.path, clip.begin, episode.end - episode.begin, rate)
        else:
            with self._named(camera):
                yield from map(pixels, self._folder.images(feature, episode))

    def _side(self, camera: str, episode: Episode) -> int:
        with self._named(camera):
            return len(square(self._first(camera, episode)))

    def _first(self, camera: str, episode: Episode) -> np.ndarray:
        """Return the first picture of an episode; a video is closed at once."""
        with contextlib.closing(self.decoded(camera, episode)) as pictures:
            return next(pictures)

    @contextlib.contextmanager
    def _named(self, camera: str) -> Iterator[None]:
        """Say of which feature a picture cannot be used."""
        try:
            yield
        except ValueError as error:
            feature = self._features[camera]
            raise DataError(
                f"{self._folder.path}: a picture of {feature} ({camera}) cannot be used: {error}"
            ) from error

    def _is_video(self, camera: str) -> bool:
        return self._folder.features[self._features[camera]].get("dtype") == "video"


def _convention(folder: ForeignFolder, numbers: _Numbers, pictures: _Pictures) -> Convention:
    """Return the convention that the dataset follows; raise DataError when nothing is to be seen in it."""
    default = Convention()
    if not pictures.cameras:
        if numbers.names in (JOINT_NAMES, STORED_JOINTS):
            raise DataError(
                f"{folder.path}: no picture is used and there are no poses in the state, so nothing can be learned "
                f"from it; say which is what, as in --map FEATURE=base_camera; there are: "
                f"{', '.join(folder.cameras) or 'none'}"
            )
        return default.model_copy(update={"cameras": (), "state": "joints_and_poses"})
    robot = str(folder.info.get("robot_type"))
    if robot not in ROBOTS or "hand_camera" in pictures.cameras:
        robot = default.robot
    return default.model_copy(
        update={"robot": robot, "cameras": pictures.cameras, "image_size": pictures.size(), "state": "joints"}
    )


def _meta(
    wish: Wish, folder: ForeignFolder, choice: _Choice, convention: Convention, goal_visible: bool
) -> DatasetMeta:
    """Return where the dataset comes from; episodes are numbered, because nobody knows their seeds."""
    attempts = tuple(
        Attempt(seed=number, success=not reason, steps=one.end - one.begin, seconds=0, reason=reason)
        for number, (one, reason) in enumerate(zip(choice.episodes, choice.reasons, strict=True))
    )
    return DatasetMeta(
        task=wish.task.name,
        convention=convention,
        renderer=RENDERER if convention.cameras else "none",
        goal_visible=goal_visible,
        source=f"LeRobot {folder.version} folder {wish.folder.resolve().name} {wish.identity}".strip(),
        seeds=tuple(number for number, _ in choice.kept),
        seeds_known=False,
        attempts=attempts,
        versions={"lerobot": LEROBOT},
    )


def _demos(choice: _Choice, numbers: _Numbers, pictures: _Pictures, convention: Convention) -> Iterator[Demo]:
    """Yield the demonstrations, one in memory at a time."""
    for done, (number, one) in enumerate(choice.kept, 1):
        rows = slice(one.begin, one.end)
        frames = {camera: pictures.encoded(camera, one, convention.image_size) for camera in convention.cameras}
        yield Demo(number, numbers.states[rows], numbers.actions[rows], frames)
        if done % _TOLD_EVERY == 0 or done == len(choice.kept):
            log.info("%d of %d episodes", done, len(choice.kept))


def main(arguments: list[str] | None = None) -> int:
    """Import a folder; return the exit code."""
    parser = argparse.ArgumentParser(description="Make a dataset of ours of a LeRobot folder of others.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--task", required=True, choices=tasks.TASKS)
    parser.add_argument("--out", required=True, type=Path, help="where to, empty or not there")
    parser.add_argument("--map", action="append", default=[], metavar="THEIRS=OURS")
    parser.add_argument("--size", type=int, help="pixels that images get")
    parser.add_argument("--rate", type=float, help="rows a second, where the folder has a wrong number")
    parser.add_argument("--control-mode", default="pd_joint_pos", choices=meaning.CONTROL_MODES)
    parser.add_argument("--instruction", help="only episodes of this one")
    parser.add_argument("--as-is", action="store_true", help="take what does not look like ours")
    parser.add_argument("--identity", default="", help="of the folder's content")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    wish = Wish(
        folder=given.folder,
        task=tasks.find(given.task),
        maps=tuple(given.map),
        size=given.size,
        rate=given.rate,
        mode=given.control_mode,
        instruction=given.instruction,
        as_is=given.as_is,
        identity=given.identity,
    )
    try:
        import_folder(wish, given.out)
    except JobError as error:
        sys.stdout.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
