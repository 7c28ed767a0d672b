"""Episodes of an evaluation, counted; and what `results` shows of them."""

import json

import pytest

from pi05.errors import DataError
from pi05.results import wilson
from pi05.storage import Storage
from pi05ctl import report, results
from pi05ctl.results import Evaluation
from pi05ctl.status import RunStatus

RUN = "eval-pushcube-111111"


def episode(seed: int, once: bool, at_end: bool | None = None, **fields) -> dict:
    at_end = once if at_end is None else at_end
    return {"seed": seed, "success_once": once, "success_at_end": at_end, "steps": 150, **fields}


@pytest.fixture
def storage(tmp_path):
    return Storage(tmp_path.as_uri())


def write(storage: Storage, shard: int, content: object) -> None:
    storage.write(f"runs/{RUN}/results/{shard}.json", json.dumps(content).encode())


def test_shards_add_up(storage):
    write(storage, 0, {"policy": "checkpoint", "checkpoint": "runs/t/checkpoints/2400", "episodes": [episode(5, True)]})
    write(storage, 1, {"policy": "checkpoint", "episodes": [episode(4, True, False), episode(6, False)]})
    found = results.read(storage, RUN)
    assert [one.seed for one in found.episodes] == [4, 5, 6]
    assert found.subject == "checkpoint 2400"
    assert found.metrics["success_once"] == pytest.approx(2 / 3)
    assert found.metrics["success_at_end"] == pytest.approx(1 / 3)
    assert found.metrics["episodes"] == 3


def test_the_oracle_has_no_checkpoint(storage):
    write(storage, 0, {"policy": "oracle", "checkpoint": None, "episodes": [episode(5, True)]})
    assert results.read(storage, RUN).subject == "oracle"


def test_without_results_there_are_no_numbers(storage):
    assert results.read(storage, RUN) == Evaluation(())
    assert Evaluation(()).metrics == {}


def test_paths_are_seen_from_above(storage):
    drawn = episode(5, True, tcp=[[0, 1, 2], [3, 4, 5]], object=[], goal=[7, 8, 9])
    write(storage, 0, {"episodes": [drawn]})
    assert results.read(storage, RUN).episodes[0].tracks == {"tcp": ((0, 1), (3, 4)), "goal": ((7, 8),)}


@pytest.mark.parametrize("content", ["{", "[]", '{"episodes": [{"seed": 1}]}', '{"episodes": 5}', "null"])
def test_a_damaged_result_is_named(storage, content):
    storage.write(f"runs/{RUN}/results/0.json", content.encode())
    with pytest.raises(DataError, match=r"results/0\.json is not the result of an evaluation"):
        results.read(storage, RUN)


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),  # from R: binom::binom.confint(x, n, methods = "wilson")
    [(45, 50, 0.7864, 0.9565), (0, 50, 0.0, 0.0714), (50, 50, 0.9286, 1.0), (28, 50, 0.4231, 0.6884)],
)
def test_the_interval_is_wilsons(successes, total, low, high):
    assert wilson(successes, total) == pytest.approx((low, high), abs=1e-4)


def status(task: str, run: str, created: float) -> RunStatus:
    return RunStatus(run=run, task=task, kind="eval", state="Done", created=created, train_run=f"train-{task}-1")


def test_the_table_is_by_task_and_the_newest_first(storage):
    write(storage, 0, {"policy": "oracle", "episodes": [episode(n, n > 4) for n in range(50)]})
    found = results.read(storage, RUN)
    rows = report.results(
        [
            (status("pullcube", "c", 1.0), found),
            (status("pickcube", "a", 1.0), found),
            (status("pullcube", "b", 2.0), found),
            (status("pullcube", "empty", 3.0), Evaluation(())),
        ]
    )
    assert [row.run for row in rows] == ["a", "b", "c"]
    assert report.result_row(rows[0]) == ("pickcube", "a", "oracle", "50", "90 %", "90 %", "79 to 96 %")
    assert json.loads(report.results_json(rows))[0]["metrics"]["success_once"] == 0.9
