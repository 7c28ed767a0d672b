"""A dataset of others is imported, and the trainer learns from it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pi05 import tasks
from pi05.config import TrainJob
from pi05.data import dataset as datasets
from pi05.data.importing import Wish, import_folder
from pi05.data.verify import problems
from pi05.events import parse
from pi05.jobs.runtime import Context
from pi05.jobs.train import train
from pi05.storage import FileStorage, RunPaths
from pi05.training import checkpoint
from tests.foreign import Foreign
from tests.train.conftest import MODEL, TRAIN

KEY = "datasets/stackcube/import-3f2a917c0b1d"
SEEN = Foreign.usual((12, 9, 15), cameras={"image": (40, 40), "wrist_image": (48, 48)})


@pytest.mark.parametrize(
    "write",
    [
        SEEN.write_v30,
        SEEN.write_v21,
        SEEN.but(videos=("image", "wrist_image"), cameras={"image": (40, 40), "wrist_image": (40, 40)}).write_v30,
    ],
    ids=["v3.0", "v2.1", "videos"],
)
def test_twenty_steps_are_trained_on_what_was_imported(
    write: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = FileStorage((tmp_path / "store").as_uri())
    with storage.stage(KEY) as out:
        meta = import_folder(Wish(write(tmp_path / "theirs"), tasks.find("stackcube")), out)
    assert problems(storage.open(KEY)) == []
    job = TrainJob(
        run="train-stackcube-0",
        task="stackcube",
        storage=storage.url,
        convention=meta.convention,
        dataset=KEY,
        model=MODEL.model_copy(update={"image_size": 28}),
        train=TRAIN,
    )
    train(job, Context(storage, RunPaths(job.run)))
    said = [event for line in capsys.readouterr().out.splitlines() if (event := parse(line))]
    losses = [event.metrics["loss"] for event in said if event.unit == "steps" and event.metrics]
    assert len(losses) == 20
    assert np.isfinite(losses).all()
    told = checkpoint.read_meta(storage.open(RunPaths(job.run).checkpoint(20)))
    assert (told.dataset, told.demo_seeds) == (KEY, (0, 1, 2))
    assert len(datasets.load(storage.open(KEY)).actions) == 36
