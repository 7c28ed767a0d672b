"""What tests of gs:// share: the emulator, a bucket of their own, a cache of their own, and little patience."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pi05.storage import connect, lease
from pi05.storage.gcs import GcsStorage
from tests.gcs.emulator import Emulator, Line, new_bucket


@pytest.fixture(scope="session")
def emulator() -> Iterator[Emulator]:
    server = Emulator(Line())
    server.start()
    yield server
    server.line.close()
    server.stop()


@pytest.fixture
def line(emulator: Emulator) -> Iterator[Line]:
    yield emulator.line
    emulator.line.mend()
    emulator.line.rate = None


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep caches of one test away from another's."""
    for name in ("TMPDIR", "XDG_CACHE_HOME"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setattr("tempfile.tempdir", None)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let leases live for seconds instead of a minute."""
    monkeypatch.setattr(lease, "TTL", 3.0)
    monkeypatch.setattr(lease, "BEAT", 0.5)
    monkeypatch.setattr(lease, "_POLL", 0.2)


@pytest.fixture
def url(emulator: Emulator) -> str:
    """A bucket of the test's own."""
    return new_bucket(emulator)


@pytest.fixture
def storage(url: str) -> GcsStorage:
    opened = connect(url)
    assert isinstance(opened, GcsStorage)
    return opened
