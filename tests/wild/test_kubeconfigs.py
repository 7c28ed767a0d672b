"""Kubeconfigs, login programs and proxies as people have them. Each test names the report that its case is from."""

import base64
import json
import stat
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from pi05ctl.cli import main as cli
from tests.wild.command import Said, pi05ctl
from tests.wild.server import cluster, serving

PEM = base64.b64encode(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").decode()
Command = Callable[..., Said]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    for name in ("PI05_STORAGE", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "pi05.toml").write_text(
        f'target = "cluster"\n[cluster]\nstorage = "file://{tmp_path}/store"\n'
        'images = { train = "a/t:1", sim = "a/s:1", ctl = "a/c:1" }\n'
    )
    return tmp_path


@pytest.fixture
def command(here: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Return what runs a command in this process."""
    del here

    def run(*words: str) -> Said:
        code = cli.run(words)
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    return run


@pytest.fixture
def server() -> Generator[str]:
    with serving(cluster()) as address:
        yield address


def config(server: str = "http://127.0.0.1:9", user: Any = None, **cluster_fields: Any) -> dict[str, Any]:
    """Return a kubeconfig of one context."""
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "lab",
        "clusters": [{"name": "lab", "cluster": {"server": server, **cluster_fields}}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "me"}}],
        "users": [{"name": "me", "user": user}],
    }


def write(here: Path, content: object) -> None:
    (here / "config").write_text(json.dumps(content))


TLS = "https://127.0.0.1:9"
UNREADABLE: dict[str, tuple[bytes | object, str]] = {
    # ansible-collections/community.kubernetes#119, kubernetes-client/python#1057
    "a tab": (b"kind: Config\nclusters:\n- name: lab\n\tcluster: {}\n", "is not YAML: while scanning"),
    "a page": (b"<!DOCTYPE html>\n<html><body>sign in: now</body></html>", "{config}"),
    "bytes": (b"\x00\x01\x02\x80", "is not YAML"),
    "not UTF-8": ("kind: Config # größe".encode("latin-1"), "is not YAML"),
    "text": (b"api", "holds text, a kubeconfig is a table"),
    "text in UTF-16": ("api".encode("utf-16"), "holds text, a kubeconfig is a table"),
    "a list": (["a", "b"], "holds a list, a kubeconfig is a table"),
    "nothing": (b"", "is empty"),
    "clusters that are a table": ({**config(), "clusters": {"lab": {}}}, "clusters is a table, a list is required"),
    "an entry without a name": ({**config(), "users": [{"user": {}}]}, "users[0] has no name, which is required"),
    "an entry that is text": ({**config(), "contexts": ["lab"]}, "contexts[0] has no name, which is required"),
    "a user that is text": (config(user="me"), "user of users[me] is text, a table is required"),
    "no current context": ({**config(), "current-context": ""}, "has no current context"),
    "another context": ({**config(), "current-context": "hub"}, "context hub does not exist"),
    "a context without its cluster": ({**config(), "clusters": []}, "context lab is of cluster lab, which no file has"),
    "a context without its user": ({**config(), "users": []}, "context lab is of user me, which no file has"),
    "a server that is no URL": (
        config("127.0.0.1:6443"),
        "server of clusters[lab] is '127.0.0.1:6443', https://... is",
    ),
    "no server": ({**config(), "clusters": [{"name": "lab", "cluster": {}}]}, "server of clusters[lab] is None"),
    # kubernetes-client/python#1335, ansible/ansible#42605
    "a certificate that is no base64": (
        config(TLS, {"client-certificate-data": "!!notbase64", "client-key-data": "AAAA"}),
        "client-certificate-data of users[me] is not base64",
    ),
    "a key that is no key": (
        config(TLS, {"client-certificate-data": PEM, "client-key-data": "AAAA"}),
        "client-key-data of users[me] is base64, but of no certificate or key in PEM form",
    ),
    "an authority that is no certificate": (
        config(TLS, {}, **{"certificate-authority-data": PEM}),
        "its certificates and key cannot be used",
    ),
    # krkn-chaos/krkn-ai#135, kubernetes/minikube#8995
    "a certificate of another machine": (
        config(TLS, {"client-certificate": "/home/me/.minikube/client.crt", "client-key": "/home/me/client.key"}),
        "client-certificate of users[me] is /home/me/.minikube/client.crt, which cannot be read (No such file",
    ),
    "an authority of another machine": (
        config(TLS, {}, **{"certificate-authority": "ca.crt"}),
        "certificate-authority of clusters[lab] is {here}/ca.crt, which cannot be read (No such file",
    ),
    "a token of another machine": (config(user={"tokenFile": "token"}), "tokenFile of users[me] is {here}/token"),
    # kubernetes-client/python#1409, astronomer/astronomer-providers#842
    "a login program that is not here": (
        config(user={"exec": {"apiVersion": "client.authentication.k8s.io/v1beta1", "command": "no-such-plugin"}}),
        "the login program no-such-plugin of context lab did not log us in: [Errno 2] No such file or directory: "
        "'no-such-plugin' (no-such-plugin is not on PATH)",
    ),
    "a login program without a name": (config(user={"exec": {"apiVersion": "v1"}}), "missing key 'command'"),
    "a proxy that is no URL": (config(TLS, {"token": "x"}, **{"proxy-url": "proxy:3128"}), "look at proxy-url in the"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_cannot_be_used_is_one_line_with_the_file_and_the_field(here: Path, command: Command, case: str) -> None:
    content, words = UNREADABLE[case]
    (here / "config").write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    words = words.format(config=here / "config", here=here) if "{" in words else words
    status = command("status")
    assert (status.code, status.err.count("\n"), words in status.err) == (3, 1, True), status.err
    doctor = command("doctor", "--no-pods")
    assert (doctor.code, words in doctor.out, doctor.err.count("\n")) == (3, True, 1), doctor.out
    (here / "pi05.toml").unlink()
    init = command("init", "-y", "--storage", "gs://bucket/x")
    assert (init.code in (0, 2), init.err.count("\n") <= 1) == (True, True), init.err


def test_a_folder_is_named_as_one(here: Path, command: Command) -> None:
    (here / "config").mkdir()
    said = command("status")
    assert (said.code, f"kubeconfig {here}/config is a folder; set KUBECONFIG to a file in it" in said.err) == (3, True)


def test_the_real_command_shows_no_traceback(here: Path) -> None:
    (here / "config").write_bytes(b"clusters:\n- name: lab\n\tcluster: {}\n")
    for words in (("status",), ("doctor", "--no-pods"), ("submit", "demos", "pushcube"), ("init", "-y", "--force")):
        said = pi05ctl(*words, folder=here, KUBECONFIG=str(here / "config"))
        assert f"kubeconfig {here}/config is not YAML" in said.out + said.err


# kubernetes-client/python#518: kubectl takes a user without `user:`.
@pytest.mark.parametrize("user", [None, {}])
def test_a_user_without_credentials_is_taken(here: Path, command: Command, server: str, user: object) -> None:
    write(here, config(server, user))
    said = command("status")
    assert (said.code, "no runs in" in said.err) == (0, True), said.err
    doctor = command("doctor", "--no-pods")
    assert "ok       context      lab, the current one" in doctor.out


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_file_is_read_as_windows_writes_it(here: Path, command: Command, server: str, encoding: str) -> None:
    (here / "config").write_bytes(json.dumps(config(server, {"token": "x"}), indent=1).encode(encoding))
    said = command("status")
    assert (said.code, "no runs in" in said.err) == (0, True), said.err


def test_of_several_files_the_first_current_context_counts_as_for_helm(
    here: Path, command: Command, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(here, config(server, {"token": "x"}))
    (here / "other").write_text(json.dumps({**config(), "current-context": "hub"}))
    monkeypatch.setenv("KUBECONFIG", f"{here}/nowhere:{here}/config:{here}/other")
    said = command("status")
    assert (said.code, "no runs in" in said.err) == (0, True), said.err


def test_a_token_is_taken_without_the_end_of_its_line(here: Path, command: Command) -> None:
    heard: list[str] = []

    def answer(method: str, path: str, headers: dict[str, str]) -> tuple[int, object]:
        heard.append(headers.get("authorization", ""))
        return cluster()(method, path, headers)

    (here / "token").write_text("abc\n")
    with serving(answer) as address:
        write(here, config(address, {"tokenFile": "token"}))
        said = command("status")
    assert (said.code, set(heard)) == (0, {"Bearer abc"}), said.err


def plugin(here: Path, script: str) -> dict[str, Any]:
    """Return a user with a login program that is a shell script."""
    path = here / "login"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return {"exec": {"apiVersion": "client.authentication.k8s.io/v1beta1", "command": str(path)}}


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'token has expired; run lab login' >&2; exit 1", "process returned 1. token has expired; run lab login"),
        ("echo hello", "failed to decode process output"),
        ("echo '{}'", "malformed response. missing key 'apiVersion'"),
        (
            'echo \'{"apiVersion": "client.authentication.k8s.io/v1beta1", "kind": "ExecCredential", "status": {}}\'',
            "missing token or clientCertificateData",
        ),
    ],
)
def test_a_login_program_that_fails_is_named_with_its_words(
    here: Path, command: Command, server: str, script: str, words: str
) -> None:
    user = plugin(here, script)
    write(here, config(server, user))
    said = command("status")
    assert said.code == 3
    assert said.err.startswith("pi05ctl: the current context, namespace pi05: the login program ")
    assert f"{here}/login of context lab did not log us in: " in said.err
    assert words in said.err
    assert "ERROR:root" not in said.err
    doctor = command("doctor", "--no-pods")
    assert "missing  api server" in doctor.out
    assert words in doctor.out


def refusing(code: int, body: object) -> Callable[[str, str, dict[str, str]], tuple[int, object]]:
    return lambda *_: (code, body)


STATUS = {"kind": "Status", "apiVersion": "v1", "status": "Failure"}
ANSWERS: dict[str, tuple[int, object, str]] = {
    # kubernetes-client/java#784, godaddy/kubernetes-client#60
    "a page with 200": (
        200,
        "<html>Please sign in</html>",
        "sends HTML (HTTP 200); a proxy or a sign-in",
    ),
    "a page with 404": (
        404,
        "<html>No such site</html>",
        "sends HTML (HTTP 404); a proxy or a sign-in",
    ),
    "a page with 403": (403, "<html>Blocked</html>", "sends HTML (HTTP 403); a proxy or a sign-in"),
    "another place": (302, b"", "what answers is no API server (HTTP 302: ''); a proxy or a sign-in page"),
    "nothing": (200, b"", "what answers is no API server (HTTP 200: ''); a proxy or a sign-in page"),
    "other words": (200, b"ok", "what answers is no API server (HTTP 200: 'ok')"),
    "a proxy with a password": (407, "<html>Who?</html>", "a proxy asks for a password (HTTP 407); give its user and"),
    "nobody": (
        403,
        STATUS | {"message": 'jobs.batch is forbidden: User "system:anonymous" cannot list resource "jobs"'},
        "the cluster does not know who asks: log in to the cluster again",
    ),
    "an old token": (401, STATUS | {"message": "Unauthorized"}, "Unauthorized; log in to the cluster again"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_what_is_no_answer_of_an_api_server_is_told(here: Path, command: Command, case: str) -> None:
    code, body, words = ANSWERS[case]
    with serving(refusing(code, body)) as address:
        write(here, config(address, {"token": "x"}))
        said = command("status")
        doctor = command("doctor", "--no-pods")
    assert (said.code, said.err.count("\n"), words in said.err) == (3, 1, True), said.err
    assert ("missing  api server" in doctor.out, words in doctor.out) == (True, True), doctor.out


def test_a_token_that_expires_is_fetched_again(here: Path, command: Command) -> None:
    heard: list[str] = []

    def answer(method: str, path: str, headers: dict[str, str]) -> tuple[int, object]:
        heard.append(headers.get("authorization", ""))
        return cluster()(method, path, headers)

    told = '"apiVersion": "client.authentication.k8s.io/v1beta1", "kind": "ExecCredential"'
    status = '"status": {"token": "\'$(wc -l < count)\'", "expirationTimestamp": "2020-01-01T00:00:00Z"}'
    script = f"cd {here}; echo >> count; echo '{{{told}, {status}}}'"
    with serving(answer) as address:
        write(here, config(address, plugin(here, script)))
        said = command("status")
    assert said.code == 0, said.err
    assert len({*heard}) > 1
    assert heard[0].startswith("Bearer ")
