"""Trees of arrays to folders and back through Orbax: in bounded host memory, by each process for itself.

Knows nothing of what the arrays mean. One process writes Orbax's OCDBT form, files of 128 MB. Of several each writes
the pieces that lie on its devices as files of their own (the plain zarr form); the first adds the description, and all
their files in one folder are what one process would read. Orbax, and so the reference implementation, reads both.
"""

import contextlib
import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import type_handlers
from orbax.checkpoint._src.serialization.types import DefaultSerializationStatusCallback, TransferPriority

from pi05.errors import DataError

_FETCHED = 2
"""GB that go from the devices to the host at a time, or one array."""
_IN_FLIGHT = 6
"""GB that are written, or read, at a time: more than the largest array of the full preset, 4.8."""
_PIECE = 2**26
"""Bytes of one piece of an array in its file: what a reader on other devices decodes, and one core checks."""
_FILE = 2**27
"""Bytes of a file: files are brought to a bucket side by side, and each is whole there or sent again."""
_SHARED = 2**22
"""Bytes of a part from which on devices that hold the same array write a part of it each."""
_DESCRIPTION, _DIRECTORY = "_METADATA", "manifest.ocdbt"
"""What is in a checkpoint, in words; and where, in the OCDBT form."""
_REASON = 300
"""Characters of Orbax's and tensorstore's words that are passed on; they can be thousands."""


class _Streamed(DefaultSerializationStatusCallback):
    """Has arrays fetched from the devices when it is their turn, instead of all at once."""

    def key_priority(self, _: Any) -> TransferPriority:
        return TransferPriority.ASYNCHRONOUS_DEPRIORITIZED


def checkpointer() -> ocp.Checkpointer:
    """Return Orbax for this process alone: of several that train together each reads and writes for itself.

    Nothing is compressed: zstd takes a tenth off float32 parameters, and twice the time of writing them.
    """
    process = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=process, active_processes={process}, barrier_sync_key_prefix=f"process{process}"
    )
    handlers = type_handlers.create_type_handler_registry(
        (jax.Array, type_handlers.ArrayHandler(callback=_Streamed(), min_slice_bytes_for_replica_parallel=_SHARED)),
        (np.ndarray, type_handlers.NumpyHandler(deepcopy_host_arrays=False)),
    )
    handler = ocp.PyTreeCheckpointHandler(
        save_concurrent_gb=_IN_FLIGHT,
        restore_concurrent_gb=_IN_FLIGHT,
        save_device_host_concurrent_gb=_FETCHED,
        use_ocdbt=jax.process_count() == 1,
        use_compression=False,
        multiprocessing_options=alone,
        type_handler_registry=handlers,
    )
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def save(folder: Path, content: Any) -> None:
    """Write a tree of arrays to `folder`, which must not exist; of several processes each writes its part there.

    Arrays are cut as they are sharded, and further, so that who reads a part of one does not have to read all of it.
    """
    pieces = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_PIECE), content)
    with checkpointer() as orbax:
        orbax.save(
            folder.absolute(), args=ocp.args.PyTreeSave(content, save_args=pieces, ocdbt_target_data_file_size=_FILE)
        )
    if jax.process_index() != 0:
        for path in folder.iterdir():
            if path.is_file():  # the description, which the first process writes; pieces are in folders
                path.unlink()


def described(folder: Path) -> Any:
    """Return the tree of a checkpoint with the shape and type of each array, without reading any.

    Raises:
        DataError: It is no checkpoint of Orbax, or one of its files is missing or damaged: which.
    """
    _check_description(folder / _DESCRIPTION)
    _check_directory(folder)
    with reading(folder), checkpointer() as orbax:
        item = orbax.metadata(folder.absolute()).item_metadata
    if item is None:
        raise DataError(f"{folder} is a damaged Orbax checkpoint: Orbax finds no arrays in it; fetch it again")
    return item.tree


@contextlib.contextmanager
def reading(folder: Path) -> Generator[None]:
    """Turn what Orbax and tensorstore raise about a checkpoint, which may be anything, into one line.

    What the devices say, of memory mostly, is not about the checkpoint and stays what it is.
    """
    try:
        yield
    except (DataError, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        raise DataError(f"{folder} is a damaged Orbax checkpoint ({_reason(error)}); fetch it again") from error


def _reason(error: BaseException) -> str:
    """Return the words of an error's first cause, in a line."""
    while error.__cause__ is not None:
        error = error.__cause__
    words = " ".join(str(error).partition(". See full TensorStore details")[0].split())
    return f"{type(error).__name__}: {words[:_REASON]}"


def _check_description(path: Path) -> None:
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(
            f"{path.parent} is not an Orbax checkpoint: it has no {path.name}; expected <name>/params"
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path.parent} is a damaged Orbax checkpoint: {path.name}: {error}; fetch it again") from error
    if not isinstance(content, dict) or not isinstance(content.get("tree_metadata"), dict):
        raise DataError(
            f"{path} holds no tree_metadata, so it is not the description of an Orbax checkpoint; fetch it again"
        )


def _check_directory(folder: Path) -> None:
    """Raise DataError when arrays lie in the OCDBT form and the file that says where is missing or empty."""
    if not any((folder / name).exists() for name in ("d", "ocdbt.process_0")):
        return  # the plain zarr form: a folder an array
    path = folder / _DIRECTORY
    if not path.is_file() or not path.stat().st_size:
        what = "is empty" if path.is_file() else "is missing"
        raise DataError(f"{path} {what}, so no array of {folder} is found; fetch the checkpoint again")
