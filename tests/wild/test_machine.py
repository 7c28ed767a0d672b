"""Machines as people have them. Each test names the public report that its case is from."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pi05 import variables
from pi05.config import Convention, GemmaConfig, ModelConfig, OptimizerConfig, TrainConfig, TrainJob, VitConfig
from pi05.events import parse
from pi05.storage import MANIFEST, FileStorage, RunPaths, removal
from pi05ctl.views.tables import duration
from tests.recorded import publish
from tests.wild.command import ROOT, Said, pi05ctl, program

RUN = "train-pushcube-000000"
DATASET = "datasets/pushcube/0"
CONVENTION = Convention(cameras=(), state="joints")
GEMMA = GemmaConfig(width=32, depth=1, mlp_dim=64, num_heads=2, num_kv_heads=1, head_dim=16)
MODEL = ModelConfig(
    vlm=GEMMA,
    expert=GEMMA,
    vit=VitConfig(width=16, depth=1, mlp_dim=32, num_heads=1),
    vocab_size=512,
    action_dim=8,
    action_horizon=4,
    max_token_len=64,
)
FAST = "--xla_backend_optimization_level=0"
"""Compiling takes longer than these few steps, so it is told not to optimise."""


def train(storage: FileStorage, steps: int, **variables: str | None) -> Said:
    """Train a very small policy in a process of its own, from where it was."""
    job = TrainJob(
        run=RUN,
        task="pushcube",
        storage=storage.url,
        convention=CONVENTION,
        dataset=DATASET,
        model=MODEL,
        train=TrainConfig(
            steps=steps,
            batch_size=4,
            optimizer=OptimizerConfig(peak_lr=1e-3, warmup_steps=1, decay_steps=4),
            log_every=1,
            save_every=1,
            patience=0,
        ),
    )
    storage.write(RunPaths(RUN).job, job.model_dump_json().encode())
    given = {"XLA_FLAGS": FAST, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", **variables}
    return program("pi05.jobs.train", str(storage.path(RunPaths(RUN).job)), folder=ROOT, **given)


def losses(said: Said) -> dict[int, float]:
    """Return the loss of each step that was told."""
    events = [event for line in said.out.splitlines() if (event := parse(line)) is not None]
    return {event.step: event.metrics["loss"] for event in events if event.step and event.metrics}


def messages(said: Said, kind: str) -> str:
    """Return the messages of one kind of event."""
    events = [event for line in said.out.splitlines() if (event := parse(line)) is not None]
    return "\n".join(event.message or "" for event in events if event.kind == kind)


@pytest.fixture
def storage(tmp_path: Path) -> FileStorage:
    return published(tmp_path / "data")


def published(folder: Path) -> FileStorage:
    """Return a storage with a small dataset."""
    storage = FileStorage(folder.as_uri())
    publish(storage, DATASET, "pushcube", CONVENTION)
    return storage


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[FileStorage, Said]:
    """Return a storage with a training of two steps, and what that said."""
    storage = published(tmp_path_factory.mktemp("trained"))
    return storage, train(storage, 2)


# eelregit/pmwd#33: x64 was set for all programs of a shell.
def test_what_is_left_over_for_jax_changes_no_number_and_is_named(
    trained: tuple[FileStorage, Said], storage: FileStorage
) -> None:
    left_over = {"JAX_ENABLE_X64": "1", "JAX_DEFAULT_PRNG_IMPL": "rbg", "JAX_DEFAULT_MATMUL_PRECISION": "bfloat16"}
    plain, same = trained[1], train(storage, 2, **left_over)
    assert (plain.code, same.code) == (0, 0), same.err
    assert losses(plain) == losses(same) != {}
    assert "JAX_ENABLE_X64=1, " in messages(same, "warning")
    assert "counts for nothing: a job computes as its options say; unset it" in messages(same, "warning")
    assert "counts for nothing" not in messages(plain, "warning")


def test_a_training_does_not_go_on_with_another_precision_unseen(trained: tuple[FileStorage, Said]) -> None:
    other = train(trained[0], 3, XLA_FLAGS=f"{FAST} --xla_allow_excess_precision=false")
    assert other.code == 64
    assert f"(now: XLA_FLAGS=--xla_allow_excess_precision=false {FAST})" in messages(other, "failed")
    assert "Set what it was, or submit a new run" in messages(other, "failed")


def test_where_a_training_computes_and_what_it_dumps_may_change() -> None:
    flags = "--xla_dump_to=/x --xla_b=2 --xla_force_host_platform_device_count=8 --xla_a=1"
    assert variables.told({"XLA_FLAGS": flags, "NVIDIA_TF32_OVERRIDE": "0", "HOME": "/"}) == {
        "XLA_FLAGS": "--xla_a=1 --xla_b=2",
        "NVIDIA_TF32_OVERRIDE": "0",
    }
    obeyed = {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": "/x", "JAX_LOG_COMPILES": "1", "JAX_ENABLE_X64": ""}
    assert variables.pinned({**obeyed, "JAX_DISABLE_JIT": "1"}) == {"JAX_DISABLE_JIT": "1"}


# jax-ml/jax#25315, #23208: JAX_PLATFORMS of another machine.
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_a_platform_that_is_not_here_is_named_with_the_variable(platform: str) -> None:
    script = "from pi05.jobs import gpus\nfrom pi05.errors import JobError\n"
    script += "try:\n    gpus.check(0)\nexcept JobError as error:\n    raise SystemExit(f'{error.exit_code} {error}')"
    asked = {**os.environ, "JAX_PLATFORMS": platform, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=asked, check=False)
    assert done.stderr.splitlines()[-1].startswith("64 JAX does not start (")
    assert f"JAX_PLATFORMS is '{platform}' in this environment, and this machine" in done.stderr
    assert "unset it, or set it to cpu" in done.stderr


def test_a_training_ends_with_words_on_a_platform_that_is_not_here(storage: FileStorage) -> None:
    said = train(storage, 1, JAX_PLATFORMS="cuda")
    assert (said.code, "JAX_PLATFORMS is 'cuda'" in messages(said, "failed")) == (64, True), said.err


# psf/black#2813: `docker run -u 1234`.
def test_a_user_without_home_and_name_is_served(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import pwd\n\ndef getpwuid(uid):\n    raise KeyError(f'getpwuid(): uid not found: {uid}')\n\n"
        "pwd.getpwuid = getpwuid\n"
    )
    nobody = {"HOME": None, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    status = pi05ctl("status", folder=tmp_path, **nobody)
    assert (status.code, "no runs in" in status.err) == (0, True), status.err
    listed = pi05ctl("datasets", "list", folder=tmp_path, **nobody)
    assert listed.code == 0, listed.err
    (tmp_path / "pi05.toml").write_text('storage = "~/runs"\n')
    said = pi05ctl("status", folder=tmp_path, **nobody)
    assert (said.code, said.line) == (
        2,
        "pi05ctl: ~/runs: this machine knows no home that ~ stands for; write the path in full (or set HOME)",
    )


# geopandas/geopandas#3279, astral-sh/uv#19807: in a URL `#` and `?` end the path.
@pytest.mark.parametrize(("letter", "written"), [("#", "%23"), ("?", "%3F")])
def test_two_storages_never_share_a_folder(tmp_path: Path, letter: str, written: str) -> None:
    url = f"file://{tmp_path}/new{letter}1"
    for words in (("status",), ("submit", "demos", "pushcube"), ("doctor", "--target", "local")):
        said = pi05ctl(*words, folder=tmp_path, PI05_STORAGE=url)
        assert said.code in (2, 3)
        assert f"in a URL '{letter}' ends the path. Write {written} for it, or name the folder" in said.out + said.err
    assert not (tmp_path / "new").exists()
    for name in (f"new{letter}1", f"file://{tmp_path}/new{written}1"):
        said = pi05ctl("doctor", "--target", "local", folder=tmp_path, PI05_STORAGE=name)
        assert f"{tmp_path}/new{written}1 can be written" in said.out
    assert not (tmp_path / "new").exists()


def test_what_is_removed_by_hand_is_the_folder_and_not_its_url(tmp_path: Path) -> None:
    storage = FileStorage((tmp_path / "my runs #1").as_uri())
    assert removal(storage.url, "runs/x") == f"rm -r '{tmp_path}/my runs #1/runs/x'"


def test_half_a_url_is_no_folder_of_that_name(tmp_path: Path) -> None:
    said = pi05ctl("status", folder=tmp_path, PI05_STORAGE=f"file:{tmp_path}/x")
    assert (said.code, "use file:///absolute/path" in said.line) == (2, True)


# hukkin/tomli#304, pypa/build#684: editors mark UTF-8, PowerShell writes UTF-16.
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
def test_settings_are_read_as_editors_write_them(tmp_path: Path, encoding: str) -> None:
    text = "\ufeffstorage = 'mine'\r\n" if encoding == "utf-16-be" else "storage = 'mine'\r\n"
    (tmp_path / "pi05.toml").write_bytes(text.encode(encoding))
    said = pi05ctl("status", folder=tmp_path)
    assert (said.code, f"no runs in {(tmp_path / 'mine').as_uri()} yet" in said.err) == (0, True), said.err


def test_settings_that_are_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "pi05.toml").write_bytes("storage = 'größe'".encode("latin-1"))
    said = pi05ctl("status", folder=tmp_path)
    assert (said.code, said.line.startswith(f"pi05ctl: {tmp_path}/pi05.toml is not TOML in UTF-8: ")) == (2, True)


# SModelS/smodels#37, python-poetry/poetry#8825: Lustre without flock.
@pytest.mark.parametrize("number", ["ENOSYS", "EOPNOTSUPP", "ENOLCK"])
def test_a_disk_without_locks_is_named_with_the_folder(tmp_path: Path, number: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import errno, fcntl, os\n\n"
        f"def flock(*_):\n    raise OSError(errno.{number}, os.strerror(errno.{number}))\n\nfcntl.flock = flock\n"
    )
    without = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    said = pi05ctl("submit", "demos", "pushcube", folder=tmp_path, **without)
    assert said.code == 3
    assert f"the file system of {tmp_path}/pi05-data" in said.line
    assert "has no locks" in said.line
    assert "name a storage on another one in pi05.toml" in said.line
    doctor = pi05ctl("doctor", "--target", "local", folder=tmp_path, **without)
    assert (doctor.code, "missing  storage" in doctor.out, "has no locks" in doctor.out) == (3, True, True)


def test_a_disk_without_hard_links_still_has_one_winner(storage: FileStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, os.strerror(1))

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    assert storage.write("a/first", b"one", absent=True)
    assert not storage.write("a/first", b"two", absent=True)
    assert (storage.read("a/first"), storage.children("a")) == (b"one", ["first"])


# A clock that was set back: files are of the future.
def test_what_is_of_the_future_is_new(storage: FileStorage, tmp_path: Path) -> None:
    (tmp_path / "pi05.toml").write_text('storage = "data"\n')
    later = storage.modified(DATASET) + 3 * 86_400
    os.utime(tmp_path / "data" / DATASET / MANIFEST, (later, later))
    said = pi05ctl("datasets", "list", folder=tmp_path)
    assert (said.code, "  0 s" in said.out, "-72" in said.out) == (0, True, False), said.out
    assert [duration(seconds) for seconds in (-260_000.0, -1.0, 0.0)] == ["0 s"] * 3


def test_a_home_in_an_option_or_in_settings_is_expanded(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    said = pi05ctl("weights", "push", "x", "--from=~/there", folder=tmp_path, **home)
    assert (said.code, f"{tmp_path}/there does not exist" in said.line) == (2, True), said.err
    said = pi05ctl("weights", "push", "x", "--from=~nobody-of-this-name/x", folder=tmp_path, **home)
    assert (said.code, "this machine knows no home that ~nobody-of-this-name stands for" in said.line) == (2, True)
    (tmp_path / "pi05.toml").write_text(f'python = "~/{Path(sys.executable).name}"\n')
    said = pi05ctl("doctor", "--target", "local", "-o", "json", folder=tmp_path, **home)
    found = {one["check"]: one["text"] for one in json.loads(said.out)}
    assert found["python"] == f"python {tmp_path}/{Path(sys.executable).name} does not exist"


@pytest.mark.parametrize("package", ["typer", "pydantic"])
def test_a_package_of_another_python_that_we_need_ourselves_is_named(tmp_path: Path, package: str) -> None:
    (tmp_path / f"ros/{package}").mkdir(parents=True)
    (tmp_path / f"ros/{package}/__init__.py").write_text("")
    said = pi05ctl("status", folder=tmp_path, PYTHONPATH=f"{tmp_path}/ros:{ROOT}")
    assert said.code == 3
    assert said.line.startswith("pi05ctl: ")
    assert f"PYTHONPATH={tmp_path}/ros:{ROOT} comes before the packages of {sys.executable}: unset it" in said.line


# RoboStack/ros-noetic#54, stack-of-tasks/pinocchio#2673: ROS' PYTHONPATH.
def test_packages_of_another_python_are_named_with_the_variable(storage: FileStorage, tmp_path: Path) -> None:
    (tmp_path / "ros/numpy").mkdir(parents=True)
    (tmp_path / "ros/numpy/__init__.py").write_text("raise ImportError('numpy was built for another Python')\n")
    ros = {"PYTHONPATH": f"{tmp_path}/ros:{ROOT}"}
    doctor = pi05ctl("doctor", "--target", "local", folder=tmp_path, **ros)
    assert doctor.code == 3
    assert f"missing  python       PYTHONPATH puts {tmp_path}/ros/numpy before the packages of python" in doctor.out
    assert "unset PYTHONPATH (ROS sets it in every shell)" in doctor.out
    command = [sys.executable, "-m", "pi05.jobs.train", str(storage.path("nothing.json"))]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **ros}, check=False, cwd="/")
    last = done.stderr.splitlines()[-1]
    assert (done.returncode, last.startswith("ImportError: ")) == (1, True), done.stderr
    assert f"PYTHONPATH={tmp_path}/ros:{ROOT} comes before the packages of {sys.executable}" in last


def test_an_environment_without_such_a_variable_is_whole(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/my_own_module.py").touch()
    doctor = pi05ctl("doctor", "--target", "local", folder=tmp_path, PYTHONPATH=f"{tmp_path}/mine:{ROOT}")
    assert "ok       python" in doctor.out
