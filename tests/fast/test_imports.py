"""`pi05ctl datasets import`: from a folder of others to storage, once, verified, and on to a training."""

import json
import shlex
from pathlib import Path

import pytest

from pi05.config import EvalJob, TrainJob
from pi05.errors import DataError
from pi05.storage import FileStorage
from pi05.tasks import find
from pi05ctl.cli import main as cli
from pi05ctl.errors import UsageError
from pi05ctl.spec.render import around, render, stages
from pi05ctl.spec.runspec import RunSpec
from pi05ctl.spec.settings import Settings
from pi05ctl.stored.imports import Recorded, Wish, _identity, recordings
from tests.foreign import Foreign

NAME = "import-3f2a917c0b1d"
SETTINGS = Settings("file:///x", "python", "python")


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FileStorage:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PI05_STORAGE", (tmp_path / "data").as_uri())
    return FileStorage((tmp_path / "data").as_uri())


def bring(*words: str) -> int:
    return cli.run(["datasets", "import", *words])


def test_a_folder_becomes_a_verified_dataset_once(
    storage: FileStorage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Foreign.usual().write_v21(tmp_path / "theirs")
    assert bring(str(folder), "--task", "pushcube", "--map", "wrist_image=none") == 0
    said = capsys.readouterr()
    (name,) = storage.artefacts("datasets/pushcube")
    assert "is there now, verified: 3 demonstrations, 20 frames" in said.err
    assert storage.verify(f"datasets/pushcube/{name}") == []
    assert bring(str(folder), "--task", "pushcube", "--map", "wrist_image=none") == 0
    assert "is there already, verified" in capsys.readouterr().err
    assert cli.run(["datasets", "show", name]) == 0
    shown = capsys.readouterr().out
    assert "seeds        not known; 3 of 3 episodes were imported" in shown
    assert "source       LeRobot v2.1 folder theirs" in shown
    assert "made in" not in shown
    words = shlex.split(said.out)
    assert words[:4] == ["pi05ctl", "submit", "train", "pushcube"]
    assert words[words.index("--set") + 1] == f"demos.dataset={name}"
    assert words[-1] == "eval.renderer=any"
    assert cli.run(["render", *words[2:], "--only"]) == 0
    job = json.loads(capsys.readouterr().out)
    assert (job["dataset"], job["convention"]["image_size"]) == (f"datasets/pushcube/{name}", 32)
    assert job["convention"]["cameras"] == ["base_camera"]


def test_another_byte_and_another_option_are_another_dataset(tmp_path: Path) -> None:
    folder = Foreign.usual().write_v30(tmp_path / "theirs")
    wishes = [Wish(folder, "pushcube", options) for options in ((), ("--size", "16"), ())]
    first, second = _identity(folder, wishes[0]), _identity(folder, wishes[1])
    (folder / "data/chunk-000").rename(tmp_path / "elsewhere")
    (folder / "data/chunk-000").symlink_to(tmp_path / "elsewhere")
    assert _identity(folder, wishes[2]) == first
    (folder / "README.md").write_text("x")
    assert len({first, second, _identity(folder, wishes[2])}) == 3


def test_what_is_refused_leaves_nothing(
    storage: FileStorage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Foreign.usual(info={"fps": 10}).write_v30(tmp_path / "theirs")
    assert bring(str(folder), "--task", "pushcube") == 3
    assert "has 10 rows a second (fps), the simulator is controlled 20 times" in capsys.readouterr().err
    assert bring(str(folder), "--task", "pushcube", "--map", "x=state") == 2
    assert storage.artefacts("datasets/pushcube") == storage.incomplete("datasets/pushcube") == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nowhere", "--task", "pushcube"), "nowhere does not exist; name the folder of a LeRobot dataset"),
        (("pi05.toml", "--task", "pushcube"), "pi05.toml is a file"),
        ((".", "--task", "pushcube"), "it has no meta/info.json; there is one in theirs"),
        (("theirs", "--task", "pushcub"), "did you mean 'pushcube'"),
    ],
)
@pytest.mark.usefixtures("storage")
def test_a_wrong_word_is_a_usage_error(
    words: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Foreign.usual().write_v30(tmp_path / "theirs")
    (tmp_path / "pi05.toml").write_text("")
    assert bring(*words) == 2
    assert said in capsys.readouterr().err


@pytest.mark.usefixtures("storage")
def test_a_link_that_leads_nowhere_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Foreign.usual().write_v30(tmp_path / "theirs")
    (folder / "data/chunk-000/file-001.parquet").symlink_to(tmp_path / "gone.parquet")
    assert bring(str(folder), "--task", "pushcube") == 3
    assert "file-001.parquet is a link to" in capsys.readouterr().err


@pytest.mark.usefixtures("storage")
def test_an_interpreter_that_cannot_import_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Foreign.usual().write_v30(tmp_path / "theirs")
    (tmp_path / "pi05.toml").write_text('python = "/usr/bin/false"\n')
    assert bring(str(folder), "--task", "pushcube") == 2
    assert "ended with code 1" in capsys.readouterr().err


# ---- Trained on ------------------------------------------------------------------------------------------------------


def spec(kind: str, **overrides: object) -> RunSpec:
    told = {"kind": kind, "task": "pushcube", "preset": "micro", "overrides": {"demos.dataset": NAME, **overrides}}
    return RunSpec.model_validate(told)


def test_a_training_and_its_evaluation_are_of_the_imported_dataset_and_nothing_is_made_first() -> None:
    key = f"datasets/pushcube/{NAME}"
    for kind in ("train", "eval"):
        job = render(spec(kind), SETTINGS).job
        assert isinstance(job, TrainJob | EvalJob)
        assert job.dataset == key
    whole = around(spec("eval"))
    assert whole is not None
    assert [stage.job.kind for stage in stages(render(whole, SETTINGS))] == ["train", "eval"]


def test_tasks_that_are_mixed_in_have_demonstrations_of_their_own() -> None:
    job = render(spec("train", **{"train.mix": ["pullcube"]}), SETTINGS).job
    assert isinstance(job, TrainJob)
    assert NAME in job.dataset
    assert NAME not in job.others[0].dataset


def test_demonstrations_that_are_there_are_not_made(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["render", "demos", "pushcube", "--set", f"demos.dataset={NAME}"]) == 2
    assert "is made already; train on it: pi05ctl submit train pushcube" in capsys.readouterr().err


@pytest.mark.usefixtures("storage")
def test_a_dataset_that_was_not_imported_here_is_named_with_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["submit", "train", "pushcube", "--preset", "micro", "--set", f"demos.dataset={NAME}"]) == 2
    assert "of pushcube there are: none. Import it: pi05ctl datasets import FOLDER" in capsys.readouterr().err


# ---- Recordings of ManiSkill -----------------------------------------------------------------------------------------


def lay(folder: Path, name: str, env: str = "StackCube-v1", mode: str = "pd_joint_pos", success: bool = True) -> Path:
    """Write an h5 and its json where ManiSkill's downloader has them; the h5 is only looked at by the run."""
    path = folder / env / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"h5")
    episodes = [{"episode_seed": seed, "control_mode": mode, "success": success or not seed} for seed in range(3)]
    path.with_suffix(".json").write_text(json.dumps({"env_info": {"env_id": env}, "episodes": episodes}))
    return path


def test_of_a_download_the_file_of_our_control_mode_is_taken(tmp_path: Path) -> None:
    lay(tmp_path, "rl/trajectory.none.pd_joint_delta_pos.physx_cuda.h5", mode="pd_joint_delta_pos")
    planned = lay(tmp_path, "motionplanning/trajectory.h5", success=False)
    lay(tmp_path, "motionplanning/trajectory.h5", env="PushCube-v1")
    assert recordings(tmp_path, find("stackcube")) == Recorded(planned, "pd_joint_pos", 1)
    assert recordings(planned, find("stackcube")) == Recorded(planned, "pd_joint_pos", 1)


def test_files_between_which_nothing_decides_are_named(tmp_path: Path) -> None:
    paths = [lay(tmp_path, f"{name}/trajectory.h5", mode="pd_ee_delta_pose") for name in ("rl", "teleop")]
    with pytest.raises(UsageError, match=f"name one: {paths[0]}, {paths[1]}"):
        recordings(tmp_path, find("stackcube"))
    with pytest.raises(UsageError, match="has recordings of StackCube-v1, pushcube is PushCube-v1"):
        recordings(tmp_path, find("pushcube"))


def test_a_json_that_is_missing_or_no_recorders_is_named(tmp_path: Path) -> None:
    path = lay(tmp_path, "motionplanning/trajectory.h5")
    for content, words in (
        ("{", "is damaged"),
        ("[]", "is not what"),
        ('{"env_info": {"env_id": "StackCube-v1"}}', "is"),
    ):
        path.with_suffix(".json").write_text(content)
        with pytest.raises(DataError, match=f"trajectory.json {words}"):
            recordings(tmp_path, find("stackcube"))
    path.with_suffix(".json").unlink()
    with pytest.raises(DataError, match=r"trajectory.json is missing; .* fetch both"):
        recordings(tmp_path, find("stackcube"))


@pytest.mark.usefixtures("storage")
def test_recordings_on_this_machine_are_not_sent_to_a_cluster(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lay(tmp_path, "motionplanning/trajectory.h5")
    (tmp_path / "pi05.toml").write_text(f'[cluster]\nstorage = "{(tmp_path / "bucket").as_uri()}"\n')
    assert bring(str(tmp_path), "--task", "stackcube", "--target", "cluster") == 2
    assert "the pods of a cluster do not see it" in capsys.readouterr().err
