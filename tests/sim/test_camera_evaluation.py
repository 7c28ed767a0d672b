"""The evaluation of a policy that sees: real scenes, rendered when it looks, in processes of their own."""

import io
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from pi05.config import EvalConfig, EvalJob
from pi05.evaluation import videos
from pi05.jobs.demos import make_demos
from pi05.jobs.evaluate import evaluate
from pi05.jobs.runtime import Context
from pi05.results import Result
from pi05.storage import FileStorage, RunPaths
from tests.sim.conftest import KEY, SEEING, context, demos_job
from tests.sim.test_eval_shards import TRAINING, save_checkpoint


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> FileStorage:
    """A storage with two demonstrations with frames, and the random weights of a policy that sees."""
    job = demos_job(tmp_path_factory.mktemp("seen"), count=2, block=1, workers=2)
    job = job.model_copy(update={"convention": SEEING})
    make_demos(job, context(job))
    storage = FileStorage(job.storage)
    save_checkpoint(storage, 1, "micro", SEEING)
    return storage


def eval_job(storage: FileStorage, run: str, **settings: object) -> EvalJob:
    small = {"episodes": 3, "max_steps": 18, "sampling_steps": 2, "batch_size": 2, "videos": 0}
    return EvalJob(
        run=run,
        task="pushcube",
        storage=storage.url,
        convention=SEEING,
        dataset=KEY,
        train_run=TRAINING.run,
        eval=EvalConfig.model_validate({**small, **settings}),
    )


def run(job: EvalJob) -> Result:
    storage = FileStorage(job.storage)
    evaluate(job, Context(storage, RunPaths(job.run)))
    return Result.model_validate_json(storage.read(f"runs/{job.run}/results/0.json"))


def test_results_do_not_depend_on_environments_and_processes(trained: FileStorage) -> None:
    one = run(eval_job(trained, "eval-pushcube-00000a", environments=1, workers=1))
    many = run(eval_job(trained, "eval-pushcube-00000b", environments=3, workers=2))
    assert one == many
    assert len({episode.tcp for episode in one.episodes}) == 3, "else equality would mean little"
    assert one.renderer.startswith("lavapipe")


def test_the_oracle_solves_what_was_filmed(trained: FileStorage) -> None:
    job = eval_job(trained, "eval-pushcube-00000c", policy="oracle", episodes=2, max_steps=90, videos=1)
    result = run(job)
    assert [episode.success_at_end for episode in result.episodes] == [True, True]
    film = f"runs/{job.run}/results/videos"
    assert trained.children(film) == ["0.mp4"]
    with av.open(io.BytesIO(trained.read(f"{film}/0.mp4")), mode="r") as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
        rate = file.streams.video[0].average_rate
    solved = result.episodes[0].first_success_step
    assert solved is not None
    shown = min(solved + 20, 90)
    assert (len(frames), rate) == (1 + -(-shown // videos.FRAME_STEPS), 10)
    assert frames[0].shape == (230, 448, 3)
    bar = frames[-1][-3, 224].astype(int)
    assert bar[1] > bar[0] + 50, "green: solved"
    assert np.abs(frames[0].astype(int) - frames[-1]).mean() > 3, "the arm moves"


def test_without_a_driver_a_policy_that_sees_is_refused_and_told_what_to_install(
    trained: FileStorage, tmp_path: Path
) -> None:
    job = eval_job(trained, "eval-pushcube-00000d")
    (tmp_path / "job.json").write_text(job.model_dump_json())
    ended = subprocess.run(
        [sys.executable, "-m", "pi05.jobs.evaluate", str(tmp_path / "job.json")],
        capture_output=True,
        text=True,
        env={**os.environ, "VK_ICD_FILENAMES": os.devnull},
        check=False,
    )
    assert ended.returncode == 64, ended.stderr
    assert "mesa-vulkan-drivers" in ended.stdout
