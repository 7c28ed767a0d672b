"""The kubeconfig that somebody has -> contexts to choose from, and credentials as the official client takes them.

Helm and kubectl read the same files, so what they take is taken here, too: a mark before UTF-8, UTF-16, a user without
credentials, of several files the first one's current context. What cannot be taken is one error that names the file and
the field. Knows no API; the official client is imported when credentials are needed and not before.
"""

# pyright: reportMissingModuleSource=false

import base64
import binascii
import contextlib
import copy
import logging
import os
import shutil
import ssl
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

from pi05.storage import expanded
from pi05ctl.errors import TargetError

Object = dict[str, Any]
_LISTS = {"clusters": "cluster", "contexts": "context", "users": "user"}
"""The lists of a kubeconfig, and what each entry has beside its name."""
_CERTIFICATES = {
    "clusters": ("certificate-authority",),
    "users": ("client-certificate", "client-key"),
}
"""Fields that name a file; with -data at the end they hold it."""
_ANEW = "fetch it again from where the cluster was made (on GKE: gcloud container clusters get-credentials NAME)"


class NoKubeconfig(TargetError):
    """There is none: it is not the same as one that cannot be read, for in a pod nobody needs one."""


@dataclass(frozen=True)
class Contexts:
    """The contexts of the kubeconfig, and the current one."""

    names: tuple[str, ...]
    current: str | None


def contexts(environ: Mapping[str, str] = os.environ) -> Contexts:
    """Return the contexts of the kubeconfig.

    Raises:
        NoKubeconfig: There is none.
        TargetError: It cannot be read.
    """
    files = _read_all(environ)
    names = dict.fromkeys(str(entry["name"]) for _, content in files for entry in content["contexts"])
    return Contexts(tuple(names), _current(files))


def configuration(context: str | None, environ: Mapping[str, str] = os.environ) -> Any:
    """Return the official client's Configuration with the address and credentials of a context.

    Args:
        context: Its name; None is the current one.
        environ: Has KUBECONFIG.

    Raises:
        NoKubeconfig: There is no kubeconfig.
        TargetError: It cannot be used: the file, the field, and what to do.
    """
    from kubernetes.client.configuration import Configuration

    files = _read_all(environ)
    where = ":".join(str(path) for path, _ in files)
    name = context or _current(files)
    if name is None:
        raise TargetError(f"{where} has no current context; kubectl config use-context NAME, or [cluster] context")
    _check_context(files, name)
    settings: Any = Configuration()
    try:
        loader = _loader(files, name)
        loader.load_and_set(settings)
    except TargetError:
        raise
    except Exception as error:  # of whatever kind: the client's own, of json, of a login library
        raise TargetError(f"context {name} of {where} cannot be used: {_words(error)}; {_ANEW}") from error
    _check_certificates(settings, name, where)
    return settings


def _read_all(environ: Mapping[str, str]) -> list[tuple[Path, Object]]:
    """Return the content of every file that there is, with a list where it has none."""
    given = environ.get("KUBECONFIG") or "~/.kube/config"
    paths = [expanded(Path(part)) for part in given.split(os.pathsep) if part]
    found = [(path, _read(path)) for path in paths if path.exists()]
    if not found:
        raise NoKubeconfig(
            f"there is no kubeconfig to be read ({given} does not exist); set KUBECONFIG to your cluster's file, or "
            "fetch one (on GKE: gcloud container clusters get-credentials NAME)"
        )
    return found


def _read(path: Path) -> Object:
    """Return what a file says, checked as far as everybody who reads it relies on it."""
    if path.is_dir():
        raise TargetError(f"kubeconfig {path} is a folder; set KUBECONFIG to a file in it")
    try:
        content: Any = yaml.safe_load(path.read_bytes())  # bytes, so that it sees what they are encoded in
    except OSError as error:
        raise TargetError(f"kubeconfig {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise TargetError(f"kubeconfig {path} is not YAML: {_words(error)}; mend it, or {_ANEW}") from error
    if content is None:
        raise TargetError(f"kubeconfig {path} is empty; {_ANEW}")
    if not isinstance(content, dict):
        raise TargetError(f"kubeconfig {path} holds {_kind(content)}, a kubeconfig is a table; {_ANEW}")
    told = cast("Object", content)
    return told | {name: _entries(path, name, told.get(name)) for name in _LISTS}


def _entries(path: Path, name: str, entries: Any) -> list[Object]:
    """Return a list of a kubeconfig; an entry with nothing beside its name has an empty table there."""
    inner, found = _LISTS[name], list[Object]()
    if not isinstance(entries, list | None):
        raise TargetError(f"kubeconfig {path}: {name} is {_kind(entries)}, a list is required; {_ANEW}")
    for number, entry in enumerate(cast("list[Any]", entries or [])):
        if not isinstance(entry, dict) or not isinstance(cast("Object", entry).get("name"), str):
            raise TargetError(f"kubeconfig {path}: {name}[{number}] has no name, which is required; {_ANEW}")
        told = cast("Object", entry)
        if not isinstance(told.get(inner), dict | None):
            raise TargetError(
                f"kubeconfig {path}: {inner} of {name}[{told['name']}] is {_kind(told[inner])}, a table is required"
            )
        found.append(told | {inner: told.get(inner) or {}})
    return found


def _current(files: list[tuple[Path, Object]]) -> str | None:
    """Return the current context: of several files the first that names one, as Helm and kubectl have it."""
    return next((str(content["current-context"]) for _, content in files if content.get("current-context")), None)


def _find(files: list[tuple[Path, Object]], kind: str, name: str) -> tuple[Path, Object] | None:
    """Return what an entry has beside its name, and its file: the first of that name."""
    entries = ((path, entry) for path, content in files for entry in content[kind])
    return next(((path, entry[_LISTS[kind]]) for path, entry in entries if entry["name"] == name), None)


def _check_context(files: list[tuple[Path, Object]], name: str) -> None:
    """Raise TargetError unless a context leads to a cluster and to credentials that are there."""
    found = _find(files, "contexts", name)
    if found is None:
        where = ":".join(str(path) for path, _ in files)
        raise TargetError(f"the kubeconfig's context {name} does not exist in {where}")
    path, context = found
    for kind in ("clusters", "users"):
        what, wanted = _LISTS[kind], context.get(_LISTS[kind])
        if wanted is None and kind == "users":
            continue
        there = _find(files, kind, str(wanted))
        if there is None:
            raise TargetError(f"kubeconfig {path}: context {name} is of {what} {wanted}, which no file has; {_ANEW}")
        _check_entry(*there, f"{kind}[{wanted}]", kind)


def _check_entry(path: Path, entry: Object, name: str, kind: str) -> None:
    """Raise TargetError unless an entry's address, certificates and token can be read."""
    if kind == "clusters" and not str(entry.get("server", "")).startswith(("http://", "https://")):
        raise TargetError(f"kubeconfig {path}: server of {name} is {entry.get('server')!r}, https://... is required")
    for field in _CERTIFICATES[kind]:
        if entry.get(f"{field}-data"):
            _check_data(entry[f"{field}-data"], f"kubeconfig {path}: {field}-data of {name}")
        elif entry.get(field):
            _check_file(path, entry[field], f"kubeconfig {path}: {field} of {name}")
    if kind == "users" and entry.get("tokenFile"):
        _check_file(path, entry["tokenFile"], f"kubeconfig {path}: tokenFile of {name}")


def _check_data(data: Any, where: str) -> None:
    try:
        content = base64.b64decode("".join(str(data).split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise TargetError(f"{where} is not base64 ({error}); {_ANEW}") from error
    if b"-----BEGIN" not in content:
        raise TargetError(f"{where} is base64, but of no certificate or key in PEM form; {_ANEW}")


def _check_file(path: Path, named: Any, where: str) -> None:
    """Raise TargetError unless a file that a kubeconfig names, relative to itself, can be read."""
    file = path.parent / str(named)
    try:
        with file.open("rb") as opened:
            opened.read(1)
    except OSError as error:
        raise TargetError(
            f"{where} is {file}, which cannot be read ({error.strerror}); is the kubeconfig of another machine? Copy "
            f"that file, too, or {_ANEW}"
        ) from error


def _check_certificates(settings: Any, name: str, where: str) -> None:
    """Raise TargetError when certificates and key are none, or do not belong together."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if settings.ssl_ca_cert:
            context.load_verify_locations(settings.ssl_ca_cert)
        if settings.cert_file:
            context.load_cert_chain(settings.cert_file, settings.key_file, lambda: "")
    except (OSError, ValueError) as error:
        raise TargetError(
            f"context {name} of {where}: its certificates and key cannot be used: {_words(error)}; {_ANEW}"
        ) from error


def _loader(files: list[tuple[Path, Object]], name: str) -> Any:
    """Return the official client's loader of a context, which tells what the login program said."""
    from kubernetes.config import kube_config

    kube: Any = kube_config
    merger = kube.KubeConfigMerger("")
    for path, content in files:
        if merger.config_merged is None:
            merger.config_merged = kube.ConfigNode(str(path), content | {item: [] for item in _LISTS}, str(path))
        for item in _LISTS:
            merger._merge(item, content[item], str(path))
        merger.paths.append(str(path))
        merger.config_files[str(path)] = content
    merger.config_merged.value["current-context"] = name
    merger.config_saved = copy.deepcopy(merger.config_files)
    loader = kube.KubeConfigLoader(
        merger.config, active_context=name, config_base_path=None, config_persister=merger.save_changes
    )
    loader._load_from_exec_plugin = _run(loader._load_from_exec_plugin, loader, name)
    loader._load_user_token = _cleaned(loader._load_user_token, loader)
    return loader


def _run(plugin: Callable[[], Any], loader: Any, name: str) -> Callable[[], Any]:
    """Return what runs the login program; the official client logs what went wrong, and goes on as nobody."""

    def run() -> Any:
        if "exec" not in loader._user:
            return None
        program = loader._user["exec"].safe_get("command")
        with _logged() as said:
            done = plugin()
        if not done:
            hint = "" if program and shutil.which(str(program)) else _hint(loader._user["exec"], program)
            words = " ".join("; ".join(said).split()) or "it gave no token"
            raise TargetError(
                f"the login program {program} of context {name} did not log us in: {words}{hint}; run it by hand"
            )
        return done

    return run


def _hint(told: Any, program: Any) -> str:
    """Return how a program that is not on PATH comes there, as far as the kubeconfig says."""
    hint = " ".join(str(told.safe_get("installHint") or "").split())
    return f" ({program} is not on PATH" + (f": {hint})" if hint else ")")


def _cleaned(load: Callable[[], Any], loader: Any) -> Callable[[], Any]:
    """Return what takes a token without the end of the line that its file has."""

    def clean() -> Any:
        found = load()
        if found:
            loader.token = " ".join(str(loader.token).split())
        return found

    return clean


class _Heard(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


@contextlib.contextmanager
def _logged() -> Generator[list[str]]:
    """Yield what is logged as an error in the block, and let nothing of it through."""
    root, heard = logging.getLogger(), _Heard()
    others = root.handlers[:]
    root.handlers[:] = [heard]
    try:
        yield heard.said
    finally:
        root.handlers[:] = others


def _words(error: Exception) -> str:
    """Return an error's own words in one line; those of YAML say where."""
    return " ".join(str(error).split()) or type(error).__name__


def _kind(value: Any) -> str:
    """Return what a value of YAML is, for people."""
    names = {"list": "a list", "dict": "a table", "str": "text", "NoneType": "nothing"}
    return names.get(type(value).__name__, f"{value!r}")
