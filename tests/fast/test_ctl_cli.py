"""The command line as a user meets it: words, exit codes, and what is loaded to say them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pi05.config import DemosJob, load_job
from pi05.storage import FileStorage, RunPaths
from pi05ctl.cli import main as cli
from pi05ctl.cli import runs
from pi05ctl.errors import Unreachable
from pi05ctl.runs.records import Record
from pi05ctl.runs.status import RunStatus
from pi05ctl.service import Service
from pi05ctl.spec.render import render
from pi05ctl.spec.runspec import RunSpec
from pi05ctl.spec.settings import Settings
from pi05ctl.views.tables import status_json


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PI05_STORAGE", raising=False)
    (tmp_path / "pi05.toml").write_text('planner_python = "nowhere"\n')  # so that nothing here can start
    return tmp_path


def command(capsys, *words: str) -> tuple[int, str, str]:
    code = cli.run(words)
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("sumbit train pushcube", "No such command 'sumbit'. Did you mean 'submit'?"),
        ("submit trian pushcube", "unknown kind of run 'trian'; did you mean 'train'?"),
        ("submit train pushcub", "unknown task 'pushcub'; did you mean 'pushcube'? There are pickcube,"),
        ("submit train PushCube-v1", "did you mean 'pushcube'?"),
        ("submit train xyz", "unknown task 'xyz'; there are pickcube,"),
        ("submit train pushcube --preset tinny", "unknown preset 'tinny'; did you mean 'tiny'?"),
        ("submit train pushcube --target clutser", "unknown target 'clutser'; did you mean 'cluster'?"),
        ("submit train pushcube --target cluster", "cluster.storage, cluster.images.train"),
        ("submit train pushcube --set train.step=5", "unknown option 'train.step'; did you mean 'train.steps'?"),
        ("submit train pushcube --set train.steps", "has no value"),
        ("submit train pushcube --set train.steps=0", "train.steps: Input should be greater than 0 (given 0)"),
        ("submit train pushcube --presett tiny", "No such option: --presett; did you mean '--preset'?"),
        ("submit train pushcube -o yaml", "'yaml' is not one of 'text', 'json'"),
        ("submit train pushcube --of train-x", "--of names the training run of one evaluation"),
        ("submit eval pushcube --of train-x", "there is no run 'train-x'"),
        ("submit train", "Missing argument 'TASK'"),
        ("render train pushcub", "unknown task 'pushcub'"),
        ("status pushcube", "there is no run of pushcube yet; start one: pi05ctl submit pipeline pushcube"),
        ("logs nothing", "there is no run 'nothing'"),
        ("wait pushcub", "there is no run 'pushcub'"),
        ("submit train pushcube --only", "there is no dataset"),
        ("submit train pushcube --only", "make it: pi05ctl submit demos pushcube --target local --preset tiny"),
        ("submit eval pushcube --only", "there is no dataset"),
        ("submit demos pushcube", "the planner's interpreter"),
        ("submit train pushcube", "the planner's interpreter"),
        ("submit eval pushcube", "the planner's interpreter"),
        ("submit train all --only", "there is no dataset"),
        ("submit train all", "the planner's interpreter"),
        ("submit demos pushcube --only", "--only is for train and eval"),
        ("submit pipeline all --only", "--only is for train and eval"),
        ("submit train pushcube --preset lora", "has no weights/pi05_base and no weights/paligemma_tokenizer"),
        (
            "submit eval pushcube --preset lora",
            "weights push pi05_base --from pi05_base --target local; then gcloud",
        ),
        ("submit eval pushcube --set eval.step=77", "it keeps the last, 4000, and multiples of train.keep_every="),
        (
            "submit train pushcube --until 0.1",
            "--until is about the success rate of an evaluation; leave it out",
        ),
        ("submit eval pushcube --until 10", "eval: the width of an interval is a share from 0.06 to 0.5, and not 10"),
        ("submit eval pushcube --until 0.06", "takes 68 episodes or more, episodes 50 are the most; use episodes="),
        ("submit eval pushcube --until 0.2 --set eval.policy=oracle", "demonstrations must succeed, leave it out"),
        ("compare nothing else", "there is no run 'nothing'"),
        ("compare nothing else --page -o json", "--page and -o json are two outputs"),
        ("status --state runing", "unknown state 'runing'; did you mean 'Running'?"),
        ("status --task pushcub", "unknown task 'pushcub'; did you mean 'pushcube'?"),
        ("status --kind trian", "unknown kind of run 'trian'; did you mean 'train'?"),
        ("status --limit 0", "--limit 0 must be at least 1"),
        ("status pushcube --kind train", "choose among all runs; leave out pushcube"),
        ("results pushcube", "of one run: report pushcube"),
        ("delete nothing", "there is no run 'nothing'"),
        ("delete pushcube", "pushcube is a task, not a run; pi05ctl status --task pushcube lists its runs"),
    ],
)
def test_a_wrong_word_is_one_line_and_exit_code_2(capsys, here, words, message):
    code, out, err = command(capsys, *words.split())
    assert message in err
    assert (code, out) == (2, "")
    assert err.startswith("pi05ctl: ")
    assert err.count("\n") == 1
    assert not (here / "pi05-data/runs").exists()


def test_no_words_are_a_call_for_help(capsys):
    code, out, _ = command(capsys)
    assert code == 0
    assert "Commands:" in out


@pytest.mark.parametrize(
    "name",
    [
        "submit",
        "render",
        "status",
        "logs",
        "wait",
        "cancel",
        "resume",
        "results",
        "report",
        "compare",
        "plot",
        "doctor",
        "init",
        "gc",
        "delete",
    ],
)
def test_every_command_has_help(capsys, name):
    code, out, _ = command(capsys, name, "-h")
    assert code == 0
    assert f"Usage: pi05ctl {name}" in out


def test_help_in_a_list_is_not_cut(capsys):
    assert "..." not in command(capsys, "--help")[1].partition("Commands:")[2]


@pytest.mark.parametrize("kind", ["demos", "train", "eval"])
def test_a_dry_run_prints_the_job_and_writes_nothing(capsys, here, kind):
    only = () if kind == "demos" else ("--only",)
    code, out, err = command(capsys, "submit", kind, "pushcube", "--dry-run", "--set", "train.steps=500", *only)
    assert (code, err) == (0, "")
    (here / "job.json").write_text(out)
    job = load_job(here / "job.json")
    assert (job.kind, job.storage) == (kind, f"file://{here}/pi05-data")
    assert not (here / "pi05-data").exists()


@pytest.mark.parametrize("kind", ["pipeline", "train", "eval"])
def test_render_is_a_dry_run(capsys, kind):
    words = [kind, "stackcube", "--preset", "full"]
    assert command(capsys, "render", *words) == command(capsys, "submit", *words, "--dry-run")


def test_all_is_every_task(capsys):
    _, out, _ = command(capsys, "render", "train", "all", "--only")
    decoder, tasks = json.JSONDecoder(), []
    while out.strip():
        job, end = decoder.raw_decode(out)
        tasks.append(job["task"])
        out = out[end:].lstrip()
    assert tasks == ["pickcube", "stackcube", "pushcube", "pullcube", "placesphere", "peginsertionside"]


def test_the_variable_that_moves_the_storage_is_named(capsys, monkeypatch, here):
    monkeypatch.setenv("PI05_STORAGE", f"file://{here}/other")
    _, _, err = command(capsys, "status")
    assert f"storage file://{here}/other (from PI05_STORAGE)" in err


def test_a_storage_that_cannot_be_opened_is_usage(capsys, monkeypatch):
    monkeypatch.setenv("PI05_STORAGE", "s3://bucket")
    code, _, err = command(capsys, "status")
    assert code == 2
    assert "s3://bucket" in err
    assert "file:///" in err


def test_a_storage_that_is_a_file_is_the_targets_fault(capsys, here):
    (here / "pi05-data").write_text("")
    code, _, err = command(capsys, "submit", "pipeline", "pushcube", "--set", "demos.count=1")
    assert code in (2, 3)
    assert err.count("\n") == 1


def test_no_runs_is_data_too(capsys):
    assert command(capsys, "status", "-o", "json")[:2] == (0, "[]\n")
    assert command(capsys, "results", "-o", "json")[:2] == (0, "[]\n")
    assert "no runs in" in command(capsys, "status")[2]


def put(here: Path, spec: RunSpec, created: float, parent: str | None = None) -> str:
    """Write a run as if it had been submitted once."""
    storage = FileStorage((here / "pi05-data").as_uri())
    run = render(spec, Settings(storage.url, "python", "python"))
    record = Record(
        run=run.run, spec=spec, digest=run.digest, created=created, parent=parent, command=run.spec.command()
    )
    storage.write(RunPaths(run.run).spec, record.model_dump_json().encode())
    storage.write(RunPaths(run.run).job, run.job_json)
    return run.run


def spec(kind: str, task: str = "pushcube", **fields) -> RunSpec:
    return RunSpec.model_validate({"kind": kind, "task": task, "preset": "tiny", **fields})


def shown(capsys, name: str) -> list[str]:
    code, out, err = command(capsys, "status", name, "-o", "json")
    assert code == 0, err
    return [row["run"] for row in json.loads(out)]


def test_a_run_is_named_in_full_by_its_beginning_or_by_its_task(capsys, here):
    older = put(here, spec("train"), created=1)
    newer = put(here, spec("eval"), created=2)
    put(here, spec("train", "pullcube"), created=3)
    assert shown(capsys, older) == [older]
    assert shown(capsys, older[:16]) == [older]
    assert shown(capsys, "eval") == [newer]
    assert shown(capsys, "pushcube") == [newer]
    code, _, err = command(capsys, "status", "train")
    assert code == 2
    assert "'train' is the beginning of 2 runs: " in err
    code, _, err = command(capsys, "status", f"{older}x")
    assert f"did you mean '{older}'?" in err


def test_a_name_costs_a_look_at_what_may_be_meant_and_no_more(monkeypatch, here):
    """One list, and one record for each run that the name may mean, read side by side."""
    for seed in range(20):
        put(here, spec("train", overrides={"train.seed": seed}), created=seed)
    newest = put(here, spec("train", "pullcube"), created=100)
    asked: list[str] = []
    for method in ("read", "exists", "children"):
        original = getattr(FileStorage, method)
        monkeypatch.setattr(
            FileStorage, method, lambda self, key, original=original: (asked.append(key), original(self, key))[1]
        )
    service = Service(Settings((here / "pi05-data").as_uri(), "python", "python"))
    assert service.find("pullcube") == newest
    assert asked == ["runs", f"runs/{newest}/run.json"]
    asked.clear()
    assert service.find(newest[:-2]) == newest
    assert len(asked) == 2
    asked.clear()
    assert service.find("pushcube").startswith("train-pushcube-")
    assert len(asked) == 21


def test_a_task_means_the_pipeline_rather_than_its_stages(capsys, here):
    pipeline = put(here, spec("pipeline"), created=1)
    put(here, spec("demos"), created=2, parent=pipeline)
    assert shown(capsys, "pushcube")[0] == pipeline


def test_the_status_of_a_pipeline_shows_its_stages(capsys, here):
    put(here, spec("pipeline"), created=1)
    kinds = [run.partition("-")[0] for run in shown(capsys, "pushcube")]
    assert kinds == ["pipeline", "demos", "train", "eval"]


def test_of_takes_the_options_of_the_training_run(capsys, here):
    train = put(here, spec("train", overrides={"train.seed": 7, "compute.dtype": "bfloat16"}, again=1), created=1)
    _, out, _ = command(capsys, "render", "eval", "pushcube", "--of", train, "--set", "eval.episodes=7")
    job = json.loads(out)
    assert (job["train_run"], job["eval"]["episodes"]) == (train, 7)
    code, _, err = command(capsys, "render", "eval", "pullcube", "--of", train)
    assert (code, "is a train run of pushcube" in err) == (2, True)
    code, _, err = command(capsys, "render", "eval", "pushcube", "--of", train, "--preset", "full")
    assert (code, "was trained with --preset tiny" in err) == (2, True)


@pytest.mark.parametrize("kind", ["pipeline", "eval", "train"])
def test_checkpoints_of_a_pipeline_or_an_evaluation_are_its_trainings(capsys, here, kind):
    named = put(here, spec(kind), created=2)
    train = put(here, spec("train"), created=1, parent=named)
    with FileStorage((here / "pi05-data").as_uri()).stage(RunPaths(train).checkpoint(200)):
        pass
    _, out, _ = command(capsys, "checkpoints", "list", named, "-o", "json")
    assert [(row["run"], row["step"]) for row in json.loads(out)] == [(train, 200)]
    _, out, _ = command(capsys, "render", "eval", "pushcube", "--of", named)
    assert json.loads(out)["train_run"] == train


def test_every_checkpoint_is_an_evaluation_each(capsys, here):
    train = put(here, spec("train"), created=1)
    storage = FileStorage((here / "pi05-data").as_uri())
    asked = ("render", "eval", "pushcube", "--every-checkpoint")
    code, _, err = command(capsys, *asked)
    assert (code, f"{train} has no complete checkpoint in" in err) == (2, True)
    for step in (200, 1000, 30):
        with storage.stage(RunPaths(train).checkpoint(step)):
            pass
    (storage.path(RunPaths(train).checkpoint(4000))).mkdir()  # one that was never completed
    _, out, _ = command(capsys, *asked, "--set", "eval.episodes=7")
    found = [json.loads(text) for text in out.replace("}\n{", "}\n\0{").split("\0")]
    assert [(job["train_run"], job["eval"]["step"], job["eval"]["episodes"]) for job in found] == [
        (train, step, 7) for step in (30, 200, 1000)
    ]
    assert len({job["run"] for job in found}) == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train", "pushcube"), "--every-checkpoint is about one training"),
        (("eval", "all"), "--every-checkpoint is about one training"),
        (("eval", "pushcube", "--set", "eval.step=200"), "leave --set eval.step and eval.policy out"),
        (("eval", "pushcube", "--set", "eval.policy=oracle"), "leave --set eval.step and eval.policy out"),
    ],
)
@pytest.mark.usefixtures("here")
def test_every_checkpoint_of_nothing_is_refused(capsys, words, said):
    code, _, err = command(capsys, "submit", *words, "--every-checkpoint")
    assert (code, said in err) == (2, True)


def test_a_training_on_two_tasks_is_evaluated_on_each_with_its_own_dataset(capsys, here):
    mix = {"train.mix": ["pullcube"]}
    train = put(here, spec("train", overrides=mix), created=1)
    for task in ("pushcube", "pullcube"):
        _, out, _ = command(capsys, "render", "eval", task, "--of", train)
        job = json.loads(out)
        assert (job["train_run"], job["dataset"].split("/")[1]) == (train, task)
    code, _, err = command(capsys, "render", "eval", "pickcube", "--of", train)
    assert (code, "is a train run of pushcube and pullcube, not the training of pickcube" in err) == (2, True)


def test_the_dataset_that_a_mix_lacks_is_named_with_the_command_that_makes_it(capsys, here):
    storage = FileStorage((here / "pi05-data").as_uri())
    own = render(spec("demos"), Settings(storage.url, "python", "python")).job
    assert isinstance(own, DemosJob)
    with storage.stage(own.dataset):
        pass
    code, _, err = command(capsys, "submit", "train", "pushcube", "--set", "train.mix=[pullcube]", "--only")
    assert code == 2
    assert "there is no dataset datasets/pullcube/" in err
    assert "make it: pi05ctl submit demos pullcube" in err


def test_a_damaged_run_does_not_hide_the_others(capsys, here):
    good, bad = put(here, spec("train"), created=1), put(here, spec("eval"), created=2)
    (here / f"pi05-data/runs/{bad}/run.json").write_text('{"v": ')
    code, out, err = command(capsys, "status")
    assert code == 0
    assert good in out
    assert f"{bad}/run.json cannot be read" in err
    code, _, err = command(capsys, "status", bad)
    assert (code, err.count("\n")) == (3, 1)


def test_a_report_of_demonstrations_is_refused(capsys, here):
    put(here, spec("demos"), created=1)
    code, _, err = command(capsys, "report", "pushcube")
    assert code == 2
    assert "a report is of a train, eval or pipeline run" in err


def test_a_report_of_a_run_without_anything_is_written(capsys, here):
    run = put(here, spec("pipeline"), created=1)
    code, out, _ = command(capsys, "report", "pushcube")
    assert code == 0
    assert out == f"file://{here}/pi05-data/runs/{run}/report/index.html\n"
    assert "Not evaluated yet" in (here / f"pi05-data/runs/{run}/report/index.html").read_text()


def test_wait_tells_its_ends_apart(capsys, here):
    run = put(here, spec("train"), created=1)
    code, _, err = command(capsys, "wait", run, "--timeout", "0")
    assert code == 124
    assert f"{run} is still Pending after 0 s" in err
    FileStorage((here / "pi05-data").as_uri()).write(
        RunPaths(run).status, json.dumps({"run": run, "kind": "failed", "time": 2, "message": "no luck"}).encode()
    )
    code, _, err = command(capsys, "wait", run, "--timeout", "0")
    assert (code, "no luck" in err) == (125, True)


HEAVY = ("numpy", "jax", "torch", "mani_skill", "pydantic", "rich", "google_crc32c")


def test_starting_loads_nothing_heavy():
    script = f"import sys, pi05ctl.cli.main; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_nothing_of_the_controller_loads_what_learns():
    script = (
        "import sys, pkgutil, importlib, pi05ctl\n"
        "names = [m.name for m in pkgutil.walk_packages(pi05ctl.__path__, 'pi05ctl.') if '__main__' not in m.name]\n"
        "[importlib.import_module(name) for name in names]\n"
        "print(len(names) > 10, [n for n in ('numpy', 'jax', 'torch', 'mani_skill') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "True []\n"


def run_cli(*words: str, **environment: str | None) -> subprocess.CompletedProcess[str]:
    """Run it as a process, with variables added or, where None, left out."""
    kept = {**os.environ, **environment}
    line = [sys.executable, "-m", "pi05ctl", *words]
    env = {name: value for name, value in kept.items() if value is not None}
    return subprocess.run(line, capture_output=True, text=True, check=False, env=env)


def test_a_group_of_commands_alone_prints_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["weights"]) == 2
    said = capsys.readouterr()
    assert "\n  push " in said.out
    assert said.err == ""


def test_what_a_terminal_cannot_show_is_written_as_an_escape() -> None:
    done = run_cli("render", "train", "pushcubé", PYTHONIOENCODING="ascii")
    assert done.returncode == 2
    assert "\\xe9" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_closed_stdout_is_no_traceback() -> None:
    line = f"{sys.executable} -m pi05ctl render demos pushcube >&-"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_status_that_watches_asks_again(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    status = RunStatus(run="train-pushcube-1", task="pushcube", kind="train", state="Done")
    answers = iter([Unreachable("no route"), [status]])

    def look() -> list[RunStatus]:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(runs, "WATCH_EVERY", 0)
    view = runs.View(look, str, status_json, lambda shown: shown[0].ended)
    runs._watch(view, runs.Output.json)
    said = capsys.readouterr()
    assert said.err == "pi05ctl: no route (asked again)\n"
    assert '"Done"' in said.out


@pytest.mark.usefixtures("here")
def test_options_are_told_with_what_each_preset_says(capsys):
    code, out, _ = command(capsys, "options", "train.batch_size")
    assert (code, out.splitlines()[0]) == (0, "train.batch_size  (whole number > 0)")
    assert out.splitlines()[1] == "    tiny, micro, lora 32; small, full 64"
    code, out, _ = command(capsys, "options", "eval.step", "-o", "json")
    [told] = json.loads(out)
    assert (told["path"], told["values"]["full"]) == ("eval.step", None)
    code, _, err = command(capsys, "options", "--task", "pushcub")
    assert (code, "did you mean 'pushcube'?" in err) == (2, True)


@pytest.mark.usefixtures("here")
def test_datasets_alone_lists_them(capsys):
    _, listed, words = command(capsys, "datasets", "list")
    assert command(capsys, "datasets") == (0, listed, words)
