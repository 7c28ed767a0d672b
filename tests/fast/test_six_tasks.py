"""What was kept of the six tasks' policies: README's table is made of it, and it is what it says."""

import json

import pytest

from benchmarks import six_tasks
from pi05 import tasks
from pi05ctl.spec.runspec import RunSpec, resolve

FOLDERS = sorted(six_tasks.KEPT.glob("*-*-seed*"))


def read(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def test_the_first_table_of_the_readme_is_made_of_what_was_kept():
    assert FOLDERS
    table = "\n".join(six_tasks.table(six_tasks.read()))
    assert f"\n{table}\n" in (six_tasks.ROOT / "README.md").read_text()


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_what_was_kept_is_the_preset_on_seeds_of_evaluations(folder):
    task, preset, seed = folder.name.split("-")
    train, evaluation, result = (read(folder, name) for name in ("train", "eval", "result"))
    options = resolve(RunSpec(kind="train", task=task, preset=preset, overrides={"train.seed": int(seed[4:])}))
    assert train["train"] == options.train.model_dump(mode="json")
    assert train["model"] == options.model.model_dump(mode="json")
    assert (train["task"], evaluation["train_run"]) == (task, train["run"])
    assert evaluation["eval"]["policy"] == "checkpoint"
    seeds = [episode["seed"] for episode in result["episodes"]]
    assert seeds == list(range(tasks.EVAL_SEEDS.start, tasks.EVAL_SEEDS.start + 100))
    assert result["checkpoint"].endswith(f"{train['run']}/checkpoints/{options.train.steps}")
