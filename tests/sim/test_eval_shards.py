"""An evaluation in shards finds, episode for episode, what one process finds, whatever happens meanwhile."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from pi05 import simulator, tasks
from pi05.config import FLOAT32, Convention, EvalConfig, EvalJob
from pi05.data import dataset as datasets
from pi05.data.batches import data_stats
from pi05.data.tokenizer import TINY, Tokenizer
from pi05.data.transforms import Recipe
from pi05.errors import ConfigError, DataError
from pi05.jobs.evaluate import evaluate
from pi05.jobs.runtime import Arguments, Context, Stopped
from pi05.model import tree
from pi05.policy import Policy
from pi05.results import Result, merge
from pi05.storage import STATE, FileStorage, RunPaths
from pi05.training import checkpoint
from pi05.training.step import new_state
from pi05ctl.stored import evaluations
from tests.conftest import options
from tests.sim.conftest import CONVENTION, KEY

TRAINING = RunPaths("train-pushcube-000000")
EPISODES = 5


def save_checkpoint(storage: FileStorage, step: int, preset: str = "tiny", convention: Convention = CONVENTION) -> None:
    """Write a checkpoint of random weights: a policy that moves differently in every episode."""
    sizes, task = options(preset), tasks.find("pushcube")
    data = datasets.with_states(datasets.load(storage.open(KEY)), simulator.state_names(task, convention))
    recipe = Recipe(
        model=sizes.model,
        convention=convention,
        stats=data_stats([data], convention, sizes.model.action_horizon),
        tokenizer=Tokenizer.load(TINY),
        sentence=task.sentence,
    )
    meta = checkpoint.CheckpointMeta(
        run=TRAINING.run,
        task=task.name,
        sentence=recipe.sentence,
        step=step,
        dataset=KEY,
        convention=convention,
        renderer=data.meta.renderer,
        demo_seeds=data.meta.seeds,
        model=sizes.model,
        train=sizes.train,
    )
    state = new_state(tree.initial(sizes.model, seed=step), sizes.model, sizes.train, FLOAT32)
    with storage.stage(TRAINING.checkpoint(step)) as folder:
        checkpoint.write(folder, checkpoint.of(state, recipe, meta))


def eval_job(storage: FileStorage, run: str, **settings: object) -> EvalJob:
    small = {"episodes": EPISODES, "environments": 2, "max_steps": 24, "sampling_steps": 3, "videos": 0}
    return EvalJob(
        run=run,
        task="pushcube",
        storage=storage.url,
        convention=CONVENTION,
        dataset=KEY,
        train_run=TRAINING.run,
        eval=EvalConfig.model_validate({**small, **settings}),
    )


def run_shard(job: EvalJob, shard: int | None = None, shards: int | None = None) -> None:
    arguments = Arguments(Path("job.json"), shard=shard, shards=shards)
    evaluate(job, Context(FileStorage(job.storage), RunPaths(job.run, shard), arguments))


def read_shards(storage: FileStorage, run: str) -> list[Result]:
    folder = RunPaths(run).results
    return [Result.model_validate_json(storage.read(f"{folder}/{name}")) for name in storage.children(folder)]


@pytest.fixture(scope="module")
def trained(storage: FileStorage) -> FileStorage:
    """A checkpoint without what only training needs: of 53 GB of the full preset an evaluation fetches 13."""
    save_checkpoint(storage, 1)
    shutil.rmtree(storage.path(TRAINING.checkpoint(1)) / STATE)
    return storage


@pytest.fixture(scope="module")
def whole(trained: FileStorage) -> Result:
    """What one process finds."""
    run_shard(eval_job(trained, "eval-pushcube-aaaaaa", step=1))
    return read_shards(trained, "eval-pushcube-aaaaaa")[0]


def test_shards_add_up_to_what_one_process_finds(trained: FileStorage, whole: Result) -> None:
    job = eval_job(trained, "eval-pushcube-bbbbbb", step=1)
    for shard in (2, 0):
        run_shard(job, shard, 3)
    part = evaluations.read(trained, job.run)
    assert (part.progress, part.metrics) == (f"3 of {EPISODES}", {})
    run_shard(job, 1, 3)
    assert merge(read_shards(trained, job.run)) == whole
    assert len({episode.tcp for episode in whole.episodes}) == EPISODES, "else equality would mean little"
    assert evaluations.read(trained, job.run) == evaluations.read(trained, "eval-pushcube-aaaaaa")
    assert not any(trained.children(RunPaths(job.run, shard).work) for shard in range(3))


def test_a_finished_shard_is_not_run_again(
    trained: FileStorage, whole: Result, capsys: pytest.CaptureFixture[str]
) -> None:
    job = eval_job(trained, "eval-pushcube-cccccc", step=1)
    (trained.root / "job.json").write_text(job.model_dump_json())
    command = [sys.executable, "-m", "pi05.jobs.evaluate", str(trained.root / "job.json"), "--shard", "1"]
    shown = subprocess.run([*command, "--shards", "2"], check=True, capture_output=True, text=True, env=os.environ)
    events = [json.loads(line.removeprefix("PI05 ")) for line in shown.stdout.splitlines()]
    assert [(event["kind"], event["shard"], event["shards"]) for event in events] == [
        (kind, 1, 2) for kind in ("started", "progress", "progress", "result", "finished")
    ]
    assert read_shards(trained, job.run)[0].episodes == whole.episodes[1::2]
    capsys.readouterr()
    run_shard(job, 1, 2)
    assert [json.loads(line[5:])["kind"] for line in capsys.readouterr().out.splitlines()] == ["result"]


def test_a_killed_shard_runs_only_what_is_missing(
    trained: FileStorage, whole: Result, capsys: pytest.CaptureFixture[str]
) -> None:
    job = eval_job(trained, "eval-pushcube-dddddd", step=1)
    kept = f"{RunPaths(job.run, 0).work}/{TRAINING.checkpoint(1)}"
    for episode in whole.episodes[:4:2]:
        trained.write(f"{kept}/{episode.seed}.json", episode.model_dump_json().encode())
        trained.write(f"{kept}/{episode.seed}.actions", bytes(4 * 8 * episode.steps))
    run_shard(job, 0, 2)
    events = [json.loads(line[5:]) for line in capsys.readouterr().out.splitlines()]
    assert [(e["step"], e["total"]) for e in events if e["kind"] == "progress"] == [(3, 3)]
    assert read_shards(trained, job.run)[0].episodes == whole.episodes[::2]


class StoppedWhileFilming(Context):
    """A process that is asked to stop when its first film is there."""

    @property
    def stopping(self) -> bool:
        return bool(self.storage.children(f"{self.paths.results}/videos"))


def test_a_shard_that_was_stopped_while_it_filmed_films_the_rest_and_ends(
    trained: FileStorage, whole: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = eval_job(trained, "eval-pushcube-999999", step=1, videos=3, workers=1)
    paths = RunPaths(job.run)
    with pytest.raises(Stopped):
        evaluate(job, StoppedWhileFilming(trained, paths))
    assert (len(trained.children(f"{paths.results}/videos")), trained.children(paths.results)) == (1, ["videos"])
    monkeypatch.setattr(Policy, "load", lambda *_: pytest.fail("no episode is missing, so nobody has to act"))
    run_shard(job)
    assert len(trained.children(f"{paths.results}/videos")) == 3
    assert Result.model_validate_json(trained.read(f"{paths.results}/0.json")).episodes == whole.episodes
    assert trained.children(paths.work) == []


def test_a_device_that_is_too_small_is_told_with_the_settings_that_need_less(
    trained: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Policy, "act", lambda *_: jnp.zeros((2**46,), jnp.float32).block_until_ready())
    with pytest.raises(ConfigError, match=r"device does not suffice for a policy .* or eval.batch_size=5, or"):
        run_shard(eval_job(trained, "eval-pushcube-555555", step=1))


UNTIL = {"step": 1, "episodes": 12, "until": 0.5}
"""A policy of random weights solves nothing, so 7 of 12 episodes are enough."""


def test_an_evaluation_that_ends_early_finds_the_same_in_shards_and_after_a_kill(trained: FileStorage) -> None:
    alone, apart = (eval_job(trained, f"eval-pushcube-77777{n}", **UNTIL) for n in range(2))
    run_shard(alone)
    found = evaluations.read(trained, alone.run)
    assert ([one.seed - 1_000_000 for one in found.episodes], found.ended) == (list(range(7)), True)
    for shard in (1, 0):
        run_shard(apart, shard, 2)
    assert evaluations.read(trained, apart.run) == found
    files = {one.episodes[0].seed: len(one.episodes) for one in read_shards(trained, apart.run)}
    assert files == {1_000_000: 4, 1_000_001: 6}, "the first knew nothing of the other, which then ended early"
    trained.delete(f"{RunPaths(apart.run).results}/0.json")
    run_shard(apart, 0, 2)
    assert evaluations.read(trained, apart.run) == found


def test_another_number_of_shards_runs_its_own_seeds(trained: FileStorage, whole: Result) -> None:
    job = eval_job(trained, "eval-pushcube-eeeeee", step=1)
    run_shard(job, 0, 4)
    run_shard(job, 0, 2)
    run_shard(job, 1, 2)
    assert merge(read_shards(trained, job.run)) == whole


def test_a_training_that_goes_on_does_not_split_the_shards(trained: FileStorage, whole: Result) -> None:
    job = eval_job(trained, "eval-pushcube-ffffff")
    run_shard(job, 1, 3)
    save_checkpoint(trained, 2)
    run_shard(job, 0, 3)
    assert [shard.checkpoint for shard in read_shards(trained, job.run)] == [TRAINING.checkpoint(1)] * 2
    trained.delete(TRAINING.checkpoint(1))
    try:
        with pytest.raises(DataError, match=r"of checkpoint 1, which the training .* has deleted since; .*--again"):
            run_shard(job, 2, 3)
    finally:
        save_checkpoint(trained, 1)
    assert whole.checkpoint == TRAINING.checkpoint(1)


def test_more_shards_than_episodes_leave_some_without_work(trained: FileStorage) -> None:
    job = eval_job(trained, "eval-pushcube-000001", policy="oracle", episodes=1)
    run_shard(job, 0, 2)
    run_shard(job, 1, 2)
    assert evaluations.read(trained, job.run).complete
    assert trained.children(RunPaths(job.run).results) == ["0.json"]
