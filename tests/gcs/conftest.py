"""What tests of gs:// and s3:// share: the servers, a bucket of their own, a cache of their own, and little patience.

Every test that asks for one of these fixtures runs on both stores, first all of them on the one, then on the other.
`@pytest.mark.store("gs")` leaves the other one out: where it has a way of its own, or where a test that takes long says
nothing of the store.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pi05.storage import connect, lease
from pi05.storage.remote import BucketStorage
from tests.gcs.emulator import Cloud, Emulator, Line, Server, new_bucket


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is for the other store."""
    out = [item for item in items if isinstance(item, pytest.Function) and _is_for_another(item)]
    config.hook.pytest_deselected(items=out)
    items[:] = [item for item in items if item not in out]


def _is_for_another(item: pytest.Function) -> bool:
    mark = item.get_closest_marker("store")
    if mark is None:
        return False
    server: Any = item.callspec.params["emulator"]
    return server.scheme != mark.args[0]


@pytest.fixture(scope="session", params=[Emulator, Cloud], ids=["gs", "s3"])
def emulator(request: pytest.FixtureRequest) -> Iterator[Server]:
    server: Server = request.param(Line())
    server.start()
    yield server
    server.line.close()
    server.stop()


@pytest.fixture
def line(emulator: Server) -> Iterator[Line]:
    yield emulator.line
    emulator.line.mend()
    emulator.line.rate = emulator.line.garbled = None


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
def url(emulator: Server) -> str:
    """A bucket of the test's own."""
    return new_bucket(emulator)


@pytest.fixture
def storage(url: str) -> BucketStorage:
    opened = connect(url)
    assert isinstance(opened, BucketStorage)
    return opened
