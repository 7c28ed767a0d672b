"""A bucket of Google Cloud Storage as this project uses it: named objects with generations, and errors in our words.

The only importer of google-cloud-storage; imported when a gs:// URL is connected and not before. STORAGE_EMULATOR_HOST
(the library's own word) leads to an emulator, without credentials.
"""

# pyright: reportMissingTypeStubs=false
# The library has no types: what comes out of it is Any, and goes no further than this file.

import base64
import contextlib
import os
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, cast

import google_crc32c
from google.api_core import exceptions as api
from google.auth import exceptions as auth
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage as _storage
from google.cloud.storage.exceptions import DataCorruption
from google.cloud.storage.retry import DEFAULT_RETRY
from requests import RequestException
from requests.adapters import HTTPAdapter

from pi05.errors import AccessError, ConfigError, DataError, TemporaryError, Unreachable

WORKERS = 16
"""Transfers at once. One stream waits for its round trips most of the time; sixteen fill the line of one machine."""

PART = 16 << 20
"""Bytes of one request of a large transfer: what is sent again when it fails. WORKERS of them are in memory at once."""

PATIENCE = 30.0
"""Seconds that one operation is repeated, with growing pauses, before the bucket counts as unreachable."""

_TIMEOUT = (10, 60)
_TIMEOUT_OF_FILES = (10, 300)
"""Seconds to connect, and between two bytes of an answer; a service may take long to put a large file together."""

_ANEW = 2
"""How often an upload that arrived damaged is made anew before that is an error."""

_UNREACHABLE = (
    api.RetryError,
    api.ServerError,
    api.TooManyRequests,
    auth.TransportError,
    RequestException,
    ConnectionError,
    TimeoutError,
)
"""What the library raises when the service does not answer, or answers that it cannot now."""

_FIELDS = "items(name,size,crc32c,generation,updated),prefixes,nextPageToken"
_LOGIN = "gcloud auth application-default login"


class Missing(DataError):
    """There is no such object."""


class Damaged(Unreachable):
    """The bytes that arrived are not those that were sent."""


class Conflict(TemporaryError):
    """The object is of another generation than the writer knew; somebody else has written it."""


@dataclass(frozen=True)
class Object:
    """What a listing tells of an object: its checksum as 8 hex digits, `updated` in the service's own time."""

    name: str
    size: int
    crc32c: str
    generation: int
    updated: float


class Bucket:
    """One bucket.

    Args:
        name: Its name.
        patience: Seconds that an operation is repeated; None: PATIENCE.
    """

    def __init__(self, name: str, patience: float | None = None) -> None:
        self.name, self._patience = name, PATIENCE if patience is None else patience
        self._lock = threading.Lock()
        self._opened: Any = None
        self._known = False  # whether the bucket has answered once
        self._ahead = 0.0  # seconds that the service's clock is ahead of ours
        self._writer = uuid.uuid4().hex

    def now(self) -> float:
        """Return the service's time in seconds since 1970, as of its last answer."""
        return time.time() + self._ahead

    def read(self, name: str, generation: int | None = None) -> bytes:
        """Return an object's content; raise Missing without it."""
        return self.read_at(name, generation)[0]

    def read_at(self, name: str, generation: int | None = None) -> tuple[bytes, int]:
        """Return an object's content and the generation that was read."""
        with self._errors(f"read {name}"):
            blob = self._bucket().blob(name)
            content = blob.download_as_bytes(if_generation_match=generation, raw_download=True, **self._again())
            return content, int(blob.generation)

    def read_range(self, name: str, start: int, stop: int, generation: int) -> bytes:
        """Return bytes `start` to `stop` (exclusive) of one generation."""
        with self._errors(f"read {name}"):
            content = (
                self._bucket()
                .blob(name)
                .download_as_bytes(
                    start=start,
                    end=stop - 1,
                    if_generation_match=generation,
                    raw_download=True,
                    checksum=None,
                    **self._again(),
                )
            )
        if len(content) != stop - start:
            raise Unreachable(f"gs://{self.name}/{name}: {len(content)} of {stop - start} bytes came; try again")
        return content

    def write(self, name: str, data: bytes, generation: int | None = None) -> int:
        """Write an object and return its generation.

        Args:
            name: The object.
            data: Its content.
            generation: Write only over this generation; 0: only when there is none.

        Raises:
            Conflict: It is of another generation.
        """
        with self._errors(f"write {name}"):
            blob = self._bucket().blob(name)
            blob.metadata = {"writer": self._writer}
            blob.upload_from_string(data, checksum="crc32c", if_generation_match=generation, **self._again())
            return int(blob.generation)

    def write_mine(self, name: str, data: bytes, generation: int) -> int:
        """Write like `write`; an answer that was lost, so that a repetition met our own object, is no conflict."""
        try:
            return self.write(name, data, generation)
        except Conflict:
            with self._errors(f"read {name}"):
                blob: Any = self._bucket().get_blob(name, **self._again())
            metadata: Any = blob and blob.metadata
            if metadata and metadata.get("writer") == self._writer and blob.crc32c == _crc32c(data):
                return int(blob.generation)
            raise

    def write_file(self, name: str, path: Path, crc32c: str) -> None:
        """Upload a file; the service refuses it when its bytes do not have the checksum.

        A file larger than PART goes in an upload that is resumed after a failure. What arrives damaged, because an
        upload was resumed at another byte than the service had come to, is sent anew from the start.
        """
        for _ in range(_ANEW):
            with contextlib.suppress(Damaged):
                return self._write_file(name, path, crc32c)
        return self._write_file(name, path, crc32c)

    def _write_file(self, name: str, path: Path, crc32c: str) -> None:
        with self._errors(f"write {name}"):
            large = path.stat().st_size > PART
            blob = self._bucket().blob(name, chunk_size=PART if large else None)
            blob.crc32c = base64.b64encode(bytes.fromhex(crc32c)).decode()
            again = {**self._again(), "timeout": _TIMEOUT_OF_FILES if large else _TIMEOUT}
            blob.upload_from_filename(str(path), content_type="application/octet-stream", checksum="crc32c", **again)
            arrived = _hex(blob.crc32c)
        if arrived != crc32c:
            raise TemporaryError(
                f"gs://{self.name}/{name} arrived with crc32c {arrived}, {path} has {crc32c}; it was changed meanwhile"
            )

    def stat(self, name: str) -> Object | None:
        """Return what is known of an object, or None without it."""
        with self._errors(f"read {name}"):
            blob = self._bucket().get_blob(name, **self._again())
        if blob is None:
            self._must_exist()
        return None if blob is None else _object(blob)

    def objects(self, prefix: str, glob: str | None = None) -> Iterator[Object]:
        """Yield every object whose name begins with `prefix`; `glob` lets the service leave out most of the others."""
        with self._errors(f"list {prefix}"):
            blobs = self._client().list_blobs(
                self.name, prefix=prefix, match_glob=glob, fields=_FIELDS, **self._again()
            )
            for blob in blobs:
                yield _object(blob)
        self._known = True

    def names(self, folder: str) -> list[str]:
        """Return the names directly under a folder, which ends with a slash."""
        with self._errors(f"list {folder}"):
            blobs = self._client().list_blobs(self.name, prefix=folder, delimiter="/", fields=_FIELDS, **self._again())
            found = {str(blob.name) for blob in blobs}
            found |= {str(name).rstrip("/") for name in blobs.prefixes}
        self._known = True
        return sorted(name.removeprefix(folder) for name in found if name != folder)

    def remove(self, name: str, generation: int | None = None) -> None:
        """Delete an object, if it exists."""
        with contextlib.suppress(Missing), self._errors(f"delete {name}"):
            self._bucket().blob(name).delete(if_generation_match=generation, **self._again())

    def _again(self) -> dict[str, Any]:
        """Return how long an operation may take and how it is repeated."""
        return {"retry": cast("Any", DEFAULT_RETRY).with_timeout(self._patience), "timeout": _TIMEOUT}

    def _bucket(self) -> Any:
        return self._client().bucket(self.name)

    def _client(self) -> Any:
        """Return the library's client, made once."""
        with self._lock:
            if self._opened is None:
                self._opened = self._connect()
            return self._opened

    def _connect(self) -> Any:
        emulator = bool(os.environ.get("STORAGE_EMULATOR_HOST"))
        credentials: Any = AnonymousCredentials() if emulator else None
        client = cast("Any", _storage).Client(project="emulator" if emulator else None, credentials=credentials)
        session = client._http
        for scheme in ("https://", "http://"):
            session.mount(scheme, HTTPAdapter(pool_connections=4, pool_maxsize=2 * WORKERS))
        session.hooks["response"].append(self._note_time)
        return client

    def _note_time(self, response: Any, *_: Any, **__: Any) -> None:
        """Learn the service's clock from an answer, so that a lease does not depend on ours."""
        with contextlib.suppress(KeyError, ValueError):
            self._ahead = parsedate_to_datetime(response.headers["Date"]).timestamp() - time.time()

    def _must_exist(self) -> None:
        """Raise AccessError when there is no such bucket: it answers like an object that does not exist."""
        if not self._known:
            next(iter(self.objects("")), None)
            self._known = True

    @contextlib.contextmanager
    def _errors(self, action: str) -> Generator[None]:
        """Turn what the library raises into what was wanted, what is required and what to do."""
        where = f"gs://{self.name}"
        try:
            yield
        except api.PreconditionFailed as error:
            raise Conflict(f"{where}: could not {action}: somebody else has written it") from error
        except api.NotFound as error:
            raise self._not_found(action, _message(error)) from error
        except (api.Forbidden, api.Unauthorized) as error:
            raise AccessError(
                f"{where}: not allowed to {action}: {_message(error)}. Required: roles/storage.objectUser on the "
                f"bucket. As a person: {_LOGIN}; in a pod: bind its service account to that role"
            ) from error
        except (auth.DefaultCredentialsError, auth.RefreshError) as error:
            raise _credentials(where, action, error) from error
        except api.BadRequest as error:
            kind = Damaged if "crc32c" in _message(error).lower() else ConfigError
            raise kind(f"{where}: could not {action}: {_message(error)}") from error
        except DataCorruption as error:
            raise Damaged(f"{where}: could not {action}: {_message(error)}; try again") from error
        except _UNREACHABLE as error:
            raise Unreachable(
                f"{where}: could not {action} for {self._patience:.0f} s: {_message(error)}; "
                "look whether the network and the service are up, then try again"
            ) from error

    def _not_found(self, action: str, message: str) -> Exception:
        """Tell a missing object from a missing bucket."""
        listing = action.startswith("list ")
        if not listing and "bucket does not exist" not in message:
            try:
                self._must_exist()
            except AccessError as error:
                return error
            return Missing(f"gs://{self.name}: could not {action}: there is no such object")
        return AccessError(
            f"gs://{self.name}: there is no such bucket; make it (gcloud storage buckets create gs://{self.name}) "
            "or name another one"
        )


def _credentials(where: str, action: str, error: Any) -> AccessError | TemporaryError:
    """Return the error of somebody whose credentials are missing or refused."""
    if getattr(error, "retryable", False):
        return Unreachable(f"{where}: could not {action}: the credentials could not be renewed now: {error}")
    reason = " ".join(str(error).split())
    return AccessError(f"{where}: could not {action}: no usable credentials: {reason[:300]}; log in with: {_LOGIN}")


def _message(error: Any) -> str:
    """Return the service's own words without the request around them."""
    cause = getattr(error, "cause", None)
    if cause is not None:
        return _message(cause)
    details: Callable[[], Any] | None = getattr(getattr(error, "response", None), "json", None)
    with contextlib.suppress(Exception):
        if details is not None:
            return str(details()["error"]["message"])
    return " ".join(str(getattr(error, "message", error)).split())[:300] or type(error).__name__


def _object(blob: Any) -> Object:
    return Object(
        name=str(blob.name),
        size=int(blob.size),
        crc32c=_hex(blob.crc32c),
        generation=int(blob.generation),
        updated=float(blob.updated.timestamp()),
    )


def _hex(checksum: str | None) -> str:
    """Return the service's base64 checksum as 8 hex digits."""
    return base64.b64decode(checksum or "").hex()


def _crc32c(data: bytes) -> str:
    """Return the checksum of bytes as the service writes it."""
    checksum: Any = google_crc32c.Checksum(data)
    return base64.b64encode(checksum.digest()).decode()
