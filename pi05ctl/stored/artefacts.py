"""Weights and checkpoints of people: from a folder on this machine to storage and back, verified on both ways.

Knows the two forms that training reads (an Orbax checkpoint, a SentencePiece model) from their names and first bytes
alone; the jobs' interpreter opens them (pi05.training.opening), because that takes JAX.
"""

import contextlib
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pi05.errors import DataError
from pi05.storage import (
    MANIFEST,
    STATE,
    Entry,
    RunPaths,
    Storage,
    crc32c,
    expanded,
    files_of,
    is_pointer,
    load_manifest,
    removal,
)
from pi05ctl.errors import UsageError
from pi05ctl.stored import evaluations

RELEASED = "gs://openpi-assets/checkpoints"
"""Where released weights are published, one folder a name."""
TOKENIZER = "gs://big_vision/paligemma_tokenizer.model"
"""Where their tokenizer is published."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SHOWN = 8
"""Bad files named in an error; the rest are counted."""
_OTHER_FORMS = {
    ".safetensors": "a Hugging Face checkpoint",
    ".bin": "a PyTorch checkpoint",
    ".pt": "a PyTorch checkpoint",
}


@dataclass(frozen=True)
class Pushed:
    """What a push did.

    Attributes:
        key: In storage.
        files, size: How much is there, in bytes.
        already: Whether it was there before.
        unopened: Why it could not be opened here, or "" when all that it holds was read.
    """

    key: str
    files: int
    size: int
    already: bool
    unopened: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """A line of `checkpoints list`.

    Attributes:
        step: Training steps.
        size: Bytes.
        when: When it was complete, in seconds since 1970.
        resumable: Whether training can go on from it; from any of them policies are made.
        kept: Why retention keeps it: `last`, `every 5000`, both or nothing; `resume`: the newest to go on from.
        evaluated: Run and success of every evaluation of it.
    """

    step: int
    size: int
    when: float
    resumable: bool
    kept: str
    evaluated: tuple[str, ...]


def push_weights(storage: Storage, name: str, source: Path, python: str | None = None) -> Pushed:
    """Put weights, or a tokenizer, into storage as weights/<name>; what is there and equal is left alone.

    Args:
        storage: Where to.
        name: Their name, as train.weights or train.tokenizer says it.
        source: An Orbax checkpoint (with or without its folder `params`) or a SentencePiece file.
        python: Interpreter of the jobs, which opens them before they are pushed; None: they are not opened.

    Raises:
        UsageError: The source is not of a form that training reads, or other weights have the name.
        DataError: A file differs from the manifest beside it, is a link that leads nowhere, or cannot be opened.
    """
    key, source = weights_key(name), expanded(source)
    with _as_artefact(name, source) as folder:
        files = {one: folder / one for one in files_of(folder)}
        if pointers := [str(path.readlink()) for path in files.values() if is_pointer(path)]:
            raise DataError(f"{pointers[0]} is a Git LFS pointer, not the file; fetch it with `git lfs pull`")
        size = sum(path.stat().st_size for path in files.values())
        unopened = _opened(folder, source, python) if python else ""
        if storage.exists(key):
            if not storage.verify(key):
                _refuse_other(storage, key, files)
                return Pushed(key, len(files), size, already=True, unopened=unopened)
            storage.delete(key)  # damaged: nobody can use it
        storage.publish(folder, key)
    _raise_damage(storage, key, "push it again")
    return Pushed(key, len(files), size, already=False, unopened=unopened)


def _opened(folder: Path, source: Path, python: str) -> str:
    """Have the jobs' interpreter open weights or a tokenizer; return why it cannot, or "".

    Raises:
        DataError: They are damaged.
    """
    (path,) = [*folder.glob("*.model")] or [folder]
    command = [python, "-m", "pi05.training.opening", str(path)]
    environ = {**os.environ, "JAX_PLATFORMS": "cpu"}
    try:
        asked = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, env=environ)
    except OSError as error:
        return f"{python} does not run ({error.strerror})"
    if asked.returncode == DataError.exit_code:
        raise DataError(asked.stdout.strip().replace(str(path), str(source)))
    if asked.returncode:
        return f"{python}: {(asked.stderr.strip().splitlines() or [f'ended with code {asked.returncode}'])[-1]}"
    return ""


def verify_weights(storage: Storage, name: str) -> None:
    """Compare every file of weights with their manifest; raise DataError naming each bad one and the remedy."""
    key = weights_key(name)
    _must_exist(storage, key, "weights", push_command(name))
    _raise_damage(storage, key, f"fetch them again: {push_command(name)}")


def pull(storage: Storage, key: str, folder: Path) -> None:
    """Copy an artefact to a new local folder, verified.

    Raises:
        UsageError: Something else is in the folder.
        DataError: The artefact is damaged.
    """
    folder = expanded(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not empty; name a folder that does not exist")
    storage.fetch(key, folder.absolute())


def pull_weights(storage: Storage, name: str, folder: Path) -> None:
    """Copy weights to a new local folder, verified."""
    key = weights_key(name)
    _must_exist(storage, key, "weights", push_command(name))
    pull(storage, key, folder)


def checkpoints(storage: Storage, run: str) -> list[Checkpoint]:
    """Return the complete checkpoints of a run, oldest first."""
    paths = RunPaths(run)
    found = {
        name: content
        for key, content in storage.scan(paths.checkpoints, [MANIFEST]).items()
        if (name := key.split("/")[-2]).isdigit()
    }
    sizes = {int(name): _size(content) for name, content in found.items()}
    resumable = storage.holding(paths.checkpoints, STATE)
    evaluated = _evaluations(storage, run) if sizes else {}
    every = _keep_every(storage, run)
    return [
        Checkpoint(
            step,
            sizes[step],
            storage.modified(paths.checkpoint(step)),
            step in resumable,
            _kept(step, max(sizes), max(resumable, default=None), every),
            tuple(evaluated.get(step, ())),
        )
        for step in sorted(sizes)
    ]


def checkpoint_key(storage: Storage, run: str, step: int | None) -> str:
    """Return the key of a checkpoint, the newest one without a step; raise UsageError listing what there is."""
    paths = RunPaths(run)
    steps = storage.numbered(paths.checkpoints)
    if not steps:
        raise UsageError(f"{run} has no complete checkpoint in {storage.url}")
    if step is not None and step not in steps:
        raise UsageError(f"{run} has no checkpoint {step}; there are {', '.join(map(str, steps))}")
    return paths.checkpoint(steps[-1] if step is None else step)


def verify_checkpoint(storage: Storage, key: str) -> None:
    """Compare every file of a checkpoint with its manifest; raise DataError naming each bad one and the remedy."""
    run = key.split("/")[1]
    _raise_damage(storage, key, f"to go on from an earlier one: {removal(storage.url, key)} && pi05ctl resume {run}")


def weights_key(name: str) -> str:
    """Return where weights of a name lie; raise UsageError when it cannot be one."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be a name of weights; use letters, digits, '.', '_' and '-', as in pi05_base"
        )
    return f"weights/{name}"


def push_command(name: str) -> str:
    """Return the command that brings weights, or a tokenizer, from where they are published."""
    if "tokenizer" in name:
        return f"gcloud storage cp {TOKENIZER} . && pi05ctl weights push {name} --from {TOKENIZER.rpartition('/')[2]}"
    return f"gcloud storage cp -r {RELEASED}/{name} . && pi05ctl weights push {name} --from {name}"


def _must_exist(storage: Storage, key: str, what: str, command: str) -> None:
    """Raise UsageError naming what there is when an artefact is not in storage."""
    if storage.exists(key):
        return
    folder, _, name = key.rpartition("/")
    there = ", ".join(storage.artefacts(folder)) or "none"
    raise UsageError(f"{storage.url} has no {what} {name}; there are: {there}. To put them there: {command}")


def _raise_damage(storage: Storage, key: str, remedy: str) -> None:
    """Raise DataError when an artefact in storage is damaged."""
    if problems := storage.verify(key):
        shown = "; ".join(problems[:_SHOWN]) + (f"; and {len(problems) - _SHOWN} more" if problems[_SHOWN:] else "")
        raise DataError(f"{storage.url}/{key} is damaged: {shown}; {remedy}")


@contextlib.contextmanager
def _as_artefact(name: str, source: Path) -> Generator[Path]:
    """Yield a folder of links that has the form of weights/<name>."""
    if not source.exists():
        what = f"is a link to {source.readlink()}, which does not exist" if source.is_symlink() else "does not exist"
        raise UsageError(f"{source} {what}; name the folder of an Orbax checkpoint or a .model file")
    with tempfile.TemporaryDirectory(prefix="pi05-push-") as temporary:
        folder = Path(temporary)
        if source.is_file():
            _check_tokenizer(source)
            _link(source, folder / f"{name}.model")
        else:
            _check_against_manifest(source)
            for path, target in _orbax_files(source):
                _link(path, folder / target)
        yield folder


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source.absolute())


def _check_tokenizer(path: Path) -> None:
    """Raise UsageError when a file does not begin like a SentencePiece model: with its first piece."""
    with path.open("rb") as file:
        begin = file.read(1)
    if path.suffix != ".model" or begin != b"\n":
        raise UsageError(
            f"{path} is not a SentencePiece model: expected a .model file that begins with byte 0a, found "
            f"{begin.hex() or 'an empty file'}"
        )


def _orbax_files(source: Path) -> Generator[tuple[Path, Path]]:
    """Yield the files of a checkpoint that training starts from, and their names in weights/<name>.

    That is the folder `params`, and `assets` where there is one; `train_state` belongs to another run.
    """
    bare = (source / "_METADATA").is_file()
    places = {"params": source} if bare else {"params": source / "params", "assets": source / "assets"}
    if not (places["params"] / "_METADATA").is_file():
        other = next((path for path in sorted(source.rglob("*")) if path.suffix in _OTHER_FORMS), None)
        found = (
            f"{other} belongs to {_OTHER_FORMS[other.suffix]}"
            if other
            else "it has no file _METADATA or params/_METADATA"
        )
        raise UsageError(f"{source} is not an Orbax checkpoint: {found}; expected one as in {RELEASED}/pi05_base")
    _check_metadata(places["params"] / "_METADATA")
    for place, folder in places.items():
        for name in files_of(folder):
            if Path(name).name != MANIFEST:
                yield folder / name, Path(place) / name


def _check_metadata(path: Path) -> None:
    """Raise UsageError when Orbax's own description cannot be read: a download that broke off, or a page of errors."""
    try:
        if not isinstance(json.loads(path.read_bytes()), dict):
            raise TypeError("an object is required")
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"{path} is damaged ({error}); fetch the checkpoint again") from error


def _check_against_manifest(source: Path) -> None:
    """Raise DataError when files are not what a manifest beside them says, as after `pull` and a disk that rots."""
    path = source / MANIFEST
    if not path.is_file():
        return
    for name, entry in sorted(load_manifest(path.read_bytes()).items()):
        found = crc32c(source / name) if (source / name).is_file() else "missing"
        if found != entry.crc32c:
            raise DataError(f"{source / name} has crc32c {found}, {path} says {entry.crc32c}; fetch it again")


def _refuse_other(storage: Storage, key: str, here: dict[str, Path]) -> None:
    """Raise UsageError when intact weights of this name have other content than some files, given by their names."""
    there: dict[str, Entry] = load_manifest(storage.read(f"{key}/{MANIFEST}"))
    for name in sorted(there.keys() | here.keys()):
        found = crc32c(here[name]) if name in here else "missing"
        wanted = there[name].crc32c if name in there else "missing"
        if found != wanted:
            raise UsageError(
                f"{storage.url}/{key} is there with other content, and never overwritten: {name} has crc32c {wanted} "
                f"there and {found} here; choose another name"
            )


def _manifest(content: bytes) -> dict[str, dict[str, Any]]:
    """Return the file table of a manifest."""
    try:
        return cast("dict[str, dict[str, Any]]", json.loads(content)["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{MANIFEST} is damaged ({error!r})") from error


def _size(manifest: bytes) -> int:
    """Return the bytes of an artefact; 0 when its manifest is damaged, which verify tells."""
    with contextlib.suppress(DataError, ValueError, KeyError, TypeError):
        return sum(int(entry["size"]) for entry in _manifest(manifest).values())
    return 0


def _keep_every(storage: Storage, run: str) -> int | None:
    """Return the steps whose multiples a run keeps, or None when its job is not known."""
    with contextlib.suppress(DataError, ValueError, KeyError, TypeError):
        return int(json.loads(storage.read(RunPaths(run).job))["train"]["keep_every"])
    return None


def _kept(step: int, last: int, resume: int | None, every: int | None) -> str:
    reasons = ["last"] if step == last else ["resume"] if step == resume else []
    if every and step % every == 0:
        reasons.append(f"every {every}")
    return ", ".join(reasons)


def _evaluations(storage: Storage, run: str) -> dict[int, list[str]]:
    """Return what evaluations of a run's checkpoints found, by step."""
    found: dict[int, list[str]] = {}
    for key, content in sorted(storage.scan("runs", ["run.json"]).items()):
        with contextlib.suppress(DataError, ValueError, KeyError, TypeError, AttributeError):
            record = cast("dict[str, Any]", json.loads(content))
            if record.get("train_run") == run:
                name = key.split("/")[1]
                evaluation = evaluations.read(storage, name)
                if evaluation.step is not None and evaluation.complete:
                    rate = evaluation.metrics["success_once"]
                    found.setdefault(evaluation.step, []).append(f"{rate:.0%} of {len(evaluation.episodes)} ({name})")
    return found
