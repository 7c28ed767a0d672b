"""Plans as pi05ctl makes, keeps and shows them, and what a submit to a cluster does with them. Nothing is compiled."""

import json
from pathlib import Path

import pytest

from pi05.chips import Machine, find
from pi05.config import TrainJob
from pi05.errors import ConfigError
from pi05.plan.estimate import estimate
from pi05ctl.cli import main as cli
from pi05ctl.errors import DoesNotFit, UsageError
from pi05ctl.planning import admission
from pi05ctl.planning.compiling import Here
from pi05ctl.planning.forecast import verdict
from pi05ctl.planning.planner import Planner, chip_of, machine_of
from pi05ctl.planning.proposals import proposals
from pi05ctl.spec.render import Rendered, render, stages
from pi05ctl.spec.runspec import RunSpec, parse_assignment
from pi05ctl.spec.settings import Cluster, Settings, TrainPods

EIGHT = Machine(find("h100"), 8)
NEAR, OVER, NEVER = (
    ("train.batch_size=288", "compute.layers=looped"),
    ("train.batch_size=312", "compute.layers=looped"),
    ("train.batch_size=512",),
)
H100 = Cluster(train=TrainPods(chip="h100"))


def run(*assignments: str, preset: str = "full", kind: str = "train", goal: str | None = None) -> Rendered:
    overrides = dict(parse_assignment(text) for text in assignments)
    spec = RunSpec.model_validate(
        {
            "kind": kind,
            "task": "stackcube",
            "preset": preset,
            "target": "cluster",
            "overrides": overrides,
            "goal": goal,
        }
    )
    return render(spec, Settings(storage="", python="", planner_python=""))


def job(*assignments: str, preset: str = "full") -> TrainJob:
    made = run(*assignments, preset=preset).job
    assert isinstance(made, TrainJob)
    return made


class Interpreter:
    """An interpreter that answers every call with the same, and counts them."""

    def __init__(self, folder: Path, answer: str, code: int = 0, error: str = "") -> None:
        self._calls = folder / "calls"
        (folder / "answer").write_text(answer)
        self.python = folder / "python"
        self.python.write_text(
            f"#!/bin/sh\necho \"$@\" >>{self._calls}\ncat {folder}/answer\necho '{error}' >&2\nexit {code}\n"
        )
        self.python.chmod(0o755)

    @property
    def calls(self) -> list[str]:
        return self._calls.read_text().splitlines() if self._calls.exists() else []


def compiled(told: TrainJob, machine: Machine = EIGHT, **needs: int) -> str:
    plan = estimate(told, machine)
    return plan.model_copy(
        update={"how": "compiled", "needs": plan.needs.model_copy(update=needs), "tokens_known": True}
    ).model_dump_json()


@pytest.fixture
def said() -> list[str]:
    return []


def test_a_plan_is_compiled_once_and_kept(tmp_path, said):
    compiler = Interpreter(tmp_path, compiled(job()))
    for _ in range(2):
        plan = Planner(Here(compiler.python, said.append), tmp_path / "kept", said.append).plan(job(), EIGHT)
        assert (plan.how, plan.needs) == ("compiled", estimate(job(), EIGHT).needs)
    assert [call.split()[-6:] for call in compiler.calls] == [["--chip", "h100", "--gpus", "8", "--nodes", "1"]]
    assert said == ["compiling for 8 h100, recomputing nothing, layers auto: some minutes"]


def test_other_steps_seeds_and_rates_have_the_same_plan(tmp_path, said):
    compiler = Interpreter(tmp_path, compiled(job()))
    planner(tmp_path, said, compiler).plan(job(), EIGHT)
    other = job("train.steps=60000", "train.seed=1", "train.optimizer.peak_lr=1e-4", "train.save_every=500")
    assert planner(tmp_path, said, compiler).plan(other, EIGHT).steps == 60_000
    assert len(compiler.calls) == 1


def test_another_training_chip_or_task_is_compiled_again(tmp_path, said):
    compiler = Interpreter(tmp_path, compiled(job()))
    planner = Planner(Here(compiler.python, said.append), tmp_path / "kept", said.append)
    planner.plan(job(), EIGHT)
    planner.plan(job("train.batch_size=128"), EIGHT)
    planner.plan(job('train.mix=["pushcube"]'), EIGHT)
    planner.plan(job(), Machine(find("h200"), 8))
    assert len(compiler.calls) == 4


@pytest.mark.parametrize(("code", "why"), [(69, "no plugin"), (1, "ended with 1: no plugin")])
def test_where_it_cannot_be_compiled_it_is_estimated_and_said(tmp_path, said, code, why):
    compiler = Interpreter(tmp_path, "", code=code, error="no plugin")
    assert (
        Planner(Here(compiler.python, said.append), tmp_path / "kept", said.append).plan(job(), EIGHT).how
        == "estimated"
    )
    assert "not compiled, but estimated" in said[1]
    assert said[1].endswith(why)
    assert not (tmp_path / "kept").exists()


def test_an_interpreter_that_is_not_there_is_said(tmp_path, said):
    assert Planner(Here(tmp_path / "nowhere", said.append), tmp_path, said.append).plan(job(), EIGHT).how == "estimated"
    assert "does not start: No such file" in said[1]


def test_what_the_compiler_refuses_is_refused(tmp_path, said):
    compiler = Interpreter(tmp_path, "", code=64, error="train.freeze matches no parameter")
    with pytest.raises(UsageError, match="matches no parameter"):
        Planner(Here(compiler.python, said.append), tmp_path / "kept", said.append).plan(job(), EIGHT)


def test_what_does_not_divide_is_refused_before_anything_is_compiled(tmp_path, said):
    compiler = Interpreter(tmp_path, compiled(job()))
    with pytest.raises(ConfigError, match="not divisible by 3 nodes of 8 h100"):
        Planner(Here(compiler.python, said.append), tmp_path, said.append).plan(job(), Machine(find("h100"), 8, 3))
    assert compiler.calls == []


@pytest.mark.parametrize("too_large", [NEVER, ("train.batch_size=352", "compute.layers=looped")])
def test_the_fastest_setting_that_fits_is_proposed(tmp_path, said, too_large):
    told = job(*too_large)
    advice = Planner(None, tmp_path, said.append).advise(told, EIGHT)
    assert advice.instead is not None
    assert advice.instead.fits
    assert not advice.plan.fits
    assert advice.changes.keys() <= {"compute.recompute", "compute.layers", "compute.microbatches"}
    ways = [estimate(changed, EIGHT) for _, changed in proposals(told, EIGHT)]
    assert advice.instead.times.step == min(way.times.step for way in ways)


def test_proposals_that_turn_out_too_large_are_passed_over(tmp_path, said):
    told = job(*NEVER)
    compiler = Interpreter(tmp_path, compiled(told, temporary=10**12))
    advice = Planner(Here(compiler.python, said.append), tmp_path / "kept", said.append).advise(told, EIGHT)
    assert advice.instead is None
    assert len(compiler.calls) == 1 + len(list(proposals(told, EIGHT)))


def test_parameters_are_spread_where_that_is_what_is_missing():
    changes, _ = next(iter(proposals(job("train.fsdp_devices=1"), EIGHT)))
    assert changes["train.fsdp_devices"] == 8


def test_a_smaller_batch_is_proposed_where_nothing_else_is_enough():
    changes, changed = next(iter(proposals(job("train.batch_size=32768"), Machine(find("l40s"), 8))))
    assert changes["train.batch_size"] == changed.train.batch_size == 1024


def test_more_gpus_are_proposed_where_the_state_alone_is_too_large(tmp_path, said):
    advice = Planner(None, tmp_path, said.append).advise(job("train.fsdp_devices=1"), Machine(find("l40s"), 1))
    assert (advice.instead, advice.changes, advice.larger) == (None, {}, Machine(find("l40s"), 8))
    assert "the state alone is too large for 1 of them: take 8 l40s" in verdict(advice)


def test_a_chip_is_named_by_the_settings_or_by_the_labels_of_its_nodes():
    assert chip_of(Cluster()) is None
    assert chip_of(H100) == "h100"
    label = {"cloud.google.com/gke-accelerator": "nvidia-h200-141gb"}
    assert chip_of(Cluster(node_selector=label)) == "h200"
    assert chip_of(Cluster(train=TrainPods(node_selector={"nvidia.com/gpu.product": "NVIDIA-L40S"}))) == "l40s"


@pytest.mark.parametrize(
    ("preset", "gpus", "nodes", "shape"), [("full", None, None, (8, 1)), ("lora", None, None, (1, 1))]
)
def test_gpus_that_are_not_named_are_those_a_submit_would_take(preset, gpus, nodes, shape):
    machine = machine_of(job(preset=preset), H100, None, gpus, nodes)
    assert (machine.gpus, machine.nodes) == shape


def planner(folder: Path, said: list[str], interpreter: Interpreter | None = None) -> Planner:
    return Planner(interpreter and Here(interpreter.python, said.append), folder / "kept", said.append)


def test_a_training_that_fits_is_submitted_without_a_word_or_a_wait(tmp_path, said):
    compiler = Interpreter(tmp_path, "")
    assert admission.note(run(), H100, planner(tmp_path, said, compiler)) == ""
    assert admission.note(run(kind="pipeline"), H100, planner(tmp_path, said, compiler)) == ""
    assert (compiler.calls, said) == ([], [])


def test_one_that_cannot_fit_is_refused_at_once_with_what_fits(tmp_path, said):
    compiler = Interpreter(tmp_path, "")
    with pytest.raises(DoesNotFit, match=r"cannot fit: a step needs .* --set compute\..*--no-plan"):
        admission.note(run(*NEVER), H100, planner(tmp_path, said, compiler))
    whole = run(*NEVER, kind="pipeline", goal="train")
    with pytest.raises(DoesNotFit, match=f"{stages(whole)[-1].run} cannot fit"):
        admission.note(whole, H100, planner(tmp_path, said, compiler))
    assert compiler.calls == []


def test_only_a_near_miss_waits_for_the_compiler(tmp_path, said):
    compiler = Interpreter(tmp_path, compiled(job(*NEAR)))
    near = estimate(job(*NEAR), EIGHT)
    assert near.needs.total == pytest.approx(near.memory, rel=0.1)
    admission.note(run(*NEAR), H100, planner(tmp_path, said, compiler))
    assert len(compiler.calls) == 1
    assert said[0].startswith("compiling for 8 h100")


@pytest.mark.parametrize("near", [NEAR, OVER])
def test_without_a_compiler_a_near_miss_is_let_through_with_a_warning(tmp_path, said, near):
    text = admission.note(run(*near), H100, planner(tmp_path, said))
    assert "may not fit" in text
    assert "pi05ctl plan train stackcube" in text


def test_a_plan_that_was_compiled_is_believed_more_than_an_estimate(tmp_path, said):
    compiler = Interpreter(tmp_path, compiled(job(), temporary=10**12))
    planner(tmp_path, said, compiler).plan(job(), EIGHT)
    with pytest.raises(DoesNotFit):
        admission.note(run(), H100, planner(tmp_path, said, compiler))
    assert len(compiler.calls) == 1


def test_where_the_chip_is_not_known_nothing_is_refused_and_that_is_said(tmp_path, said):
    assert "[cluster.train] chip" in admission.note(run(*NEVER), Cluster(), planner(tmp_path, said))
    assert admission.note(run(preset="tiny"), Cluster(), planner(tmp_path, said)) == "", "it fits any of them"


def test_what_trains_nothing_needs_no_plan(tmp_path, said):
    assert admission.note(run(kind="demos"), H100, planner(tmp_path, said)) == ""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PI05_STORAGE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "pi05.toml").write_text("")
    return tmp_path


def command(capsys, words: str) -> tuple[int, str, str]:
    code = cli.run(words.split())
    shown = capsys.readouterr()
    return code, shown.out, shown.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("plan train stackcube --quick", "for which GPU? Use --chip (a100-80, h100, h200, b200, l40s)"),
        ("plan train stackcube --chip h10 --quick", "unknown chip 'h10'; did you mean 'h100'?"),
        ("plan train stackcube --chipp h100", "No such option: --chipp; did you mean '--chip'?"),
        ("plan train stakcube --chip h100 --quick", "unknown task 'stakcube'; did you mean 'stackcube'?"),
        ("plan train stackcube --preset ful --chip h100", "unknown preset 'ful'; did you mean 'full'?"),
        ("plan train stackcube --chip h100 --set train.batch=8", "unknown option 'train.batch'"),
        ("plan demos stackcube --chip h100", "only a training has a plan, not demos"),
        ("plan train stackcube --chip h100 --gpus 0", "must be at least 1"),
        ("plan train stackcube --chip h100 --price -1", "--price -1 must be at least 0"),
        (
            "plan train stackcube --chip h100 --gpus 6",
            "train.batch_size 64 is not divisible by 6 devices (train.fsdp_devices); use 60 or 66",
        ),
        ("plan train stackcube --chip h100 --nodes 3", "train.batch_size 64 is not divisible by 3 nodes of 8 h100"),
    ],
)
def test_wrong_words_are_one_line_before_anything_is_compiled(capsys, words, message):
    code, out, err = command(capsys, words)
    assert message in err
    assert (code, out) == (2, "")
    assert err.count("\n") == 1


def test_it_shows_needs_bounds_time_and_money_and_how_to_start(capsys):
    words = "plan train stackcube --chip h100 --gpus 8 --price 2 --quick"
    code, out, err = command(capsys, words)
    assert (code, err) == (0, "")
    plan = estimate(job(), EIGHT)
    for part in ("estimated from sizes", "parameters", "temporary", "wire", "GPU hours", "8 h100"):
        assert part in out
    assert f"{2 * plan.gpu_hours:,.2f}" in out
    assert "pi05ctl submit train stackcube --target cluster --preset full" in out


def test_a_pipeline_has_the_plan_of_its_training(capsys):
    _, train, _ = command(capsys, "plan train stackcube --chip h100 --quick")
    _, pipeline, _ = command(capsys, "plan pipeline stackcube --chip h100 --quick")
    assert pipeline == train.replace("submit train", "submit pipeline")


def test_machines_read_the_same_in_json(capsys):
    code, out, _ = command(capsys, "plan train stackcube --chip h100 --gpus 8 --price 2 --quick --json")
    told = json.loads(out)["plan"]
    plan = estimate(job(), EIGHT)
    assert code == 0
    assert told["needs"] == plan.needs.model_dump()
    assert told["cost"] == pytest.approx(2 * plan.gpu_hours, abs=0.01)


def test_what_does_not_fit_is_exit_code_4_with_the_setting_that_does(capsys):
    code, out, err = command(capsys, "plan train stackcube --chip h100 --gpus 8 --set train.batch_size=512 --quick")
    assert code == 4
    assert "DOES NOT FIT" in out
    assert "it fits" in out
    assert "--set compute." in err


def test_parameters_are_shared_by_the_gpus_of_a_node_that_are_asked_for(capsys):
    _, out, _ = command(capsys, "plan train stackcube --chip h200 --gpus 4 --quick")
    assert "--set train.fsdp_devices=4" in out


def test_an_unknown_chip_in_the_settings_is_named(capsys, here):
    (here / "pi05.toml").write_text('[cluster.train]\nchip = "h10"\n')
    code, _, err = command(capsys, "plan train stackcube --quick")
    assert code == 2
    assert "did you mean 'h100'?" in err


def test_a_submit_refuses_what_cannot_fit_unless_told_otherwise(capsys, here):
    (here / "pi05.toml").write_text(
        f'[cluster]\nstorage = "{(here / "bucket").as_uri()}"\ntrain = {{ chip = "h100" }}\n'
    )
    words = "submit train stackcube --target cluster --set train.batch_size=512"
    code, out, err = command(capsys, words)
    assert (code, out) == (4, "")
    assert "cannot fit: a step needs" in err
    assert err.endswith("(--no-plan submits it all the same)\n")
    code, _, err = command(capsys, f"{words} --no-plan")
    assert (code, "cannot fit" in err, "cluster.images.train" in err) == (2, False, True)  # so far there are no images
