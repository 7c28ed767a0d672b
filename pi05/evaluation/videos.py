"""Episodes that can be watched: turns seeds and recorded actions into mp4 files, after the evaluation, failures first.

An episode is stepped again with the actions it had, which gives the same bits, and rendered meanwhile. So an
evaluation renders no frame that nobody looks at, and a policy without cameras can be watched, too. A bar along the
lower edge shows how far the episode is, and turns green where the task is solved.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pi05.config import Convention
from pi05.errors import JobError
from pi05.evaluation.course import Trial
from pi05.simulator import Simulator, check
from pi05.tasks import find

CAMERAS = ("base_camera", "hand_camera")
"""What a video shows side by side."""
SIZE = 224
"""Height and width of each, in pixels."""
FRAME_STEPS = 2
"""Control steps a frame."""
_AFTER_SUCCESS = 20
"""Control steps that are shown after the task was solved first."""
_BAR = 6
_GREEN, _GREY, _DARK = (46, 160, 67), (190, 190, 190), (40, 40, 40)


def chosen(trials: Sequence[Trial], count: int) -> list[Trial]:
    """Return the episodes to film: failures first, in the order of the seeds."""
    return sorted(trials, key=lambda trial: trial.episode.success_once)[:count]


def impossible(convention: Convention) -> str | None:
    """Return why nothing can be filmed on this machine; None when it can."""
    try:
        check(filming(convention))
    except JobError as error:
        return str(error)
    return None


def filming(convention: Convention) -> Convention:
    """Return the convention under which an episode is filmed: the same physics, and cameras."""
    return convention.model_copy(update={"cameras": CAMERAS, "image_size": SIZE})


def film(task: str, convention: Convention, trial: Trial) -> bytes | str:
    """Return an episode as an mp4 file, or in words why there is none.

    Args:
        task: Name of the task.
        convention: That of the evaluation.
        trial: The episode and its actions.
    """
    simulator = Simulator(find(task), filming(convention))
    try:
        frames, solved = _replay(simulator, trial)
    finally:
        simulator.close()
    if solved != trial.episode.first_success_step:
        return f"episode {trial.episode.seed} differs when it is rendered: solved at step {solved}"
    return encode(frames, convention.control_rate / FRAME_STEPS)


def encode(frames: Sequence[np.ndarray], rate: float) -> bytes:
    """Return frames, uint8 (H, W, 3) with even sides, as an mp4 file (H.264) that a browser plays.

    Args:
        frames: At least one.
        rate: Frames a second.
    """
    import av  # FFmpeg comes in its wheel

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "episode.mp4"
        with av.open(str(path), "w", options={"movflags": "faststart"}) as file:
            stream = file.add_stream("libx264", rate=round(rate))
            stream.height, stream.width = frames[0].shape[:2]
            stream.pix_fmt = "yuv420p"  # what every browser decodes
            stream.options = {"crf": "20", "preset": "slow", "threads": "1"}
            for frame in frames:
                file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            file.mux(stream.encode())
        return path.read_bytes()


def _replay(simulator: Simulator, trial: Trial) -> tuple[list[np.ndarray], int | None]:
    """Step an episode again; return its frames and the step at which it was solved first."""
    first = trial.episode.first_success_step
    end = len(trial.actions) if first is None else min(first + _AFTER_SUCCESS, len(trial.actions))
    info = simulator.reset(trial.episode.seed)
    solved = 0 if info.success else None
    frames = [_frame(simulator, 0.0, info.success)]
    for step, action in enumerate(trial.actions[:end], start=1):
        info = simulator.step(action)
        if info.success and solved is None:
            solved = step
        if step % FRAME_STEPS == 0 or step == end:
            frames.append(_frame(simulator, step / end, info.success))
    return frames, solved


def _frame(simulator: Simulator, share: float, solved: bool) -> np.ndarray:
    """Return what the cameras see, side by side, with the bar below."""
    seen = simulator.images()
    frame = np.concatenate([seen[name] for name in CAMERAS], axis=1)
    bar = np.full((_BAR, frame.shape[1], 3), _DARK, np.uint8)
    bar[:, : round(share * frame.shape[1])] = _GREEN if solved else _GREY
    return np.concatenate([frame, bar])
