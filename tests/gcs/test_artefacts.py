"""pi05ctl's weights and checkpoints on gs://."""

from pathlib import Path

import pytest

from pi05.errors import DataError
from pi05.storage import RunPaths
from pi05.storage.remote import BucketStorage
from pi05ctl.errors import UsageError
from pi05ctl.stored import artefacts


@pytest.fixture
def orbax(tmp_path: Path) -> Path:
    folder = tmp_path / "pi05_base/params"
    folder.mkdir(parents=True)
    (folder / "_METADATA").write_text("{}")
    (folder / "data").write_bytes(b"weights")
    return folder.parent


def test_weights_go_there_and_back(storage: BucketStorage, orbax: Path, tmp_path: Path) -> None:
    assert not artefacts.push_weights(storage, "pi05_base", orbax).already
    artefacts.verify_weights(storage, "pi05_base")
    assert artefacts.push_weights(storage, "pi05_base", orbax).already
    artefacts.pull_weights(storage, "pi05_base", tmp_path / "back")
    assert (tmp_path / "back/params/data").read_bytes() == b"weights"
    assert artefacts.push_weights(storage, "pi05_base", tmp_path / "back").already
    with pytest.raises(UsageError, match="exists and is not empty"):
        artefacts.pull_weights(storage, "pi05_base", tmp_path / "back")


def test_damaged_ones_are_named_and_replaced(storage: BucketStorage, orbax: Path, tmp_path: Path) -> None:
    artefacts.push_weights(storage, "pi05_base", orbax)
    storage.write("weights/pi05_base/params/data", b"weighty")
    with pytest.raises(
        DataError, match=r"params/data has crc32c .*, the manifest says .* weights push pi05_base --from"
    ):
        artefacts.verify_weights(storage, "pi05_base")
    with pytest.raises(DataError, match="cannot be used: params/data has crc32c"):
        artefacts.pull_weights(storage, "pi05_base", tmp_path / "back")
    assert not (tmp_path / "back").exists()
    assert not artefacts.push_weights(storage, "pi05_base", orbax).already
    artefacts.verify_weights(storage, "pi05_base")


def test_checkpoints_are_listed_and_pulled(storage: BucketStorage, tmp_path: Path) -> None:
    paths = RunPaths("train-pushcube-333333")
    storage.write(paths.job, b'{"train": {"keep_every": 10}}')
    for step in (10, 13):
        with storage.stage(paths.checkpoint(step)) as folder:
            (folder / "params").write_bytes(b"x" * step)
    storage.write(f"{paths.checkpoint(20)}/params", b"of an upload that was killed")
    found = artefacts.checkpoints(storage, paths.run)
    assert [(one.step, one.size, one.kept) for one in found] == [(10, 10, "every 10"), (13, 13, "last")]
    artefacts.pull(storage, artefacts.checkpoint_key(storage, paths.run, None), tmp_path / "new")
    assert len((tmp_path / "new/params").read_bytes()) == 13
    storage.delete(f"{paths.checkpoint(13)}/params")
    command = {"gs": "gcloud storage rm -r gs://", "s3": "aws s3 rm --recursive s3://"}[storage.url[:2]]
    with pytest.raises(DataError, match=f"params is missing; to go on from an earlier one: {command}"):
        artefacts.verify_checkpoint(storage, paths.checkpoint(13))
