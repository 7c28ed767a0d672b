"""Frames of a video file, by time: turns the part of a file that an episode is into pictures, one a row.

Decoding is PyAV's, which LeRobot brings along. Knows nothing of datasets.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pi05.errors import ConfigError, DataError


def frames(path: Path, begin: float, count: int, rate: float) -> Iterator[np.ndarray]:
    """Yield the frames of `count` rows, uint8 (height, width, 3) RGB, in the order of time.

    Args:
        path: Of the file.
        begin: Second of the first row.
        count: Rows.
        rate: Rows a second; a frame belongs to the row whose time it is nearest to.

    Raises:
        DataError: The file is damaged, or has no frame at the time of a row.
        ConfigError: This environment has no decoder.
    """
    try:
        import av
        from av.error import FFmpegError
    except ImportError as error:
        raise ConfigError(
            f"{path} is a video, and the jobs' interpreter has no decoder (PyAV); use the environment that "
            "scripts/_setup sim makes, or images instead of videos"
        ) from error
    row = 0
    try:
        with av.open(str(path)) as file:
            for time, frame in _decoded(file, begin):
                if time > begin + (row + 0.5) / rate:
                    break  # the frame of this row is missing
                if time >= begin + (row - 0.5) / rate:
                    yield frame.to_ndarray(format="rgb24")
                    row += 1
                if row == count:
                    return
    except (OSError, FFmpegError, IndexError) as error:
        raise DataError(f"{path} is missing or damaged ({error}); fetch the dataset again") from error
    raise DataError(
        f"{path} has no frame at {begin + row / rate:.3f} s, that of row {row} of {count} from {begin:.3f} s on, at "
        f"{rate:g} a second"
    )


def _decoded(file: Any, begin: float) -> Iterator[tuple[float, Any]]:
    """Yield (second, frame) from some moment at or before `begin` on."""
    stream = file.streams.video[0]
    # With threads, a decoder may wait for ever when it is closed where libav's log is Python's.
    stream.thread_type = "NONE"
    stream.codec_context.thread_count = 1
    start = float((stream.start_time or 0) * stream.time_base)
    file.seek(int((begin + start) / stream.time_base), stream=stream, backward=True)
    for frame in file.decode(stream):
        if frame.pts is not None:
            yield float(frame.pts * stream.time_base) - start, frame
