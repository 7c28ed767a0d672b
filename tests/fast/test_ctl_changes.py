"""What a training may go on with: which settings, from where on, what becomes of the learning rate, and its name."""

import json

import pytest

from pi05.config import TrainJob
from pi05.resuming import RESULT_FREE, STEERING
from pi05.storage import FileStorage, RunPaths, Storage, connect
from pi05ctl.errors import UsageError
from pi05ctl.runs.records import Records
from pi05ctl.service import Service
from pi05ctl.spec.changes import Change, asked, changed, remarks
from pi05ctl.spec.render import Rendered, render
from pi05ctl.spec.runspec import Options, RunSpec, parse_assignment
from pi05ctl.spec.settings import Settings

NOW = 1.7e9
SETTINGS = Settings("file:///nowhere", "python", "python", jobs_at_once=1)


def training(**overrides: object) -> Rendered:
    spec = RunSpec.model_validate({"kind": "train", "task": "pushcube", "preset": "full", "overrides": overrides})
    return render(spec, SETTINGS)


@pytest.fixture
def job() -> TrainJob:
    job = training().job
    assert isinstance(job, TrainJob)
    return job


def ask(job: TrainJob, *assignments: str, step: int = 12_000) -> Change:
    return asked(job, dict(map(parse_assignment, assignments)), step, NOW)


def test_a_change_keeps_both_values_and_where_it_begins(job: TrainJob) -> None:
    change = ask(job, "train.seed=1", "train.optimizer.peak_lr=2e-5", "compute.microbatches=2")
    assert change.words() == (
        "since step 12000 (2023-11-14): compute.microbatches=2 instead of 1, train.seed=1 instead of 0, "
        "train.optimizer.peak_lr=2e-05 instead of 5e-05"
    )
    after = changed(job, [change])
    assert (after.run, after.train.seed, after.compute.microbatches) == (job.run, 1, 2)
    assert after.train.optimizer.end_lr == job.train.optimizer.end_lr


def test_more_steps_leave_the_rate_up_to_there_as_it_was_planned(job: TrainJob) -> None:
    change = ask(job, "train.steps=40000", step=30_000)
    after = changed(job, [change])
    assert (after.train.steps, after.train.optimizer.decay_steps) == (40_000, 30_000)
    assert change.values == {"train.steps": 40_000}
    assert (
        "stays at train.optimizer.end_lr=5e-06 from step 30000 on; --set train.optimizer.decay_steps=40000"
        in (remarks(after, change)[1])
    )
    longer = ask(job, "train.steps=40000", "train.optimizer.decay_steps=40000")
    assert changed(job, [longer]).train.optimizer.decay_steps == 40_000
    assert len(remarks(changed(job, [longer]), longer)) == 1


@pytest.mark.parametrize(
    ("assignments", "step", "words"),
    [
        (
            ["train.batch_size=32", "model.action_horizon=8", "train.seed=1"],
            1000,
            "model.action_horizon, train.batch_s",
        ),
        (["train.held_out=5"], 1000, "train.held_out cannot change when a training goes on"),
        (["train.seed=0"], 1000, "has these values already"),
        (["train.seed=1"], 0, "no checkpoint to go on from, so train.seed would make another training of it"),
        (["train.seed=1"], 30_000, "has a checkpoint of step 30000 and would end at train.steps=30000; add --set"),
        (["train.steps=500"], 1000, "has a checkpoint of step 1000 and would end at train.steps=500"),
        (["train.steps=-1"], 1000, "--set: train.steps"),
        (["train.optimizer.warmup_steps=40000"], 1000, "warmup_steps 40000 must be less than"),
    ],
)
def test_what_would_not_go_on_is_refused(job: TrainJob, assignments: list[str], step: int, words: str) -> None:
    with pytest.raises(UsageError, match=words.replace(".", r"\.")):
        ask(job, *assignments, step=step)


def test_what_changes_no_number_may_change_before_there_is_a_checkpoint(job: TrainJob) -> None:
    assert ask(job, "compute.recompute=layers", step=0).values == {"compute.recompute": "layers"}


def test_every_setting_that_may_change_is_one(job: TrainJob) -> None:
    data = {"train": job.train.model_dump(), "compute": job.compute.model_dump()}
    for path in RESULT_FREE | STEERING:
        parse_assignment(f"{path}=1")
        section, *names = path.split(".")
        value = data[section]
        for name in names:
            value = value[name]


# ---- What is stored -------------------------------------------------------------------------------------------------


@pytest.fixture
def storage(tmp_path) -> Storage:
    return connect(tmp_path.as_uri())


@pytest.fixture
def stored(storage: Storage) -> Rendered:
    """A training whose last checkpoint is there."""
    run = training()
    Records(storage).write(run, NOW, None)
    with storage.stage(RunPaths(run.run).checkpoint(12_000)) as folder:
        (folder / "params").write_text("params")
    return run


@pytest.fixture
def service(storage: Storage) -> Service:
    return Service(Settings(storage.url, "python", "python", jobs_at_once=1), "local", lambda: NOW)


def test_a_changed_run_keeps_name_and_history(stored: Rendered, service: Service, storage: Storage) -> None:
    records, run = Records(storage), stored.run
    first = service.going_on(run, ["train.seed=1"])
    assert (first.run, first.digest, first.spec) == (run, stored.digest, stored.spec)
    records.write(first, NOW + 1, None)
    records.write(service.going_on(run, ["train.seed=2", "train.steps=40000"]), NOW + 2, None)
    record = records.read(run)
    assert (record.created, record.digest, record.command) == (NOW, stored.digest, stored.spec.command())
    assert [change.values for change in record.changes] == [
        {"train.seed": 1},
        {"train.steps": 40_000, "train.seed": 2},
    ]
    assert record.changes[1].before == {"train.steps": 30_000, "train.seed": 1}
    job = json.loads(storage.read(RunPaths(run).job))
    assert (job["train"]["seed"], job["train"]["steps"], job["run"]) == (2, 40_000, run)


def test_submitting_it_again_or_resuming_it_keeps_its_changes(
    stored: Rendered, service: Service, storage: Storage
) -> None:
    records = Records(storage)
    records.write(service.going_on(stored.run, ["train.steps=40000"]), NOW + 1, None)
    for again in (records.current(training()), service.going_on(stored.run)):
        assert isinstance(again.job, TrainJob)
        assert again.job.train.steps == 40_000
        records.refuse_other(again)
        records.write(again, NOW + 2, "pipeline-pushcube-000000")
        assert len(records.read(stored.run).changes) == 1


def test_only_a_training_goes_on_otherwise(service: Service, storage: Storage) -> None:
    pipeline = render(RunSpec(kind="pipeline", task="pushcube", preset="full"), SETTINGS)
    Records(storage).write(pipeline, NOW, None)
    with pytest.raises(UsageError, match=r"its training is train-pushcube-[0-9a-f]{6}, resume that one first"):
        service.going_on(pipeline.run, ["train.seed=1"])


def test_a_training_that_runs_is_left_alone(stored: Rendered, service: Service, storage: FileStorage) -> None:
    with (
        storage.lease(RunPaths(stored.run).lease),
        pytest.raises(UsageError, match=f"pi05ctl cancel {stored.run} lets"),
    ):
        service.going_on(stored.run, ["train.seed=1"])


def test_options_have_no_setting_that_is_both(job: TrainJob) -> None:
    del job
    assert not RESULT_FREE & STEERING
    assert Options.model_fields.keys() >= {path.partition(".")[0] for path in RESULT_FREE | STEERING}
