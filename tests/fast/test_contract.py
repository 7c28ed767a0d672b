"""job.json and event lines: what is accepted, what is refused and with which words."""

import io
import json
from pathlib import Path

import pytest

from pi05 import tasks
from pi05.config import AnyJob, Convention, DemosJob, EvalJob, TrainJob, load_job
from pi05.errors import ConfigError
from pi05.events import LIMIT, Event, EventWriter, parse
from tests.conftest import options

TINY = options("tiny")
COMMON = {"run": "x-pushcube-0", "task": "pushcube", "storage": "file:///s", "convention": TINY.convention.model_dump()}
TRAIN = {**COMMON, "kind": "train", "dataset": "d", "model": TINY.model.model_dump(), "train": TINY.train.model_dump()}
EVAL = {**COMMON, "kind": "eval", "dataset": "d", "train_run": "t", "eval": TINY.eval.model_dump()}
DEMOS = {**COMMON, "kind": "demos", "dataset": "d", "demos": {"count": 3}, "planner_python": "python"}


def job(tmp_path: Path, content: dict) -> AnyJob:
    path = tmp_path / "job.json"
    path.write_text(json.dumps(content))
    return load_job(path)


@pytest.mark.parametrize(("content", "kind"), [(TRAIN, TrainJob), (EVAL, EvalJob), (DEMOS, DemosJob)])
def test_a_job_is_what_its_kind_says(tmp_path: Path, content: dict, kind: type) -> None:
    loaded = job(tmp_path, content)
    assert isinstance(loaded, kind)
    assert loaded.run == "x-pushcube-0"


def changed(content: dict, path: str, value: object) -> dict:
    copy = json.loads(json.dumps(content))
    *parents, last = path.split(".")
    place = copy
    for parent in parents:
        place = place[parent]
    place[last] = value
    return copy


@pytest.mark.parametrize(
    ("content", "path", "value", "words"),
    [
        (TRAIN, "task", "pushcub", "unknown task 'pushcub'; did you mean 'pushcube'?"),
        (TRAIN, "train.steps", -1, "train.train.steps: Input should be greater than 0 (given -1)"),
        (TRAIN, "train.stepz", 1, "train.train.stepz: Extra inputs are not permitted"),
        (TRAIN, "train.optimizer.warmup_steps", 10**6, "must be less than the"),
        (TRAIN, "train.held_out", 2.5, "2.5 is neither a share below 1 nor a number of episodes; use 2"),
        (TRAIN, "train.profile", [5, 4], "profile [5, 4] must be [first, last] with at most 50 of the steps 1 to"),
        (TRAIN, "train.profile", [1, 51], "with at most 50 of the steps"),
        (TRAIN, "train.profile", [4000, 4001], "of the steps 1 to 4000"),
        (TRAIN, "model.action_horizon", 78, "longer than the longest pushcube demonstration (77 steps)"),
        (TRAIN, "model.vlm.depth", 7, "vlm.depth 7 and expert.depth"),
        (TRAIN, "model.image_size", 225, "image_size 225 is not divisible by vit.patch_size 14"),
        (EVAL, "eval.first_seed", 17, "lower ones belong to demonstrations"),
        (EVAL, "eval.policy", "oracel", "Input should be 'checkpoint', 'oracle' or 'untrained'"),
        (DEMOS, "kind", "demo", "kind"),
    ],
)
def test_an_impossible_job_is_refused(tmp_path: Path, content: dict, path: str, value: object, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        job(tmp_path, changed(content, path, value))
    assert words in str(error.value)


def test_the_order_of_cameras_says_nothing_and_each_is_named_once() -> None:
    turned = Convention(cameras=("hand_camera", "base_camera"))
    assert turned == Convention(cameras=("base_camera", "hand_camera"))
    assert turned.cameras == ("base_camera", "hand_camera")
    with pytest.raises(ValueError, match="named twice in hand_camera, hand_camera; name each once"):
        Convention(cameras=("hand_camera", "hand_camera"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the job file .*nowhere: No such file"):
        load_job(tmp_path / "nowhere")


def test_demonstrations_and_evaluations_never_share_a_seed() -> None:
    assert set(tasks.DEMO_SEEDS[:: 10**5]).isdisjoint(tasks.EVAL_SEEDS)
    assert tasks.DEMO_SEEDS.stop <= tasks.EVAL_SEEDS.start


def test_limits_leave_room_for_the_longest_demonstration() -> None:
    for task in tasks.TASKS.values():
        assert task.eval_limit > 1.7 * task.demo_steps, task.name


def test_a_line_comes_back_as_the_event_it_was() -> None:
    stream = io.StringIO()
    kept: list[Event] = []
    event = EventWriter("r", stream, lambda: 5.0, kept.append).emit("progress", step=3, total=9, metrics={"loss": 0.5})
    assert stream.getvalue().startswith('PI05 {"v":1,"run":"r","kind":"progress","time":5.0')
    assert parse(stream.getvalue().strip()) == event == kept[0]


def test_unknown_kinds_and_fields_are_kept() -> None:
    event = parse('PI05 {"v":2,"run":"r","kind":"later","time":1,"mood":"fine"}')
    assert event is not None
    assert event.kind == "later"
    assert '"mood":"fine"' in event.line()


@pytest.mark.parametrize("line", ["Step 5: loss=1", "PI05 {", 'PI05 {"kind":"x"}', "PI05", ""])
def test_other_lines_are_not_events(line: str) -> None:
    assert parse(line) is None


@pytest.mark.parametrize("letter", ["x", "é", "\n"])
def test_a_long_message_is_shortened_to_the_limit(letter: str) -> None:
    line = Event(run="r", kind="failed", time=0, message=letter * 9000).line()
    assert LIMIT - 8 < len(line.encode()) + 1 <= LIMIT or letter == "\n"
    assert len(line.encode()) < LIMIT
    event = parse(line)
    assert event is not None
    assert event.message is not None
    assert event.message.endswith(" ...")


def test_an_event_that_cannot_fit_is_an_error() -> None:
    with pytest.raises(ValueError, match="without a message to shorten"):
        Event(run="r", kind="progress", time=0, metrics={f"m{i}": 0.0 for i in range(1000)}).line()


def test_the_last_event_repeats_what_was_said_last() -> None:
    writer = EventWriter("r", io.StringIO(), lambda: 5.0)
    writer.emit("progress", step=50, total=100, unit="steps", metrics={"loss": 0.5, "grad_norm": 1.0})
    writer.emit("checkpoint", step=50, total=100)
    writer.emit("progress", step=60, total=100, unit="steps", metrics={"loss": 0.4})
    last = writer.emit("failed", message="full", exit_code=75)
    assert (last.step, last.total, last.unit) == (60, 100, "steps")
    assert last.metrics == {"loss": 0.4, "grad_norm": 1.0}
    assert last.model_extra == {"checkpoint": 50}
