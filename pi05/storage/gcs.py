"""gs://: a bucket of Google Cloud Storage. The version of an object is its generation.

The only importer of google-cloud-storage; imported when a gs:// URL is connected and not before. STORAGE_EMULATOR_HOST
(the library's own word) leads to an emulator, without credentials; GOOGLE_CLOUD_QUOTA_PROJECT names the project that
pays, where the bucket says that the reader does.
"""

# pyright: reportMissingTypeStubs=false
# The library has no types: what comes out of it is Any, and goes no further than this file.

import base64
import contextlib
import os
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

from google.api_core import exceptions as api
from google.auth import exceptions as auth
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage as _storage
from google.cloud.storage.exceptions import DataCorruption
from google.cloud.storage.retry import DEFAULT_RETRY
from requests import RequestException
from requests.adapters import HTTPAdapter
from requests.exceptions import InvalidJSONError, JSONDecodeError

from pi05.errors import AccessError, ConfigError, TemporaryError, Unreachable
from pi05.storage import bucket
from pi05.storage.bucket import PART, WORKERS, Bucket, Conflict, Damaged, Missing, Object, chosen

_TIMEOUT = (10, 60)
_TIMEOUT_OF_FILES = (10, 300)
"""Seconds to connect, and between two bytes of an answer; a service may take long to put a large file together."""

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
_PAYS = "GOOGLE_CLOUD_QUOTA_PROJECT"
_LOGIN = "gcloud auth application-default login"
_OVERLAY = "k8s/overlays/gke"


class GcsBucket(Bucket):
    """One bucket of Google's; for its arguments see Bucket."""

    scheme = "gs"

    def __init__(self, name: str, patience: float | None = None) -> None:
        super().__init__(name, patience)
        self._lock = threading.Lock()
        self._opened: Any = None
        self._known = False  # whether the bucket has answered once

    def read_at(self, name: str, version: str | None = None) -> tuple[bytes, str]:
        with self._errors(f"read {name}", version is not None):
            blob = self._bucket().blob(name)
            content = blob.download_as_bytes(
                if_generation_match=_generation(version), raw_download=True, **self._again()
            )
        if blob.generation is None:
            raise self._no_answer(f"read {name}", content)
        return content, str(blob.generation)

    def read_range(self, name: str, start: int, stop: int, version: str) -> bytes:
        with self._errors(f"read {name}", conditional=True):
            content = (
                self._bucket()
                .blob(name)
                .download_as_bytes(
                    start=start,
                    end=stop - 1,
                    if_generation_match=_generation(version),
                    raw_download=True,
                    checksum=None,
                    **self._again(),
                )
            )
        if len(content) != stop - start:
            raise Unreachable(f"{self.url}/{name}: {len(content)} of {stop - start} bytes came; try again")
        return content

    def write(self, name: str, data: bytes, version: str | None = None) -> str:
        with self._errors(f"write {name}", version is not None):
            blob = self._bucket().blob(name)
            blob.metadata = {"writer": self.writer}
            blob.upload_from_string(data, checksum="crc32c", if_generation_match=_generation(version), **self._again())
            return str(blob.generation)

    def mine(self, name: str) -> Object | None:
        with self._errors(f"read {name}"):
            blob: Any = self._bucket().get_blob(name, **self._again())
        metadata: Any = blob and blob.metadata
        return _object(blob) if metadata and metadata.get("writer") == self.writer else None

    def send(self, name: str, path: Path, crc32c: str) -> None:
        with self._errors(f"write {name}"):
            large = path.stat().st_size > PART
            blob = self._bucket().blob(name, chunk_size=PART if large else None)
            blob.crc32c = base64.b64encode(bytes.fromhex(crc32c)).decode()
            again = {**self._again(), "timeout": _TIMEOUT_OF_FILES if large else _TIMEOUT}
            blob.upload_from_filename(str(path), content_type="application/octet-stream", checksum="crc32c", **again)
            arrived = _hex(blob.crc32c)
        if arrived != crc32c:
            raise TemporaryError(
                f"{self.url}/{name} arrived with crc32c {arrived}, {path} has {crc32c}; it was changed meanwhile"
            )

    def stat(self, name: str) -> Object | None:
        with self._errors(f"read {name}"):
            blob = self._bucket().get_blob(name, **self._again())
        if blob is None:
            self._must_exist()
        return None if blob is None else _object(blob)

    def objects(self, prefix: str, checksums: bool = False) -> Iterator[Object]:
        del checksums  # a listing has them anyhow
        return self._listed(prefix)

    def matching(self, folder: str, names: Sequence[str]) -> list[Object]:
        """Let the service select: a listing for each name, all at once. An emulator may send more."""
        with ThreadPoolExecutor(WORKERS) as pool:
            several = pool.map(list[Object], [self._listed(folder, f"{folder}*/{name}") for name in names])
            return [one for name, found in zip(names, several, strict=True) for one in chosen(found, folder, name)]

    def _listed(self, prefix: str, glob: str | None = None) -> Iterator[Object]:
        with self._errors(f"list {prefix}"):
            blobs = self._client().list_blobs(
                self._bucket(), prefix=prefix, match_glob=glob, fields=_FIELDS, **self._again()
            )
            for blob in blobs:
                yield _object(blob)
        self._known = True

    def names(self, folder: str) -> list[str]:
        with self._errors(f"list {folder}"):
            blobs = self._client().list_blobs(
                self._bucket(), prefix=folder, delimiter="/", fields=_FIELDS, **self._again()
            )
            found = {str(blob.name) for blob in blobs}
            found |= {str(name).rstrip("/") for name in blobs.prefixes}
        self._known = True
        return sorted(name.removeprefix(folder) for name in found if name != folder)

    def remove(self, name: str, version: str | None = None) -> None:
        with contextlib.suppress(Missing), self._errors(f"delete {name}", version is not None):
            self._bucket().blob(name).delete(if_generation_match=_generation(version), **self._again())

    def _again(self) -> dict[str, Any]:
        """Return how long an operation may take and how it is repeated."""
        return {"retry": cast("Any", DEFAULT_RETRY).with_timeout(self.patience), "timeout": _TIMEOUT}

    def _bucket(self) -> Any:
        return self._client().bucket(self.name, user_project=os.environ.get(_PAYS) or None)

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
        self.heard(response.headers.get("Date"))

    def _must_exist(self) -> None:
        """Raise AccessError when there is no such bucket: it answers like an object that does not exist."""
        if not self._known:
            next(iter(self.objects("")), None)
            self._known = True

    @contextlib.contextmanager
    def _errors(self, action: str, conditional: bool = False) -> Generator[None]:
        """Turn what the library raises into what was wanted, what is required and what to do.

        Args:
            action: `read x`, for people.
            conditional: Whether it was only to be done with an object of a certain version.
        """
        where = self.url
        try:
            yield
        except api.NotFound as error:
            raise self._not_found(action, _message(error)) from error
        except (auth.DefaultCredentialsError, auth.RefreshError) as error:
            raise _credentials(where, action, error) from error
        except DataCorruption as error:
            raise Damaged(f"{where}: could not {action}: {_message(error)}; try again") from error
        except (JSONDecodeError, InvalidJSONError) as error:
            raise self._no_answer(action, getattr(error, "doc", "").encode()) from error
        except _UNREACHABLE as error:
            raise Unreachable(
                f"{where}: could not {action} for {self.patience:.0f} s: {_message(error)}; "
                "look whether the network and the service are up, then try again"
            ) from error
        except api.GoogleAPICallError as error:
            raise self._refusal(action, error, conditional) from error

    def _refusal(self, action: str, error: Any, conditional: bool) -> Exception:
        """Return what the service's own answer means: it does not want to, and has said why."""
        code, reason = int(error.code or 0), _message(error)
        tried, lower = f"{self.url}: could not {action}: {reason}", reason.lower()
        if code == 412 and conditional and "constraint" not in lower:
            return Conflict(f"{self.url}: could not {action}: somebody else has written it")
        if code == 400 and "crc32c" in lower:
            return Damaged(tried)
        if "requester pays" in lower or "user project" in lower:
            return AccessError(
                f"{tried}; name the project that pays: {_PAYS}=PROJECT here, and env = {{ {_PAYS} = ... }} of "
                "[cluster] for pods; its account needs roles/serviceusage.serviceUsageConsumer on that project"
            )
        if code == 401 or (code == 403 and _is_about_rights(lower)):
            return AccessError(
                f"{self.url}: not allowed to {action}: {reason}. Required: roles/storage.objectUser on the "
                f"bucket. As a person: {_LOGIN}; in a pod: bind its service account to that role"
            )
        if code == 407:
            return AccessError(f"{tried}; a proxy asks for a password: give it in HTTPS_PROXY, or set NO_PROXY")
        if code == 408 or 300 <= code < 400:
            return self._no_answer(action, reason.encode())
        return ConfigError(tried) if code == 400 else AccessError(tried)

    def _no_answer(self, action: str, content: bytes) -> Unreachable:
        """Return the error for an answer that is not the service's: it may be there again later."""
        what = "HTML" if content.lstrip()[:1] == b"<" else "something"
        return Unreachable(
            f"{self.url}: could not {action}: {what} came that is no answer of the service; a proxy or a sign-in page "
            "between? Look at HTTPS_PROXY and NO_PROXY"
        )

    def _not_found(self, action: str, message: str) -> Exception:
        """Tell a missing object from a missing bucket."""
        listing = action.startswith("list ")
        if not listing and "bucket does not exist" not in message:
            try:
                self._must_exist()
            except AccessError as error:
                return error
            return Missing(f"{self.url}: could not {action}: there is no such object")
        return AccessError(
            f"{self.url}: there is no such bucket; make it (gcloud storage buckets create {self.url}) "
            "or name another one"
        )


def _is_about_rights(reason: str) -> bool:
    """Return whether a refusal is for want of a role, which somebody can give; others are not mended by one."""
    return any(words in reason for words in ("does not have", "permission", "access denied", "anonymous caller"))


def _credentials(where: str, action: str, error: Any) -> AccessError | TemporaryError:
    """Return the error of somebody whose credentials are missing or refused, or cannot be had now."""
    reason = " ".join(str(error).split())[:300]
    if _away(error):
        return Unreachable(f"{where}: could not {action}: the identity server does not answer now: {reason}; try again")
    said = f"{where}: could not {action}: no usable credentials: {reason}"
    if isinstance(error, auth.RefreshError) or os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"):
        return AccessError(f"{said}; {bucket.remedy(_LOGIN, _OVERLAY)}")
    return bucket.without_credentials(said, _LOGIN, _OVERLAY)


def _away(error: Any) -> bool:
    """Return whether the identity server did not answer, or not now; the library hides that in what it cannot do."""
    if getattr(error, "retryable", False):
        return True
    cause = error.__cause__
    if not isinstance(cause, auth.TransportError):
        return False
    status = getattr((cause.args or (None,))[-1], "status", 503)  # its answer, if there was one, comes last
    return status == 429 or status >= 500


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
        version=str(blob.generation),
        updated=float(blob.updated.timestamp()),
    )


def _generation(version: str | None) -> int | None:
    """Return what the service calls a version; 0 is that of an object that does not exist."""
    return None if version is None else int(version or 0)


def _hex(checksum: str | None) -> str:
    """Return the service's base64 checksum as 8 hex digits."""
    return base64.b64decode(checksum or "").hex()
