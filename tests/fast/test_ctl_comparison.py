"""Runs side by side: paired by seed, equal unless both interval and test say otherwise, refused where nothing pairs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pi05.intervals import mcnemar, paired
from pi05.storage import FileStorage, RunPaths
from pi05ctl.cli import main as cli
from pi05ctl.errors import UsageError
from pi05ctl.runs import comparison
from pi05ctl.runs.comparison import Subject, compare
from pi05ctl.runs.records import Records
from pi05ctl.spec.render import Rendered, render
from pi05ctl.spec.runspec import RunSpec
from pi05ctl.spec.settings import Settings
from pi05ctl.stored.evaluations import Episode, Evaluation
from pi05ctl.views import beside
from tests.fast.test_ctl_page import Checker

SIMULATOR = "mani_skill 3.0.1, sapien 3.0.3"
SAME = {"limit": 150, "simulator": SIMULATOR, "renderer": "lavapipe 25.0.7"}


def evaluation(solved: str, first: int = 1_000_000, **settings: Any) -> Evaluation:
    """Return an evaluation with an episode a letter: s is solved."""
    episodes = [
        Episode(first + n, letter == "s", letter == "s", 40 + n if letter == "s" else None, 150)
        for n, letter in enumerate(solved)
    ]
    return Evaluation(tuple(episodes), "checkpoint", 2400, settings={**SAME, **settings})


def subject(run: str, solved: str, task: str = "pushcube", **settings: Any) -> Subject:
    told = {"convention.cameras": [], "convention.control_mode": "pd_joint_pos", **settings}
    return Subject(run, task, f"eval-{run}", evaluation(solved), told)


def test_the_same_seeds_are_paired():
    found = compare([subject("a", "ssss----ss" * 10), subject("b", "ss--ss--ss" * 10)])
    (pair,) = found.pairs
    assert (pair.run, pair.against, pair.seeds) == ("b", "a", 100)
    assert (pair.both, pair.only_run, pair.only_against, pair.neither) == (40, 20, 20, 20)
    assert pair.difference == paired(40, 20, 20, 20)
    assert pair.p == mcnemar(20, 20) == 1.0
    assert pair.verdict == "equal"


def test_a_gap_beyond_its_interval_is_called_one():
    found = compare([subject("a", "s" * 60 + "-" * 40), subject("b", "s" * 90 + "-" * 10)])
    assert found.pairs[0].verdict == "better"
    assert found.pairs[0].difference.low > 0.15
    turned = compare([subject("b", "s" * 90 + "-" * 10), subject("a", "s" * 60 + "-" * 40)])
    assert turned.pairs[0].verdict == "worse"


def test_a_gap_that_chance_makes_too_often_is_equal_though_its_interval_leaves_out_0():
    """Of fifty seeds only one run solved five: the interval leaves out 0, and a coin does it in 6 % of all cases."""
    (pair,) = compare([subject("a", "s" * 30 + "-" * 20), subject("b", "s" * 35 + "-" * 15)]).pairs
    assert pair.difference.low > 0
    assert pair.p == 0.0625
    assert pair.verdict == "equal"


def test_every_other_run_is_compared_with_the_first_and_all_hold_together():
    runs = [subject(name, "s" * number + "-" * (100 - number)) for name, number in (("a", 60), ("b", 70), ("c", 71))]
    found = compare(runs)
    assert [(pair.run, pair.against) for pair in found.pairs] == [("b", "a"), ("c", "a")]
    assert found.pairs[0].difference == paired(60, 10, 0, 30, comparisons=2)
    assert any("cover 95 % together" in remark for remark in found.remarks)


def test_time_to_success_is_compared_over_the_seeds_that_both_solved():
    slow = subject("b", "s" * 20)
    later = tuple(replace(one, first_success_step=45 + n) for n, one in enumerate(slow.evaluation.episodes))
    (pair,) = compare(
        [subject("a", "s" * 20), replace(slow, evaluation=Evaluation(later, settings={"limit": 150}))]
    ).pairs
    assert pair.steps == (5, 5, 5)


def other(**changes: Any) -> Subject:
    """Return a run that would be like any other but for the changes."""
    settings = changes.pop("settings", {})
    run = subject("b", changes.pop("solved", "s-" * 10), changes.pop("task", "pushcube"), **changes)
    return replace(run, evaluation=replace(run.evaluation, settings={**run.evaluation.settings, **settings}))


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (other(task="pullcube"), "are of different tasks, pushcube and pullcube"),
        (other(settings={"limit": 200}), "differ in limit, 150 and 200"),
        (other(settings={"simulator": "mani_skill 3.1"}), f"differ in simulator, {SIMULATOR} and mani_skill 3.1"),
        (other(**{"convention.control_mode": "pd_ee_pose"}), "convention.control_mode, pd_joint_pos and pd_ee_pose"),
        (
            replace(other(), evaluation=evaluation("s-" * 5, first=1_000_500)),
            "no seed in common: 1000000 to 1000019 and 1000500 to 1000509; .*--set eval.first_seed=1000000",
        ),
        (replace(other(), evaluation=replace(evaluation("s"), total=50)), "eval-b has 1 of 50 episodes; wait until"),
        (replace(other(), evaluated="eval-a"), "a and b are one evaluation, eval-a; name two"),
    ],
)
def test_what_cannot_be_paired_is_refused_with_both_values(run: Subject, message: str):
    with pytest.raises(UsageError, match=message):
        compare([subject("a", "s-" * 10), run])
    with pytest.raises(UsageError, match="two runs or more"):
        compare([run])


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (
            other(**{"convention.cameras": ["base_camera", "hand_camera"]}),
            "convention.cameras is none and base_camera, hand",
        ),
        (other(solved="s-" * 5), "have 10 seeds in common, of 20 and 10; only these are paired"),
        (other(settings={"simulator": ""}), "of b nobody wrote down the version of ManiSkill"),
        (other(settings={"renderer": "NVIDIA 570"}), "images of different renderers: lavapipe 25.0.7 and NVIDIA 570"),
        (
            replace(other(), evaluation=replace(evaluation("s-" * 10), policy="untrained")),
            "checkpoint 2400 and untrained",
        ),
        (
            replace(other(), evaluation=replace(evaluation("s-" * 10), until=0.3)),
            "b ended when its interval was narrow",
        ),
    ],
)
def test_what_pairs_and_is_of_another_kind_is_said(run: Subject, message: str):
    found = compare([subject("a", "s-" * 10), run])
    assert [message in remark for remark in found.remarks] == [True]


def test_only_settings_that_differ_are_told():
    one, two = subject("a", "s", **{"train.seed": 0, "train.steps": 5}), subject("b", "-", **{"train.seed": 1})
    assert comparison.differing([one, two]) == {"train.seed": (0, 1), "train.steps": (5, None)}
    assert comparison.differing([one, replace(one, run="c")]) == {}


SETTINGS = Settings("file:///unused", "python", "python")


class House:
    """A storage with runs that are done, and the commands that read it."""

    def __init__(self, storage: FileStorage) -> None:
        self.storage = storage

    def keep(self, kind: str, preset: str = "tiny", task: str = "pushcube", **overrides: Any) -> Rendered:
        """Write the record of a run that said it was finished."""
        spec = RunSpec.model_validate({"kind": kind, "task": task, "preset": preset, "overrides": overrides})
        run = render(spec, replace(SETTINGS, storage=self.storage.url))
        Records(self.storage).write(run, 100.0, None)
        finished = {"v": 1, "run": run.run, "kind": "finished", "time": 200.0}
        self.storage.write(RunPaths(run.run).status, json.dumps(finished).encode())
        return run

    def evaluate(self, solved: str, preset: str = "tiny", **overrides: Any) -> str:
        """Write a training, and an evaluation of it."""
        self.keep("demos", preset, **overrides)
        train = self.keep("train", preset, **overrides)
        log = [
            {"v": 1, "run": train.run, "kind": "progress", "time": 1.0, "step": n, "metrics": {"loss": 1 / n}}
            for n in (1, 9)
        ]
        text = "".join(f"PI05 {json.dumps(event)}\n" for event in log)
        self.storage.write(RunPaths(train.run).log, text.encode())
        run = self.keep("eval", preset, **{**overrides, "eval.episodes": len(solved)})
        episodes = [
            {
                "seed": 1_000_000 + n,
                "success_once": c == "s",
                "success_at_end": c == "s",
                "first_success_step": 50,
                "steps": 150,
            }
            for n, c in enumerate(solved)
        ]
        key = f"runs/{train.run}/checkpoints/{overrides.get('eval.step', 2400)}"
        told = {"policy": "checkpoint", "checkpoint": key, "limit": 150, "total": len(solved), "episodes": episodes}
        self.storage.write(f"{RunPaths(run.run).results}/0.json", json.dumps(told).encode())
        return run.run


@pytest.fixture
def house(tmp_path, monkeypatch) -> House:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PI05_STORAGE", raising=False)
    (tmp_path / "pi05.toml").write_text('storage = "data"\n')
    return House(FileStorage((tmp_path / "data").as_uri()))


def test_stored_runs_are_compared_by_name(house, capsys):
    one = house.evaluate("s" * 10 + "-" * 10)
    two = house.evaluate("s" * 19 + "-", **{"train.seed": 1, "train.steps": 1200})
    assert cli.run(["compare", one, two]) == 0
    said = capsys.readouterr()
    lines = [line.split() for line in said.out.splitlines()]
    pair = next(line for line in lines if "better" in line)
    assert pair[:8] == [two, one, "20", "10", "9", "0", "1", "+45"]
    assert ["train.seed", "0", "1"] in lines
    assert ["train.steps", "4000", "1200"] in lines
    assert not any(line[:1] == ["eval.environments"] for line in lines)
    assert "nobody wrote down the version of ManiSkill" in said.err


def test_a_comparison_is_data_too(house, capsys):
    one, two = house.evaluate("s" * 10 + "-" * 10), house.evaluate("s" * 19 + "-", **{"train.seed": 1})
    assert cli.run(["compare", one, two, "-o", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [run["evaluation"] for run in told["runs"]] == [one, two]
    assert told["runs"][0]["loss"] == [[1, 1.0], [9, pytest.approx(1 / 9)]]
    assert told["runs"][0]["steps_to_success"] == {"value": 50, "low": 50, "high": 50}
    assert told["pairs"][0]["difference"]["value"] == pytest.approx(0.45)
    assert told["settings"] == {"train.seed": [0, 1]}


def test_checkpoints_of_a_training_are_its_success_over_steps(house, capsys):
    early = house.evaluate("s" * 5 + "-" * 15, **{"eval.step": 400})
    late = house.evaluate("s" * 15 + "-" * 5, **{"eval.step": 2400})
    house.evaluate("s" * 15, **{"eval.step": 1200})  # on fewer seeds
    assert cli.run(["compare", early, late, "-o", "json"]) == 0
    course = json.loads(capsys.readouterr().out)["runs"][0]["success_over_steps"]
    assert [(rate["step"], rate["rate"]) for rate in course] == [(400, 0.25), (2400, 0.75)]


def test_a_training_stands_for_its_newest_evaluation_and_without_one_is_refused(house, capsys):
    one, two = house.evaluate("s-" * 10), house.evaluate("-s" * 10, **{"train.seed": 1})
    train = Records(house.storage).read(two).train_run
    assert train is not None
    assert cli.run(["compare", one, train, "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][1]["evaluation"] == two
    lonely = house.keep("train", **{"train.seed": 7}).run
    assert cli.run(["compare", one, lonely]) == 2
    assert (
        f"no evaluation to compare yet; make one: pi05ctl submit eval pushcube --of {lonely}" in capsys.readouterr().err
    )


def test_a_policy_that_sees_is_marked_beside_one_that_does_not(house, capsys):
    assert cli.run(["compare", house.evaluate("s-" * 10), house.evaluate("-s" * 10, preset="micro")]) == 0
    said = capsys.readouterr()
    assert "policies of other conventions: convention.cameras is none and base_camera, hand_camera" in said.err
    assert ["convention.state", "joints_and_poses", "joints"] in [line.split() for line in said.out.splitlines()]


def test_a_sentence_says_the_gap_with_its_interval():
    (pair,) = compare([subject("a", "s" * 60 + "-" * 40), subject("b", "s" * 90 + "-" * 10)]).pairs
    assert beside.sentence(pair).startswith("b is better than a, as far as these seeds tell: +30 points [+21, +39]")


def test_a_page_tells_several_runs_side_by_side(house, capsys):
    one, two = house.evaluate("s" * 10 + "-" * 10), house.evaluate("s" * 19 + "-", **{"train.seed": 1})
    assert cli.run(["report", one, two]) == 0
    url = capsys.readouterr().out.strip()
    page = Path(url.removeprefix("file://")).read_text()
    checker = Checker()
    checker.feed(page)
    assert (checker.open, checker.links) == ([], [])
    for text in (
        f"{two} is better than {one}, as far as these seeds tell: +45 points",
        "RDT-1B",
        "train.seed01",
        "McNemar",
        f"Of {one}, {two} nobody wrote down",
        "19 of 20 unseen episodes solved by checkpoint 2400",
    ):
        assert text in checker.words
    assert page.count('<polyline class="line line-1"') == 2, "a key and a curve"
    assert cli.run(["compare", one, two, "--page"]) == 0
    assert url in capsys.readouterr().out


def test_a_page_about_several_tasks_compares_none_of_them(house, capsys):
    one = house.evaluate("s-" * 5)
    lonely = house.keep("train", **{"train.seed": 7}).run
    house.evaluate("s" * 8, **{"eval.first_seed": 1_000_500})
    assert cli.run(["report", one, lonely]) == 0
    page = Path(capsys.readouterr().out.strip().removeprefix("file://")).read_text()
    assert "not evaluated yet" in page
    assert "Over the same seeds" not in page


def test_results_pool_what_storage_says_differs_in_the_training_seed(house, capsys):
    runs = [
        house.evaluate(solved, **{"train.seed": n}) for n, solved in enumerate(("s" * 18 + "--", "s" * 16 + "----"))
    ]
    house.evaluate("s-" * 10, **{"train.steps": 600})
    house.evaluate("s" * 14 + "-" * 6, **{"train.seed": 2, "eval.step": 2400})
    house.evaluate("s-" * 10, **{"train.seed": 3, "eval.step": 400})
    assert cli.run(["results", "-o", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["seeds"] for row in told if set(runs) <= set(row["runs"])] == [{"0": 0.9, "1": 0.8, "2": 0.7}]
    assert cli.run(["results", "--each"]) == 0
    assert capsys.readouterr().out.count("eval-pushcube") == 5
    assert cli.run(["results"]) == 0
    assert "3: 70 to 90 %" in capsys.readouterr().out
