"""Buckets that refuse, and what answers in their place. Comments name the public reports."""

import contextlib
from collections.abc import Generator
from pathlib import Path

import pytest

from pi05.errors import AccessError, JobError, TemporaryError, Unreachable
from pi05.storage import connect
from tests.wild.command import pi05ctl
from tests.wild.server import Answer, serving

PAYS = "Bucket is a requester pays bucket but no user project provided."
DENIED = "me@example.com does not have storage.objects.list access to the Google Cloud Storage bucket."
BILLING = "The billing account for the owning project is disabled in state absent"
RETENTION = "Object 'x' is subject to bucket's retention policy and cannot be deleted or overwritten until 2027-01-01"
PERIMETER = "Request is prohibited by organization's policy. vpcServiceControlsUniqueIdentifier: abc"
POLICY = "Request violates constraint 'constraints/storage.restrictAuthTypes'"
ROLE = "Required: roles/storage.objectUser"
REFUSALS: dict[str, tuple[int, str, str, bool]] = {
    # googleapis/python-storage#479, google-cloud-python#4674
    "requester pays": (
        400,
        PAYS,
        "name the project that pays: GOOGLE_CLOUD_QUOTA_PROJECT=PROJECT here, and env",
        False,
    ),
    "no right": (403, DENIED, ROLE, True),
    "billing": (403, BILLING, BILLING, False),
    "retention": (403, RETENTION, RETENTION, False),
    "a perimeter": (403, PERIMETER, PERIMETER, False),
    "a policy": (412, POLICY, POLICY, False),
    "no length": (411, "length required", "length required", False),
    "a teapot": (418, "I'm a teapot", "I'm a teapot", False),
    "a law": (451, "unavailable for legal reasons", "unavailable for legal reasons", False),
}
PAGES: dict[str, tuple[int, str]] = {
    "a proxy with a password": (407, "a proxy asks for a password: give it in HTTPS_PROXY, or set NO_PROXY"),
    "a sign-in page": (200, "HTML came that is no answer of the service; a proxy or a sign-in page between?"),
    "another place": (302, "came that is no answer of the service; a proxy or a sign-in page between?"),
}


@contextlib.contextmanager
def service(code: int, body: object, monkeypatch: pytest.MonkeyPatch) -> Generator[list[str]]:
    """Have a bucket that answers everything alike, and yield what it was asked."""
    asked: list[str] = []

    def answer(method: str, path: str, headers: dict[str, str]) -> Answer:
        del headers
        if "/o" in path:  # not about the bucket as a whole, of which the library asks by itself
            asked.append(f"{method} {path}")
        return code, body

    with serving(answer) as address:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        yield asked


def told(call: str, monkeypatch: pytest.MonkeyPatch, code: int, body: object) -> JobError:
    """Return what a call of a storage raises in a bucket that answers so."""
    with service(code, body, monkeypatch):
        storage = connect("gs://some-bucket/x", patience=0.2)
        calls = {
            "list": lambda: storage.children("runs"),
            "find": lambda: storage.scan("runs", ["run.json"]),
            "read": lambda: storage.read("a"),
            "write": lambda: storage.write("a", b"x"),
            "delete": lambda: storage.delete("a"),
        }
        with pytest.raises(JobError) as caught:
            calls[call]()
    return caught.value


@pytest.mark.parametrize("call", ["list", "find", "read", "write", "delete"])
@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_is_told_in_its_own_words(monkeypatch: pytest.MonkeyPatch, case: str, call: str) -> None:
    code, message, words, about_rights = REFUSALS[case]
    error = told(call, monkeypatch, code, {"error": {"code": code, "message": message}})
    assert isinstance(error, AccessError)
    assert message in str(error)
    assert words in str(error)
    assert (ROLE in str(error), "somebody else" in str(error)) == (about_rights, False)


@pytest.mark.parametrize("call", ["list", "read"])
@pytest.mark.parametrize("case", PAGES)
def test_what_is_no_answer_of_a_bucket_is_told(monkeypatch: pytest.MonkeyPatch, case: str, call: str) -> None:
    code, words = PAGES[case]
    error = told(call, monkeypatch, code, "<html>Who are you?</html>")
    assert words in str(error)
    assert isinstance(error, AccessError if code == 407 else Unreachable)


def test_only_a_write_on_a_condition_is_a_conflict(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = {"error": {"code": 412, "message": "At least one of the pre-conditions you specified did not hold."}}
    with service(412, refused, monkeypatch):
        storage = connect("gs://some-bucket/x", patience=0.2)
        with pytest.raises(AccessError, match="pre-conditions"):
            storage.write("a", b"x")
    with service(412, refused, monkeypatch) as asked:
        with contextlib.suppress(JobError):
            connect("gs://some-bucket/x", patience=0.2).write("a", b"x", absent=True)
        assert any("ifGenerationMatch=0" in one for one in asked)


def test_the_project_that_pays_is_sent_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_CLOUD_QUOTA_PROJECT", "payer")
    with service(200, {"items": []}, monkeypatch) as asked:
        storage = connect("gs://some-bucket/x", patience=0.2)
        assert storage.children("runs") == storage.artefacts("datasets") == []
        assert storage.scan("runs", ["run.json"]) == {}
        with contextlib.suppress(JobError):
            storage.write("a", b"x")
    assert asked
    assert all("userProject=payer" in one for one in asked), asked


@pytest.mark.parametrize(
    ("code", "body", "words"),
    [
        (200, "<html>Who are you?</html>", "what came is no answer of the service; a proxy or a sign-in page between?"),
        (407, "<html>Who are you?</html>", "a proxy asks for a password; give it in HTTPS_PROXY, or set NO_PROXY"),
        (
            403,
            "<Error><Code>AccountProblem</Code><Message>Pay first</Message></Error>",
            "read x/a: Pay first",
        ),
        (403, "<Error><Code>AccessDenied</Code><Message>No</Message></Error>", "Required: s3:GetObject"),
        (418, "<Error><Code>Teapot</Code><Message>Short and stout</Message></Error>", "Short and stout"),
    ],
)
def test_a_bucket_of_amazon_is_told_apart_in_the_same_way(
    monkeypatch: pytest.MonkeyPatch, code: int, body: str, words: str
) -> None:
    for name, value in (("ACCESS_KEY_ID", "x"), ("SECRET_ACCESS_KEY", "x"), ("REGION", "eu-central-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    with serving(lambda *_: (code, body)) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        with pytest.raises(JobError) as caught:
            connect("s3://some-bucket/x", patience=0.2).read("a")
    assert words in str(caught.value)
    assert ("Required" in str(caught.value)) == ("AccessDenied" in body)
    assert isinstance(caught.value, TemporaryError) == (code == 200)


@pytest.mark.parametrize("case", ["requester pays", "billing", "a policy", "a teapot"])
def test_the_command_ends_with_one_line(tmp_path: Path, case: str) -> None:
    code, message, words, _ = REFUSALS[case]
    (tmp_path / "pi05.toml").write_text(
        'target = "cluster"\n[cluster]\nstorage = "gs://some-bucket/pi05"\n'
        'images = { train = "a/t:1", sim = "a/s:1", ctl = "a/c:1" }\n'
    )
    with serving(lambda *_: (code, {"error": {"code": code, "message": message}})) as address:
        said = pi05ctl("datasets", "list", folder=tmp_path, STORAGE_EMULATOR_HOST=address)
        doctor = pi05ctl("doctor", "--no-pods", folder=tmp_path, STORAGE_EMULATOR_HOST=address, HOME=str(tmp_path))
    assert (said.code, said.err.count("\n"), words in said.line) == (3, 1, True), said.err
    assert ("missing  bucket" in doctor.out, words in doctor.out) == (True, True), doctor.out
