"""weights push, verify, pull; checkpoints list, pull, verify: as a user types them, on a folder of this machine.

Nothing is opened here, as on a machine without the jobs' packages: tests/wild/test_weights.py opens.
"""

import json
import shutil
from pathlib import Path

import pytest

from pi05.storage import FileStorage, RunPaths
from pi05ctl.cli import main as cli
from pi05ctl.runs.records import Records
from pi05ctl.spec.render import render
from pi05ctl.spec.runspec import RunSpec
from pi05ctl.spec.settings import Settings

SETTINGS = Settings(storage="file:///unused", python="python", planner_python="planner")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PI05_STORAGE", raising=False)
    (tmp_path / "pi05.toml").write_text('python = "/no/python"')
    return tmp_path


@pytest.fixture
def storage(here: Path) -> FileStorage:
    return FileStorage((here / "pi05-data").as_uri())


@pytest.fixture
def orbax(here: Path) -> Path:
    """What a released checkpoint looks like from outside."""
    folder = here / "pi05_base"
    for name, content in {
        "params/_METADATA": b"{}",
        "params/manifest.ocdbt": b"m",
        "params/d/0a1b": b"weights",
        "assets/trossen/norm_stats.json": b"{}",
        "train_state/d/big": b"moments",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def trained(storage: FileStorage) -> str:
    """A run with three checkpoints, one of them evaluated; training goes on from the second."""
    train, evaluation = (
        render(RunSpec(kind=kind, task="pushcube", preset="tiny", target="local"), SETTINGS)
        for kind in ("train", "eval")
    )
    for run in (train, evaluation):
        Records(storage).write(run, 0.0, None)
    for step in (5000, 5200, 5400):
        with storage.stage(RunPaths(train.run).checkpoint(step)) as folder:
            (folder / "params").write_bytes(b"x" * step)
            if step == 5200:
                (folder / "train_state").touch()
    result = {
        "policy": "checkpoint",
        "checkpoint": RunPaths(train.run).checkpoint(5000),
        "episodes": [{"seed": seed, "success_once": seed % 2 == 0, "success_at_end": False} for seed in range(4)],
    }
    storage.write(f"{RunPaths(evaluation.run).results}/0.json", json.dumps(result).encode())
    return train.run


def command(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = cli.run([str(word) for word in words])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_weights_go_there_and_back(
    capsys: pytest.CaptureFixture[str], orbax: Path, storage: FileStorage, here: Path
) -> None:
    unopened = (
        "pi05ctl: it was not opened, so a job may still find it damaged: /no/python does not run (No such file or "
        "directory)\n"
    )
    assert command(capsys, "weights", "push", "pi05_base", "--from", orbax) == (
        0,
        "",
        f"pi05ctl: {storage.url}/weights/pi05_base is there now, every checksum agrees: 4 files, 12 B\n{unopened}",
    )
    assert not storage.path("weights/pi05_base/train_state").exists()
    assert command(capsys, "weights", "verify", "pi05_base")[0] == 0
    assert command(capsys, "weights", "pull", "pi05_base", "--to", here / "back")[0] == 0
    assert (here / "back/params/d/0a1b").read_bytes() == b"weights"
    code, _, said = command(capsys, "weights", "push", "pi05_base", "--from", here / "back")
    there = f"pi05ctl: {storage.url}/weights/pi05_base is there already, every checksum agrees: 4 files, 12 B\n"
    assert (code, said) == (0, there + unopened)


def test_a_folder_of_parameters_alone_is_enough(
    capsys: pytest.CaptureFixture[str], orbax: Path, storage: FileStorage
) -> None:
    assert command(capsys, "weights", "push", "base", "--from", orbax / "params")[0] == 0
    assert sorted(path.name for path in storage.path("weights/base").iterdir()) == ["MANIFEST.json", "params"]


def test_a_tokenizer_is_a_file(capsys: pytest.CaptureFixture[str], here: Path, storage: FileStorage) -> None:
    (here / "paligemma.model").write_bytes(b"\n\x0epieces")
    assert command(capsys, "weights", "push", "paligemma", "--from", "paligemma.model")[0] == 0
    assert (storage.open("weights/paligemma") / "paligemma.model").read_bytes() == b"\n\x0epieces"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"x/model.safetensors": b""}, "is not an Orbax checkpoint: x/model.safetensors belongs to a Hugging Face"),
        ({"x/a": b""}, "it has no file _METADATA or params/_METADATA; expected one as in gs://openpi-assets"),
        ({"x/_METADATA": b"<html>"}, "x/_METADATA is damaged"),
        ({"x": b"<html>"}, "x is not a SentencePiece model: expected a .model file that begins with byte 0a, found 3c"),
        ({"y": b""}, "x does not exist; name the folder of an Orbax checkpoint or a .model file"),
    ],
)
def test_other_forms_are_refused(
    capsys: pytest.CaptureFixture[str], here: Path, files: dict[str, bytes], message: str
) -> None:
    for name, content in files.items():
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_bytes(content)
    code, _, said = command(capsys, "weights", "push", "base", "--from", "x")
    assert code == 2
    assert message in said


def test_damaged_weights_are_named_with_both_checksums_and_the_command(
    capsys: pytest.CaptureFixture[str], orbax: Path, storage: FileStorage
) -> None:
    command(capsys, "weights", "push", "pi05_base", "--from", orbax)
    storage.path("weights/pi05_base/params/d/0a1b").write_bytes(b"weighty")
    code, _, said = command(capsys, "weights", "verify", "pi05_base")
    assert code == 3
    assert "weights/pi05_base is damaged: params/d/0a1b has crc32c " in said
    assert ", the manifest says " in said
    assert said.endswith(
        "gcloud storage cp -r gs://openpi-assets/checkpoints/pi05_base . && "
        "pi05ctl weights push pi05_base --from pi05_base\n"
    )
    assert command(capsys, "weights", "pull", "pi05_base", "--to", "back")[0] == 3
    assert not Path("back").exists()
    assert command(capsys, "weights", "push", "pi05_base", "--from", orbax)[0] == 0  # damaged ones are replaced
    assert command(capsys, "weights", "verify", "pi05_base")[0] == 0


def test_intact_weights_are_never_overwritten(
    capsys: pytest.CaptureFixture[str], orbax: Path, storage: FileStorage
) -> None:
    command(capsys, "weights", "push", "pi05_base", "--from", orbax)
    (orbax / "params/d/0a1b").write_bytes(b"others")
    code, _, said = command(capsys, "weights", "push", "pi05_base", "--from", orbax)
    assert code == 2
    assert "is there with other content, and never overwritten: params/d/0a1b has crc32c" in said
    assert (storage.path("weights/pi05_base/params/d/0a1b")).read_bytes() == b"weights"


def test_a_copy_that_rotted_on_this_machine_is_not_pushed(
    capsys: pytest.CaptureFixture[str], orbax: Path, storage: FileStorage
) -> None:
    command(capsys, "weights", "push", "pi05_base", "--from", orbax)
    command(capsys, "weights", "pull", "pi05_base", "--to", "back")
    Path("back/params/d/0a1b").write_bytes(b"rot")
    code, _, said = command(capsys, "weights", "push", "other", "--from", "back")
    assert code == 3
    assert "back/params/d/0a1b has crc32c" in said
    assert not storage.exists("weights/other")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "weights push pi05_base",
            "say what to push: --from PATH. The released ones: gcloud storage cp -r gs://openpi-",
        ),
        ("weights push ../x --from .", "'../x' cannot be a name of weights"),
        ("weights verify pi05_bse", "has no weights pi05_bse; there are: none. To put them there: gcloud storage"),
        ("weights pull x --to y", "has no weights x"),
        ("weights", "Usage: pi05ctl weights"),
        ("checkpoints list pushcube", "there is no run of pushcube yet"),
        ("checkpoints pull nothing --to y", "there is no run 'nothing'"),
    ],
)
def test_wrong_words(capsys: pytest.CaptureFixture[str], words: str, message: str) -> None:
    code, out, said = command(capsys, *words.split())
    assert code == 2
    assert message in out + said


def test_checkpoints_are_listed_with_what_is_known_of_them(capsys: pytest.CaptureFixture[str], trained: str) -> None:
    code, out, _ = command(capsys, "checkpoints", "list", trained)
    lines = out.splitlines()
    assert code == 0
    assert lines[0].split() == ["STEP", "SIZE", "FOR", "AGE", "KEPT", "EVALUATED"]
    assert "5,000" in lines[1]
    assert "5.0 kB" in lines[1]
    assert "every 1000" in lines[1]
    assert "50% of 4 (eval-pushcube-" in lines[1]
    assert "5.2 kB  resume, policy  " in lines[2]
    assert "last" in lines[3]
    rows = json.loads(command(capsys, "checkpoints", "list", trained, "-o", "json")[1])
    assert [(row["run"], row["step"], row["size"], row["resumable"], row["kept"]) for row in rows] == [
        (trained, 5000, 5000, False, "every 1000"),
        (trained, 5200, 5200, True, "resume"),
        (trained, 5400, 5400, False, "last"),
    ]


def test_a_checkpoint_is_pulled_and_verified(
    capsys: pytest.CaptureFixture[str], trained: str, storage: FileStorage
) -> None:
    assert command(capsys, "checkpoints", "pull", trained, "--to", "new")[0] == 0
    assert len(Path("new/params").read_bytes()) == 5400
    assert command(capsys, "checkpoints", "pull", trained, "--to", "new")[0] == 2
    assert command(capsys, "checkpoints", "pull", trained, "--step", "5000", "--to", "old")[0] == 0
    assert len(Path("old/params").read_bytes()) == 5000
    code, _, said = command(capsys, "checkpoints", "pull", trained, "--step", "7", "--to", "x")
    assert (code, f"{trained} has no checkpoint 7; there are 5000, 5200, 5400" in said) == (2, True)
    storage.path(RunPaths(trained).checkpoint(5400) + "/params").write_bytes(b"")
    code, _, said = command(capsys, "checkpoints", "verify", trained)
    assert code == 3
    assert "params has 0 bytes, the manifest says 5400; to go on from an earlier one: rm -r /" in said
    assert command(capsys, "checkpoints", "verify", trained, "--step", "5000")[0] == 0


def test_a_run_without_checkpoints(capsys: pytest.CaptureFixture[str], trained: str, storage: FileStorage) -> None:
    shutil.rmtree(storage.path(RunPaths(trained).checkpoints))
    code, out, said = command(capsys, "checkpoints", "list", trained)
    assert (code, out, "has no complete checkpoint" in said) == (0, "", True)
    assert command(capsys, "checkpoints", "verify", trained)[0] == 2
