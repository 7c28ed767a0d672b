"""s3://: a bucket of Amazon S3, or of a store that speaks its protocol. The version of an object is its ETag.

The only importer of botocore; imported when an s3:// URL is connected and not before. Credentials, region and endpoint
are the library's own matter: environment (AWS_ENDPOINT_URL leads to another store), profile, and in pods of EKS the
service account.

The service compares everything with a CRC-32C on arrival. Of an object that came in one request it tells that; of one
that came in parts, that of their checksums. So the whole file's is written beside it, and believed where the service
says that it has checked the parts. Objects of which it says nothing (another program's, or in a store that does not
check) are read: what counts as verified is.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# The library makes its methods at run time: what comes out of it is Any, and goes no further than this file.

import base64
import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import botocore.session
import google_crc32c
from botocore import exceptions as aws
from botocore import parsers as aws_parsers
from botocore.config import Config

from pi05.errors import AccessError, ConfigError, JobError, TemporaryError, Unreachable
from pi05.storage import bucket
from pi05.storage.bucket import ABSENT, PART, WORKERS, Bucket, Conflict, Damaged, Missing, Object, checksum, chosen

_CONFIG = Config(
    connect_timeout=10,
    read_timeout=60,
    max_pool_connections=2 * WORKERS,
    tcp_keepalive=True,
    retries={"total_max_attempts": 1},  # those of _call, which end by the clock
    request_checksum_calculation="when_required",  # we send our own; other stores do not know the library's
    response_checksum_validation="when_required",
)
_MOST_PARTS = 10_000
"""Of one object; a larger one has larger parts."""
_NO_VERSION = f'"{"0" * 32}"'
"""What looks like an ETag and is that of no object."""
_WHOLE = "crc32c"
"""Name under which an object in parts has the checksum of the whole."""
_PAGES = 4
"""Pages of 1,000 objects that are listed one after the other before the rest is shared out."""
_PAUSES = (0.2, 5.0)
"""Seconds before the first repetition, and the longest."""

_LATER = {
    "ConditionalRequestConflict",
    "IDPCommunicationError",
    "OperationAborted",
    "RequestTimeTooSkewed",  # a process that was suspended sends what it has signed before
    "RequestTimeout",
    "SlowDown",
}
"""Codes of what is worth another try, beside every answer with 429 or 5xx."""
_DAMAGED = {
    "BadDigest",
    "InvalidDigest",
    "InvalidPart",
    "NoSuchUpload",
    "XAmzContentChecksumMismatch",
    "XAmzContentSHA256Mismatch",
}
_STRANGERS = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "InvalidIdentityToken",
    "TokenRefreshRequired",
}
"""Codes of credentials that are refused, whatever they would allow."""
_RIGHTS_DENIED = {"AccessDenied", "Forbidden", "403", ""}
"""Codes of a refusal that a right mends; others have reasons of their own, such as an account that is not paid for."""
_ELSEWHERE = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}

_UNREACHABLE = (
    aws.ConnectionError,
    aws.HTTPClientError,
    aws.IncompleteReadError,
    aws.CredentialRetrievalError,
    aws.MetadataRetrievalError,
    ConnectionError,
    TimeoutError,
)
"""What the library raises when the service, or that of the identity, does not answer."""
_NOBODY = (
    aws.NoCredentialsError,
    aws.PartialCredentialsError,
    aws.ProfileNotFound,
    aws.ConfigParseError,
    aws.SSOError,
    aws.TokenRetrievalError,
    aws.InvalidConfigError,
)
_LOGIN = "aws sso login (or aws configure), or set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_OVERLAY = "k8s/overlays/eks"
_RIGHTS = "s3:GetObject, s3:PutObject, s3:DeleteObject and s3:AbortMultipartUpload on its objects, s3:ListBucket on it"

Answer = TypeVar("Answer")

logging.getLogger("botocore").setLevel(logging.WARNING)  # it tells everybody where it found the credentials


class S3Bucket(Bucket):
    """One bucket; for its arguments see Bucket."""

    scheme = "s3"

    def __init__(self, name: str, patience: float | None = None) -> None:
        super().__init__(name, patience)
        self._lock = threading.Lock()
        self._opened: Any = None
        self._known = False  # whether the bucket is there
        self._obeys = False  # whether the service has kept to a condition once

    def read_at(self, name: str, version: str | None = None) -> tuple[bytes, str]:
        def read() -> tuple[bytes, str]:
            answer = self._client().get_object(**self._named(name), **_only(version), ChecksumMode="ENABLED")
            content = answer["Body"].read()
            said = _checksum(answer)
            if said and said != checksum(content):
                raise Damaged(f"{self.url}/{name} arrived with another checksum than {said}; try again")
            return content, str(answer["ETag"])

        return self._call(f"read {name}", read)

    def read_range(self, name: str, start: int, stop: int, version: str) -> bytes:
        def read() -> bytes:
            answer = self._client().get_object(**self._named(name), **_only(version), Range=f"bytes={start}-{stop - 1}")
            return answer["Body"].read()

        content = self._call(f"read {name}", read)
        if len(content) != stop - start:
            raise Unreachable(f"{self.url}/{name}: {len(content)} of {stop - start} bytes came; try again")
        return content

    def write(self, name: str, data: bytes, version: str | None = None) -> str:
        try:
            written = self._put(name, data, Metadata={"writer": self.writer}, **_only(version))
        except Missing as error:  # there is none to write over
            raise Conflict(f"{self.url}: could not write {name}: somebody else has deleted it") from error
        if version == ABSENT and not self._obeys:
            self._must_obey(name, data)
        return written

    def _must_obey(self, name: str, data: bytes) -> None:
        """Raise ConfigError when the service writes over an object that it was told to leave alone.

        Stores that do not know conditions ignore them, and two pods would write one run.
        """
        for word, version in (("If-None-Match", ABSENT), ("If-Match", _NO_VERSION)):
            with contextlib.suppress(Conflict):
                self._put(name, data, Metadata={"writer": self.writer}, **_only(version))
                raise ConfigError(
                    f"{self.url}: this store ignores {word}, so nothing keeps two pods from writing one run; use one "
                    "with conditional writes, as Amazon S3 has them"
                )
        self._obeys = True

    def mine(self, name: str) -> Object | None:
        with contextlib.suppress(Missing):
            answer = self._call(f"read {name}", lambda: self._client().head_object(**self._named(name)))
            return self._verified(name) if answer["Metadata"].get("writer") == self.writer else None
        return None

    def send(self, name: str, path: Path, crc32c: str) -> None:
        if path.stat().st_size > PART:
            return self._send_parts(name, path, crc32c)
        content = path.read_bytes()
        self._unchanged(name, path, crc32c, checksum(content))
        self._put(name, content)

    def _put(self, name: str, data: bytes, **options: Any) -> str:
        """Write an object whose bytes the service compares with their checksum; return its version."""
        answer = self._call(
            f"write {name}",
            lambda: self._client().put_object(
                **self._named(name),
                Body=data,
                ChecksumCRC32C=_base64(checksum(data)),
                ContentType="application/octet-stream",
                **options,
            ),
        )
        return str(answer["ETag"])

    def _send_parts(self, name: str, path: Path, crc32c: str) -> None:
        """Upload a large file part after part; one that fails is sent again, and nothing is left of a failed upload."""
        begun = self._call(
            f"write {name}",
            lambda: self._client().create_multipart_upload(
                **self._named(name),
                ChecksumAlgorithm="CRC32C",
                ContentType="application/octet-stream",
                Metadata={_WHOLE: crc32c},
            ),
        )
        upload = {**self._named(name), "UploadId": begun["UploadId"]}
        try:
            parts, found = self._sent(f"write {name}", upload, path)
            self._unchanged(name, path, crc32c, found)
            self._call(
                f"write {name}",
                lambda: self._client().complete_multipart_upload(**upload, MultipartUpload={"Parts": parts}),
            )
        except BaseException:
            with contextlib.suppress(Exception):  # best effort: a rule of the bucket removes what is left
                self._client().abort_multipart_upload(**upload)
            raise

    def _sent(self, action: str, upload: dict[str, Any], path: Path) -> tuple[list[dict[str, Any]], str]:
        """Upload the parts of a file; return what is told of them in the end, and the checksum of the file as read."""
        size = max(PART, -(-path.stat().st_size // _MOST_PARTS))
        parts: list[dict[str, Any]] = []
        whole: Any = google_crc32c.Checksum()
        with path.open("rb") as file:
            while content := file.read(size):
                whole.update(content)
                part: dict[str, Any] = {"PartNumber": len(parts) + 1, "ChecksumCRC32C": _base64(checksum(content))}
                answer = self._call(
                    action,
                    lambda body=content, part=part: self._client().upload_part(
                        **upload, **part, ChecksumAlgorithm="CRC32C", Body=body
                    ),
                )
                parts.append({**part, "ETag": answer["ETag"]})
        return parts, whole.digest().hex()

    def _unchanged(self, name: str, path: Path, wanted: str, found: str) -> None:
        if found != wanted:
            raise TemporaryError(
                f"{self.url}/{name}: {path} has crc32c {found}, it had {wanted}; it was changed meanwhile"
            )

    def stat(self, name: str) -> Object | None:
        try:
            answer = self._call(
                f"read {name}", lambda: self._client().head_object(**self._named(name), ChecksumMode="ENABLED")
            )
        except Missing:
            return None
        return Object(
            name=name,
            size=int(answer["ContentLength"]),
            version=str(answer["ETag"]),
            updated=float(answer["LastModified"].timestamp()),
            crc32c=_checksum(answer),
        )

    def _verified(self, name: str) -> Object | None:
        """Return what `stat` does; an object of which the service does not tell the checksum is read."""
        found = self.stat(name)
        if found is None or found.crc32c:
            return found

        def read() -> str:
            whole: Any = google_crc32c.Checksum()
            answer = self._client().get_object(**self._named(name), **_only(found.version))
            for piece in answer["Body"].iter_chunks(1 << 20):
                whole.update(piece)
            return whole.digest().hex()

        return replace(found, crc32c=self._call(f"read {name}", read))

    def objects(self, prefix: str, checksums: bool = False) -> Iterator[Object]:
        """List; checksums are asked for object by object, many at a time. One that is deleted meanwhile is left out."""
        found = (one for page in self._pages(prefix) for one in page)
        if not checksums:
            yield from found
            return
        with ThreadPoolExecutor(WORKERS) as pool:
            names = (one.name for one in found)
            yield from (one for one in pool.map(self._verified, names) if one is not None)

    def matching(self, folder: str, names: Sequence[str]) -> list[Object]:
        """List everything, as the service does not select; what is long is shared out among several listings."""
        pages = self._pages(folder)
        found = [one for page in islice(pages, _PAGES) for one in page]
        if next(pages, None) is not None:
            found = self._shared_out(folder)
        return [one for name in names for one in chosen(found, folder, name)]

    def _shared_out(self, folder: str) -> list[Object]:
        """List a folder of many pages: several listings at a time, each from one name directly under it to another."""
        names = self.names(folder)
        edges = [f"{folder}{name}" for name in names[:: -(-len(names) // WORKERS)]][1:]

        def between(edge: tuple[str, str]) -> list[Object]:
            found: list[Object] = []
            for page in self._pages(folder, after=edge[0]):
                found += [one for one in page if not edge[1] or one.name <= edge[1]]
                if edge[1] and page[-1].name > edge[1]:
                    break
            return found

        with ThreadPoolExecutor(WORKERS) as pool:
            several = pool.map(between, zip(["", *edges], [*edges, ""], strict=True))
            return [one for found in several for one in found]

    def _pages(self, prefix: str, after: str = "") -> Iterator[list[Object]]:
        """Yield the objects whose names begin with `prefix` and come after a name, a page of up to 1,000 at a time."""
        asked = {"Bucket": self.name, "Prefix": prefix, **({"StartAfter": after} if after else {})}
        while asked:
            answer = self._call(f"list {prefix}", lambda asked=asked: self._client().list_objects_v2(**asked))
            if found := [_listed(one) for one in answer.get("Contents", [])]:
                yield found
            following = answer.get("NextContinuationToken")
            asked = {**asked, "ContinuationToken": following} if following else {}

    def names(self, folder: str) -> list[str]:
        found: set[str] = set()
        asked = {"Bucket": self.name, "Prefix": folder, "Delimiter": "/"}
        while asked:
            answer = self._call(f"list {folder}", lambda asked=asked: self._client().list_objects_v2(**asked))
            found |= {str(one["Key"]) for one in answer.get("Contents", [])}
            found |= {str(one["Prefix"]).rstrip("/") for one in answer.get("CommonPrefixes", [])}
            following = answer.get("NextContinuationToken")
            asked = {**asked, "ContinuationToken": following} if following else {}
        return sorted(name.removeprefix(folder) for name in found if name != folder)

    def remove(self, name: str, version: str | None = None) -> None:
        with contextlib.suppress(Missing):
            self._call(f"delete {name}", lambda: self._client().delete_object(**self._named(name), **_only(version)))

    def _named(self, name: str) -> dict[str, str]:
        return {"Bucket": self.name, "Key": name}

    def _client(self) -> Any:
        """Return the library's client, made once."""
        with self._lock:
            if self._opened is None:
                client: Any = botocore.session.get_session().create_client("s3", config=_CONFIG)
                client.meta.events.register("after-call.s3", self._note_time)
                self._opened = client
            return self._opened

    def _note_time(self, http_response: Any, **_: Any) -> None:
        self.heard(http_response.headers.get("Date"))

    def _call(self, action: str, call: Callable[[], Answer]) -> Answer:
        """Return what a request answers, repeated while it may pass; raise what went wrong in our words."""
        pause, longest = _PAUSES
        until = time.monotonic() + self.patience
        while True:
            try:
                return call()
            except JobError:
                raise
            except Exception as error:
                said = self._error(action, error)
                if not isinstance(said, Unreachable) or isinstance(said, Damaged) or time.monotonic() > until:
                    raise said from error
            time.sleep(pause * random.uniform(0.5, 1))  # several pods must not come back at the same moment
            pause = min(2 * pause, longest)

    def _error(self, action: str, error: Exception) -> Exception:
        """Return an error that says what was wanted, what is required and what to do."""
        tried = f"{self.url}: could not {action}"
        reason = " ".join(str(error).split())[:300]
        if isinstance(error, aws.ClientError):
            return self._refusal(action, error)
        if isinstance(error, _UNREACHABLE):
            return self._unreachable(action, reason)
        if isinstance(error, KeyError | aws_parsers.ResponseParserError):  # an answer without what every answer has
            return Unreachable(
                f"{tried}: what came is no answer of the service; a proxy or a sign-in page between? Look at "
                "HTTPS_PROXY and NO_PROXY, and at AWS_ENDPOINT_URL"
            )
        if isinstance(error, _NOBODY):
            return bucket.without_credentials(f"{tried}: no usable credentials: {reason}", _LOGIN, _OVERLAY)
        if isinstance(error, (aws.BotoCoreError, ValueError)):  # a wrong AWS_ENDPOINT_URL is a ValueError
            return ConfigError(f"{tried}: {reason}; look at AWS_ENDPOINT_URL and AWS_REGION, and at ~/.aws/config")
        return error

    def _refusal(self, action: str, error: aws.ClientError) -> Exception:
        """Return what the service's own answer means."""
        code, status = _code(error)
        tried, reason = f"{self.url}: could not {action}", _message(error)
        if status == 412:
            return Conflict(f"{tried}: somebody else has written it")
        if status == 501:
            return ConfigError(f"{tried}: this store does not do that: {reason}; use one with conditional writes")
        if status == 429 or status >= 500 or code in _LATER:
            return self._unreachable(action, reason)
        if code in _DAMAGED:
            return Damaged(f"{tried}: {reason}; try again")
        if status == 404:
            return self._not_found(action, code)
        if code in _STRANGERS or status == 401 or error.operation_name.startswith("AssumeRole"):
            return AccessError(f"{tried}: the credentials are refused: {reason}; {bucket.remedy(_LOGIN, _OVERLAY)}")
        if status in (403, 407):
            return self._denied(action, code, status, reason)
        if code in _ELSEWHERE or status == 301:
            return ConfigError(f"{tried}: {reason}; set AWS_REGION to the bucket's own region")
        return ConfigError(f"{tried}: {reason}")

    def _denied(self, action: str, code: str, status: int, reason: str) -> AccessError:
        """Return the error of somebody who is known and not allowed to, or whom a proxy does not know."""
        if status == 407:
            reason = "a proxy asks for a password; give it in HTTPS_PROXY, or set NO_PROXY"
        if code not in _RIGHTS_DENIED or status == 407:
            return AccessError(f"{self.url}: could not {action}: {reason}")
        return AccessError(
            f"{self.url}: not allowed to {action}: {reason}. Required: {_RIGHTS}. As a person: {_LOGIN}; in a pod: "
            f"give that to the role of its service account ({_OVERLAY})"
        )

    def _not_found(self, action: str, code: str) -> Exception:
        """Tell a missing object from a missing bucket."""
        if code != "NoSuchBucket" and not action.startswith("list "):
            try:
                self._must_exist()
            except AccessError as error:
                return error
            return Missing(f"{self.url}: could not {action}: there is no such object")
        return AccessError(f"{self.url}: there is no such bucket; make it (aws s3 mb {self.url}) or name another one")

    def _must_exist(self) -> None:
        """Raise AccessError when there is no such bucket: some answers do not tell."""
        if not self._known:
            self._call("list ", lambda: self._client().list_objects_v2(Bucket=self.name, MaxKeys=1))
            self._known = True

    def _unreachable(self, action: str, reason: str) -> Unreachable:
        return Unreachable(
            f"{self.url}: could not {action} for {self.patience:.0f} s: {reason}; look whether the network and the "
            "service are up, then try again"
        )


def _code(error: aws.ClientError) -> tuple[str, int]:
    """Return the code of a refusal, and the HTTP status it came with."""
    answer: Any = error.response
    return str(answer["Error"].get("Code", "")), int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _message(error: aws.ClientError) -> str:
    """Return the service's own words; the answer to a HEAD has none."""
    answer: Any = error.response
    return " ".join(str(answer["Error"].get("Message") or answer["Error"].get("Code")).split())[:300]


def _only(version: str | None) -> dict[str, str]:
    """Return the condition of a request that is about one version."""
    if version is None:
        return {}
    return {"IfNoneMatch": "*"} if version == ABSENT else {"IfMatch": version}


def _listed(one: Any) -> Object:
    return Object(
        name=str(one["Key"]),
        size=int(one["Size"]),
        version=str(one["ETag"]),
        updated=float(one["LastModified"].timestamp()),
        crc32c="",
    )


def _checksum(answer: Any) -> str:
    """Return the checksum of a whole object as 8 hex digits, "" where an answer does not tell it.

    That of an object in parts is one of their checksums and ends with their number (`AAAAAA==-3`).
    """
    said = str(answer.get("ChecksumCRC32C") or "")
    return str(answer["Metadata"].get(_WHOLE, "")) if "-" in said else base64.b64decode(said).hex()


def _base64(crc32c: str) -> str:
    """Return 8 hex digits as the service writes a checksum."""
    return base64.b64encode(bytes.fromhex(crc32c)).decode()
