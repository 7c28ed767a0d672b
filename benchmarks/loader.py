"""Training batches with images from our loader, beside LeRobotDataset in a torch DataLoader with as many workers.

Both give the same samples of the same dataset: two images of 224 pixels, the state and the next 16 actions (compared
here, number by number); ours are also normalised and have their prompts as tokens. Ours reads frames that were decoded
before, once a dataset; how long that takes is said beside it, and what share of the machine's own speed is reached:
copying as many bytes in memory, and, with nothing cached, reading as many from the disk.

    scripts/bench loader [DATASET_FOLDER]      a LeRobot dataset with meta/pi05.json; without one, 600 rows are made
"""

import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from datasets import disable_progress_bars
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from pi05 import tasks
from pi05.config import ACTION_NAMES, Convention
from pi05.data import dataset as ours
from pi05.data.batches import Loader, Samples, Source, data_stats
from pi05.data.dataset import META, Dataset, DatasetMeta
from pi05.data.frames import Frames, open_frames
from pi05.data.tokenizer import TINY, Tokenizer
from pi05.data.transforms import Recipe
from pi05ctl.spec.runspec import RunSpec, resolve

CONVENTION = Convention()
HORIZON, BATCH, WORKERS, ROUNDS, SECONDS = 16, 32, len(os.sched_getaffinity(0)), 3, 8.0
EPISODES, STEPS = 10, 60


def make_dataset(folder: Path) -> None:
    """Write a dataset with lerobot whose images take as many bytes as rendered ones (about 70 kB)."""
    size = CONVENTION.image_size
    image = {"dtype": "image", "shape": (size, size, 3), "names": ["height", "width", "channels"]}
    names = [*(f"joint_{i}" for i in range(1, 8)), "finger"]
    written = LeRobotDataset.create(
        "pi05/pushcube",
        fps=CONVENTION.control_rate,
        root=folder,
        use_videos=False,
        features={
            "observation.state": {"dtype": "float32", "shape": (8,), "names": names},
            "action": {"dtype": "float32", "shape": (8,), "names": list(ACTION_NAMES)},
            **{f"observation.images.{camera}": image for camera in CONVENTION.cameras},
        },
    )
    random = np.random.default_rng(0)
    smooth = np.stack([*np.meshgrid(np.arange(size), np.arange(size)), np.full((size, size), 90)], axis=-1)
    for _ in range(EPISODES):
        for step in range(STEPS):
            noisy = {camera: smooth + step + random.integers(-4, 5, smooth.shape) for camera in CONVENTION.cameras}
            written.add_frame(
                {
                    "observation.state": random.normal(size=8).astype(np.float32),
                    "action": random.normal(size=8).astype(np.float32),
                    "task": tasks.find("pushcube").sentence,
                    **{
                        f"observation.images.{name}": pixels.clip(0, 255).astype(np.uint8)
                        for name, pixels in noisy.items()
                    },
                }
            )
        written.save_episode()
    written.finalize()
    meta = DatasetMeta(
        task="pushcube", convention=CONVENTION, renderer="drawn", seeds=tuple(range(EPISODES)), attempts=(), versions={}
    )
    (folder / META).write_text(meta.model_dump_json())


def theirs(folder: Path) -> LeRobotDataset:
    """Return LeRobot's dataset, asked for 16 actions."""
    times = [step / CONVENTION.control_rate for step in range(HORIZON)]
    return LeRobotDataset("pi05/pushcube", root=folder, delta_timestamps={"action": times})


def torch_batches(data: LeRobotDataset) -> Iterator[Any]:
    """Yield shuffled batches, endlessly."""
    loader = torch.utils.data.DataLoader(data, BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True)
    return itertools.chain.from_iterable(itertools.repeat(loader))


def our_loader(data: Dataset, frames: Frames) -> Loader:
    """Return our loader with the transforms of the full preset and the small tokenizer."""
    model = resolve(RunSpec(kind="train", task="pushcube", preset="full")).model
    recipe = Recipe(
        model,
        CONVENTION,
        data_stats([data], CONVENTION, HORIZON),
        Tokenizer.load(TINY),
        tasks.find("pushcube").sentence,
    )
    return Loader([Source(data, recipe.sentence, frames)], recipe, BATCH, seed=0)


def our_batches(loader: Loader) -> Iterator[Samples]:
    """Yield batches made by as many threads, endlessly."""
    with ThreadPoolExecutor(WORKERS) as pool:
        ahead = [pool.submit(loader.batch, step) for step in range(WORKERS)]
        for step in itertools.count(WORKERS):
            yield ahead.pop(0).result()
            ahead.append(pool.submit(loader.batch, step))


def check_same(data: LeRobotDataset, loader: Loader) -> None:
    """Compare the samples of a batch, number by number."""
    _, rows = loader.order(0)
    samples = loader.batch(0)
    numbers = loader.sources[0].dataset
    for place, row in enumerate(rows[:8]):
        one = data[int(row)]
        for camera in CONVENTION.cameras:
            pixels = (one[f"observation.images.{camera}"].numpy() * 255).round().astype(np.uint8).transpose(1, 2, 0)
            np.testing.assert_array_equal(samples.observation.images[camera][place], pixels)
        np.testing.assert_array_equal(samples.real[place, :, 0], ~one["action_is_pad"].numpy())
        state = numbers.states[row : row + 1]
        actions = loader.recipe.decode_actions(state, samples.actions[place : place + 1])[0]
        np.testing.assert_allclose(actions, one["action"].numpy(), atol=1e-4)


def rate(batches: Iterable[Any], seconds: float) -> float:
    """Return samples a second."""
    count, begin = 0, time.perf_counter()
    for _ in batches:
        count += BATCH
        if time.perf_counter() - begin > seconds:
            return count / (time.perf_counter() - begin)
    raise AssertionError("batches are endless")


def forget(paths: Iterable[Path]) -> None:
    """Drop files from the system's cache, so that they are read from the disk."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def disk_speed(paths: list[Path]) -> float:
    """Return bytes a second of reading whole files from the disk."""
    forget(paths)
    begin, total, buffer = time.perf_counter(), 0, bytearray(1 << 24)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                total += count
    return total / (time.perf_counter() - begin)


def memory_speed() -> float:
    """Return bytes a second of copying in memory, one thread, more than fits a processor's cache."""
    source = np.ones(1 << 28, np.uint8)
    target = np.empty_like(source)
    np.copyto(target, source)
    begin = time.perf_counter()
    np.copyto(target, source)
    return len(source) / (time.perf_counter() - begin)


def cold_rate(data: Dataset, opened: Callable[[], Frames], paths: list[Path]) -> float:
    """Return samples a second of the first pass over the frames, read from the disk."""
    forget(paths)
    with opened() as frames:
        loader = our_loader(data, frames)
        steps = len(data.states) // BATCH
        begin = time.perf_counter()
        for step in range(steps):
            loader.batch(step)
        return steps * BATCH / (time.perf_counter() - begin)


def measure(folder: Path, cache: Path) -> None:
    """Measure both in turn and print their ratio."""
    size = CONVENTION.image_size

    def opened() -> Frames:
        return open_frames(folder, CONVENTION.cameras, (size, size), cache)

    data = ours.load(folder)
    begin = time.perf_counter()
    frames = opened()
    decoding = time.perf_counter() - begin
    paths = sorted(cache.rglob("*.u8"))
    images = 2 * len(data.states)
    print(f"{len(data.states)} rows; {images} frames decoded in {decoding:.1f} s, {images / decoding:.0f} a second")

    loader, torch_data = our_loader(data, frames), theirs(folder)
    check_same(torch_data, loader)
    mine, other = our_batches(loader), torch_batches(torch_data)
    for batches in (other, mine):
        next(batches)  # starts the workers
    pairs = [(rate(other, SECONDS), rate(mine, SECONDS / 2)) for _ in range(ROUNDS)]
    slow, fast = (statistics.median(column) for column in zip(*pairs, strict=True))
    alone = rate(loader.batches(0), SECONDS / 2)
    sample = len(CONVENTION.cameras) * size * size * 3
    memory = statistics.median(memory_speed() for _ in range(ROUNDS))
    frames.close()
    disk = statistics.median(disk_speed(paths) for _ in range(ROUNDS))
    cold = statistics.median(cold_rate(data, opened, paths) for _ in range(ROUNDS))
    print(f"LeRobotDataset, {WORKERS} workers: {slow:.1f} samples a second")
    print(f"ours, {WORKERS} threads: {fast:.0f}; one thread: {alone:.0f}, {alone * sample / 1e9:.2f} GB/s of pixels")
    print(f"copying in memory, one thread: {memory / 1e9:.2f} GB/s")
    print(
        f"nothing cached: {cold:.0f} samples a second, {cold * sample / 1e9:.2f} GB/s; the disk reads {disk / 1e9:.2f}"
    )
    print(
        json.dumps(
            {
                "name": "loader",
                "ratio": round(statistics.median(one / other for other, one in pairs), 1),
                "samples_per_second": round(fast),
                "of_memory": round(alone * sample / memory, 3),
                "of_disk": round(cold * sample / disk, 3),
            }
        )
    )


def main() -> None:
    """Measure on a given dataset, or on one that is made for it."""
    disable_progress_bars()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(scratch) / "dataset"
        if not folder.exists():
            make_dataset(folder)
        measure(folder, Path(scratch) / "frames")


if __name__ == "__main__":
    main()
