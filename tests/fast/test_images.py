"""The tags that scripts/images gives: one content, one tag."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("scripts/images", "pyproject.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "pi05").mkdir()
    (tmp_path / "pi05/tasks.py").write_text("ONE = 1\n")
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=x", "-c", "user.email=x@y", "commit", "-qm", "one"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    return tmp_path


def tag(checkout: Path) -> str:
    line = [str(checkout / "scripts/images"), "--show-tag"]
    return subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip()


def test_a_commit_is_its_own_tag(checkout: Path) -> None:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True, check=True)
    assert tag(checkout).endswith(f"-{commit.stdout[:12]}")


def test_changes_that_are_not_committed_have_tags_of_their_own(checkout: Path) -> None:
    tags = [tag(checkout)]
    for change in ("ONE = 2\n", "ONE = 3\n"):
        (checkout / "pi05/tasks.py").write_text(change)
        tags.append(tag(checkout))
    (checkout / "pi05/new.py").write_text("TWO = 2\n")
    tags.append(tag(checkout))
    assert len(set(tags)) == len(tags)
    (checkout / "pi05/new.py").unlink()
    assert tag(checkout) == tags[2]
    (checkout / "pi05/tasks.py").write_text("ONE = 1\n")
    assert tag(checkout) == tags[0]
