"""Episodes of an evaluation, counted; and what `results` shows of them."""

import json
from dataclasses import replace

import pytest

from pi05 import tasks
from pi05.errors import DataError
from pi05.intervals import pooled, wilson
from pi05.storage import FileStorage
from pi05ctl.runs.pooling import Finished, pools
from pi05ctl.runs.status import RunStatus
from pi05ctl.stored import evaluations
from pi05ctl.stored.evaluations import Evaluation
from pi05ctl.views import tables

RUN = "eval-pushcube-111111"


def episode(seed: int, once: bool, at_end: bool | None = None, **fields) -> dict:
    at_end = once if at_end is None else at_end
    return {"seed": seed, "success_once": once, "success_at_end": at_end, "steps": 150, **fields}


@pytest.fixture
def storage(tmp_path):
    return FileStorage(tmp_path.as_uri())


def write(storage: FileStorage, shard: int, content: object) -> None:
    storage.write(f"runs/{RUN}/results/{shard}.json", json.dumps(content).encode())


def test_shards_add_up(storage):
    write(storage, 0, {"policy": "checkpoint", "checkpoint": "runs/t/checkpoints/2400", "episodes": [episode(5, True)]})
    same = {"policy": "checkpoint", "checkpoint": "runs/t/checkpoints/2400"}
    write(storage, 1, {**same, "episodes": [episode(4, True, False), episode(6, False)]})
    found = evaluations.read(storage, RUN)
    assert [one.seed for one in found.episodes] == [4, 5, 6]
    assert found.subject == "checkpoint 2400"
    assert found.metrics["success_once"] == pytest.approx(2 / 3)
    assert found.metrics["success_at_end"] == pytest.approx(1 / 3)
    assert found.metrics["episodes"] == 3


def test_the_oracle_has_no_checkpoint(storage):
    write(storage, 0, {"policy": "oracle", "checkpoint": None, "episodes": [episode(5, True)]})
    assert evaluations.read(storage, RUN).subject == "oracle"


def test_without_results_there_are_no_numbers(storage):
    assert evaluations.read(storage, RUN) == Evaluation(())
    assert Evaluation(()).metrics == {}


def test_paths_are_seen_from_above(storage):
    drawn = episode(5, True, tcp=[[0, 1, 2], [3, 4, 5]], object=[], goal=[7, 8, 9])
    write(storage, 0, {"episodes": [drawn]})
    assert evaluations.read(storage, RUN).episodes[0].tracks == {"tcp": ((0, 1), (3, 4)), "goal": ((7, 8),)}


def test_a_missing_shard_leaves_episodes_and_no_rates(storage):
    write(storage, 0, {"policy": "oracle", "total": 3, "episodes": [episode(4, True), episode(6, True)]})
    part = evaluations.read(storage, RUN)
    assert (part.complete, part.metrics, part.progress) == (False, {}, "2 of 3")
    write(storage, 1, {"policy": "oracle", "total": 3, "episodes": [episode(5, False)]})
    whole = evaluations.read(storage, RUN)
    assert (whole.complete, whole.metrics["success_once"], whole.progress) == (True, pytest.approx(2 / 3), "3")


def test_an_episode_that_two_shards_ran_counts_once(storage):
    write(storage, 0, {"policy": "oracle", "total": 3, "episodes": [episode(4, True), episode(5, True)]})
    write(storage, 1, {"policy": "oracle", "total": 3, "episodes": [episode(5, True)]})
    assert evaluations.read(storage, RUN).progress == "2 of 3"


@pytest.mark.parametrize("other", [{"checkpoint": "runs/t/checkpoints/2400"}, {"total": 4}, {"policy": "untrained"}])
def test_shards_of_different_evaluations_do_not_add_up(storage, other):
    first = {
        "policy": "checkpoint",
        "checkpoint": "runs/t/checkpoints/2000",
        "total": 2,
        "episodes": [episode(4, True)],
    }
    write(storage, 0, first)
    write(storage, 1, {**first, "episodes": [episode(5, True)], **other})
    with pytest.raises(DataError, match=rf"results/1\.json has {next(iter(other))} .*, the other shards have"):
        evaluations.read(storage, RUN)


@pytest.mark.parametrize("content", ["{", "[]", '{"episodes": [{"seed": 1}]}', '{"episodes": 5}', "null"])
def test_a_damaged_result_is_named(storage, content):
    storage.write(f"runs/{RUN}/results/0.json", content.encode())
    with pytest.raises(DataError, match=r"results/0\.json is not the result of an evaluation"):
        evaluations.read(storage, RUN)


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),  # from R: binom::binom.confint(x, n, methods = "wilson")
    [(45, 50, 0.7864, 0.9565), (0, 50, 0.0, 0.0714), (50, 50, 0.9286, 1.0), (28, 50, 0.4231, 0.6884)],
)
def test_the_interval_is_wilsons(successes, total, low, high):
    assert wilson(successes, total) == pytest.approx((low, high), abs=1e-4)


def status(task: str, run: str, created: float) -> RunStatus:
    return RunStatus(run=run, task=task, kind="eval", state="Done", created=created, train_run=f"train-{task}-1")


def alone(*found: tuple[RunStatus, Evaluation]) -> list[tables.Result]:
    """Return the results of evaluations of which none has another training seed of its recipe."""
    return tables.results(pools(Finished(status, evaluation) for status, evaluation in found))


def test_the_table_is_by_task_and_the_newest_first(storage):
    write(storage, 0, {"policy": "oracle", "episodes": [episode(n, n > 4) for n in range(50)]})
    found = evaluations.read(storage, RUN)
    rows = alone(
        (status("pullcube", "c", 1.0), found),
        (status("pickcube", "a", 1.0), found),
        (status("pullcube", "b", 2.0), found),
        (status("pullcube", "empty", 3.0), Evaluation(())),
        (status("pushcube", "part", 1.0), replace(found, total=60)),
    )
    assert [row.run for row in rows] == ["a", "part", "b", "c"]
    push, pick = ("", "", "RDT 100, DP 88, Pi0 70", "98 %"), ("", "", "RDT 77, DP 40, Pi0 2.5, by hand 0", "90 %")
    assert tables.result_row(rows[1]) == ("pushcube", "part", "", "oracle", "", "50 of 60", "", "", "", *push)
    assert tables.result_row(rows[0]) == ("pickcube", "a", "", "oracle", "", "50", "90 %", "90 %", "79 to 96 %", *pick)
    assert json.loads(tables.results_json(rows))[0]["others"]["RDT-1B"] == 77
    assert json.loads(tables.results_json(rows))[0]["metrics"]["success_once"] == 0.9


def trained(run: str, seed: int | None, solved: int, created: float = 1.0, **settings: object) -> Finished:
    """Return an evaluation on 100 seeds of a training of one recipe."""
    episodes = tuple(
        evaluations.Episode(n, n < solved, n < solved, 40 + seed if seed and n < solved else None, 150)
        for n in range(100)
    )
    told = {"train.steps": 2400, "eval.until": None, **settings} | ({} if seed is None else {"train.seed": seed})
    return Finished(status("pickcube", run, created), Evaluation(episodes, "checkpoint", 2400), told, "tiny")


def test_training_seeds_are_one_line_with_their_mean_and_range():
    found = tables.results(pools([trained("a", 0, 95, 1.0), trained("b", 1, 90, 2.0), trained("c", 2, 85, 3.0)]))
    (row,) = map(tables.result_row, found)
    assert row[1:9] == (
        "c and 2 more",
        "tiny",
        "checkpoint 2400",
        "3: 85 to 95 %",
        "3 x 100",
        "90 %",
        "90 %",
        "76 to 100 %",
    )
    assert row[9] == "42 [41, 42]", "mean and range of the medians; the first says none"
    told = json.loads(tables.results_json(found))[0]
    assert (told["runs"], told["seeds"]) == (["c", "b", "a"], {"0": 0.95, "1": 0.9, "2": 0.85})
    assert told["interval"] == pytest.approx([pooled([0.95, 0.9, 0.85], 100).low, 1.0], abs=0.01)
    assert told["metrics"] == pytest.approx({"success_once": 0.9, "success_at_end": 0.9, "episodes": 100})


def test_only_what_differs_in_the_training_seed_alone_is_pooled():
    same, seed = trained("a", 0, 90), trained("b", 1, 90)
    for other in (
        trained("c", 1, 90, **{"train.steps": 1200}),
        trained("c", None, 90),
        replace(seed, evaluation=replace(seed.evaluation, step=1200)),
        replace(seed, evaluation=replace(seed.evaluation, policy="untrained")),
        replace(seed, status=replace(seed.status, task="pullcube")),
        replace(seed, evaluation=replace(seed.evaluation, total=200)),
    ):
        assert [len(pool.members) for pool in pools([same, other])] == [1, 1]
    assert [len(pool.members) for pool in pools([same, seed])] == [2]


def test_a_training_that_was_repeated_counts_once():
    (pool,) = pools([trained("a", 0, 90, 1.0), trained("again", 0, 90, 2.0), trained("b", 1, 80, 1.0)])
    assert [one.status.run for one in pool.members] == ["again", "b"]


def test_every_task_is_in_the_table(storage):
    write(storage, 0, {"policy": "oracle", "episodes": [episode(1, True)]})
    rows = tables.result_rows(alone((status("pullcube", "c", 1.0), evaluations.read(storage, RUN))))
    assert [row[0] for row in rows] == list(tasks.TASKS)
    assert {len(row) for row in rows} == {len(tables.RESULTS_HEADER)}
    assert [row[1] for row in rows] == ["none yet", "none yet", "none yet", "c", "none yet", "none yet"]


def test_failures_are_counted_in_the_order_of_a_success(storage):
    kinds = ["dropped", "never grasped", "dropped", None, "lost in space"]
    told = [episode(n, kind is None, failure=kind) for n, kind in enumerate(kinds)]
    write(
        storage, 0, {"policy": "untrained", "renderer": "none", "checkpoint": "runs/t/checkpoints/5", "episodes": told}
    )
    found = evaluations.read(storage, RUN)
    assert list(found.failures.items()) == [("never grasped", 1), ("dropped", 2), ("lost in space", 1)]
    row = alone((status("pullcube", "c", 1.0), found))[0]
    assert tables.result_row(row)[10] == "1 never grasped, 2 dropped, 1 lost in space"
    assert row.policy == "untrained 5, no camera"


def test_videos_are_found_by_their_seed(storage):
    storage.write(f"runs/{RUN}/results/videos/7.mp4", b"seven")
    assert evaluations.videos(storage, RUN, [3, 7]) == {7: b"seven"}
    assert evaluations.read(storage, RUN) == Evaluation(()), "a folder of videos is no result"
