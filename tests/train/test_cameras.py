"""The whole train job on datasets with images: decode once, resume exactly, mix tasks, and refuse what has changed."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from pi05.config import Convention, Share, TrainJob
from pi05.data import frames
from pi05.data.batches import Loader, Samples
from pi05.errors import ConfigError, DataError
from pi05.events import Event, parse
from pi05.jobs.runtime import Context, Stopped
from pi05.jobs.train import train
from pi05.policy import Policy
from pi05.storage import FileStorage, RunPaths
from pi05.training import checkpoint, loop
from pi05.training.checkpoint import CheckpointMeta
from pi05.training.step import make_step
from tests.recorded import publish
from tests.train.conftest import MODEL, TRAIN

CONVENTION = Convention(image_size=40)
SEEING = MODEL.model_copy(update={"image_size": 28})
SHORT = TRAIN.model_copy(update={"steps": 4, "save_every": 2, "keep_every": 2})
PUSH, PULL = "datasets/pushcube/0", "datasets/pullcube/0"


@pytest.fixture
def storage(tmp_path: Path) -> FileStorage:
    storage = FileStorage(tmp_path.as_uri())
    publish(storage, PUSH, "pushcube", CONVENTION)
    return storage


def job(storage: FileStorage, others: tuple[Share, ...] = (), name: str = "0", **fields: object) -> TrainJob:
    mix = tuple(f"{share.task}:{share.weight}" for share in others)
    return TrainJob(
        run=f"train-pushcube-{name}",
        task="pushcube",
        storage=storage.url,
        convention=CONVENTION,
        dataset=PUSH,
        others=others,
        model=SEEING,
        train=SHORT.model_copy(update={"mix": mix, **fields}),
    )


class Around(Context):
    """A process that is asked to stop after some step."""

    def __init__(self, storage: FileStorage, run: str, stop_after: int | None = None) -> None:
        super().__init__(storage, RunPaths(run))
        self._stop_after, self._step = stop_after, 0
        emit = self.events.emit

        def count(kind: str, **fields: Any) -> Event:
            if fields.get("unit") == "steps":
                self._step = fields["step"]
            return emit(kind, **fields)

        self.events.emit = count

    @property
    def stopping(self) -> bool:
        return self._stop_after is not None and self._step + 1 >= self._stop_after


def run(storage: FileStorage, what: TrainJob, stop_after: int | None = None) -> None:
    train(what, Around(storage, what.run, stop_after))


def meta(storage: FileStorage, what: TrainJob, step: int) -> CheckpointMeta:
    return checkpoint.read_meta(storage.path(RunPaths(what.run).checkpoint(step)))


def test_a_policy_that_sees_is_trained_resumed_and_asked(
    storage: FileStorage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = job(storage), job(storage, name="1")
    run(storage, whole)
    said = [event for line in capsys.readouterr().out.splitlines() if (event := parse(line))]
    decoded = [(event.step, event.total) for event in said if event.unit == "frames"]
    assert decoded[-1] == (120, 120)
    monkeypatch.setattr(frames, "decode", lambda *_: pytest.fail("decoded again"))
    with pytest.raises(Stopped):
        run(storage, parts, stop_after=2)
    run(storage, parts)
    one, other = (
        Policy.load(storage.open(RunPaths(name.run).checkpoint(4)), rows=2, sampling_steps=2, seed=0)
        for name in (whole, parts)
    )
    states = np.zeros((2, 8), np.float32)
    black = {camera: np.zeros((2, 40, 40, 3), np.uint8) for camera in CONVENTION.cameras}
    white = {camera: np.full((2, 224, 224, 3), 255, np.uint8) for camera in CONVENTION.cameras}
    np.testing.assert_array_equal(one.act([1, 2], 0, states, black), other.act([1, 2], 0, states, black))
    assert np.abs(one.act([1, 2], 0, states, black) - one.act([1, 2], 0, states, white)).max() > 1e-4
    with pytest.raises(DataError, match="images of hand_camera are missing"):
        one.act([1, 2], 0, states, {"base_camera": black["base_camera"]})


def test_a_dataset_that_changes_while_training_is_refused_before_a_checkpoint_of_it(storage: FileStorage) -> None:
    what = job(storage)
    with pytest.raises(Stopped):
        run(storage, what, stop_after=2)
    storage.delete(PUSH)
    publish(storage, PUSH, "pushcube", CONVENTION, first_seed=50)
    with pytest.raises(DataError, match=rf"dataset {PUSH} changed since checkpoint 2 was written: its manifest was"):
        run(storage, what)
    fresh = Around(storage, "train-pushcube-9")
    emit = fresh.events.emit

    def swap(kind: str, **fields: Any) -> Event:
        if fields.get("unit") == "steps" and fields["step"] == 1:
            storage.delete(PUSH)
            publish(storage, PUSH, "pushcube", CONVENTION)
        return emit(kind, **fields)

    fresh.events.emit = swap
    with pytest.raises(DataError, match=rf"dataset {PUSH} changed since this training began: its manifest was"):
        train(job(storage, name="9"), fresh)
    assert checkpoint.steps(storage, "train-pushcube-9") == []


def test_two_tasks_are_learned_together_and_each_is_asked_in_its_own_words(storage: FileStorage) -> None:
    publish(storage, PULL, "pullcube", CONVENTION, first_seed=20)
    what = job(storage, (Share(task="pullcube", dataset=PULL, weight=0.5),), save_every=4)
    run(storage, what)
    said = meta(storage, what, 4)
    assert said.tasks == ("pushcube", "pullcube")
    assert [(source.dataset, source.weight) for source in said.sources] == [(PUSH, 1), (PULL, 0.5)]
    assert [source.seeds for source in said.sources] == [(0, 1, 2), (20, 21, 22)]
    folder = storage.open(RunPaths(what.run).checkpoint(4))
    assert checkpoint.read_recipe(folder, said, "pullcube").sentence == "Pull a cube onto a target."
    with pytest.raises(
        DataError, match="was trained on pushcube, pullcube, not on pickcube; evaluate it on pushcube or"
    ):
        Policy.load(folder, rows=1, sampling_steps=1, seed=0, task="pickcube")


def test_a_run_of_two_tasks_whose_prompts_differ_in_length_compiles_one_step(
    storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = "datasets/stackcube/0"
    publish(storage, stack, "stackcube", CONVENTION, first_seed=20)
    what = job(storage, (Share(task="stackcube", dataset=stack, weight=0.1),), steps=6, save_every=6)
    steps: list[Any] = []
    prompts: set[int] = set()

    def compiled(*arguments: Any) -> Any:
        steps.append(make_step(*arguments))
        return steps[-1]

    def noted(loader: Loader, step: int) -> Samples:
        samples = batch(loader, step)
        prompts.update(samples.observation.token_mask.sum(axis=1).tolist())
        return samples

    batch = Loader.batch
    monkeypatch.setattr(Loader, "batch", noted)
    monkeypatch.setattr(loop, "make_step", compiled)
    run(storage, what)
    assert len({-(-length // 8) for length in prompts}) > 1, "else the batches would have one shape by themselves"
    assert [step._cache_size() for step in steps] == [1]


def test_a_device_that_is_too_small_is_told_with_the_settings_that_need_less(
    storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "start", lambda *_: jnp.zeros((2**46,), jnp.float32).block_until_ready())
    with pytest.raises(ConfigError, match=r"8 devices does not suffice .* Use compute.recompute=cheap, or"):
        run(storage, job(storage))


def test_datasets_of_two_renderers_are_not_mixed(storage: FileStorage) -> None:
    publish(storage, PULL, "pullcube", CONVENTION, renderer="lavapipe 25.0.7")
    with pytest.raises(DataError, match=r"pushcube are by none and of pullcube are by lavapipe 25.0.7; one renderer"):
        run(storage, job(storage, (Share(task="pullcube", dataset=PULL),)))


def test_a_dataset_of_another_task_is_refused(storage: FileStorage) -> None:
    publish(storage, PULL, "pushcube", CONVENTION)
    with pytest.raises(DataError, match="is of task pushcube, pullcube was to be learned from it"):
        run(storage, job(storage, (Share(task="pullcube", dataset=PULL),)))


def test_images_of_another_size_than_the_job_wants_are_refused(storage: FileStorage) -> None:
    what = job(storage)
    other = what.model_copy(update={"convention": CONVENTION.model_copy(update={"image_size": 28})})
    with pytest.raises(DataError, match="image_size is 40, the job wants 28"):
        run(storage, other)


def test_a_batch_that_does_not_divide_is_refused_before_anything_is_decoded(storage: FileStorage) -> None:
    with pytest.raises(ConfigError, match="batch_size 9 is not divisible by 8 devices"):
        run(storage, job(storage, batch_size=9))
    assert not storage.path("cache").exists()
