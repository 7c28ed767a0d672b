"""Weight files in the published form, read and written: an Orbax PyTree with the parameters under the key `params`.

Two forms are read: a released checkpoint, and one of a trainer that kept an extra key `value` at every leaf. Both are
checked leaf by leaf against the sizes of the model before any array is loaded.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from pi05.config import ModelConfig
from pi05.errors import DataError
from pi05.model import tree

_SHOWN = 5
"""Leaves named in an error; the rest are counted."""
_PIECE = 2**26
"""Bytes of one piece of an array that is written from the host."""


def checkpointer() -> ocp.Checkpointer:
    """Return Orbax for this process alone: of several that train together each reads for itself, and one writes."""
    process = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=process, active_processes={process}, barrier_sync_key_prefix=f"process{process}"
    )
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(multiprocessing_options=alone), multiprocessing_options=alone)


def save(folder: Path, content: Any) -> None:
    """Write a tree of arrays to `folder`, which must not exist.

    Arrays on devices are cut as they are sharded; whole ones on the host are cut, too, so that who reads a part of one
    does not have to read all of it.
    """

    def pieces(array: Any) -> ocp.SaveArgs:
        return ocp.SaveArgs(chunk_byte_size=_PIECE if isinstance(array, np.ndarray) else None)

    with checkpointer() as orbax:
        orbax.save(folder.absolute(), args=ocp.args.PyTreeSave(content, save_args=jax.tree.map(pieces, content)))


def write(folder: Path, params: tree.Params) -> None:
    """Write parameters to `folder`, which must not exist, in the form of a released checkpoint."""
    save(folder, {"params": params})


def read(folder: Path, config: ModelConfig, sharding: Mapping[str, Any] | None = None) -> dict[str, jax.Array]:
    """Read parameters as float32, by path.

    Args:
        folder: The `params` folder of a checkpoint.
        config: Sizes that the weights must have.
        sharding: Where each parameter goes; None leaves them on the default device.

    Raises:
        DataError: Not an Orbax PyTree, or a leaf is missing, unknown, or of another shape or type.
    """
    found = _leaves(folder)
    problems = check({path: shape for path, (_, shape) in found.items()}, config)
    if problems:
        shown = "; ".join(problems[:_SHOWN]) + (f"; and {len(problems) - _SHOWN} more" if problems[_SHOWN:] else "")
        raise DataError(
            f"the weights in {folder} do not fit the model ({len(problems)} leaves): {shown}. "
            "Use the preset they were made with, or other weights"
        )
    keys = {path: key for path, (key, _) in found.items()}
    loaded = _load(folder, keys, sharding)
    return {path: loaded[path] for path in tree.leaves(config)}


def check(found: dict[str, jax.ShapeDtypeStruct], config: ModelConfig) -> list[str]:
    """Return every leaf that differs from the model's table, one sentence each; empty when all agree."""
    expected = tree.leaves(config)
    problems = [f"{path}: expected {list(leaf.shape)}, missing" for path, leaf in expected.items() if path not in found]
    problems += [f"{path}: not a parameter of this model" for path in found if path not in expected]
    for path in expected.keys() & found.keys():
        shape, dtype = expected[path].shape, found[path].dtype
        if tuple(found[path].shape) != shape:
            problems.append(f"{path}: expected {list(shape)}, found {list(found[path].shape)}")
        elif dtype not in (jnp.float32, jnp.bfloat16):
            problems.append(f"{path}: expected float32 or bfloat16, found {dtype}")
    return sorted(problems)


def _leaves(folder: Path) -> dict[str, tuple[tuple[str, ...], jax.ShapeDtypeStruct]]:
    """Return path -> (keys in the file, shape and dtype) of a checkpoint, from its metadata alone."""
    if not (folder / "_METADATA").is_file():
        raise DataError(f"{folder} is not an Orbax checkpoint: it has no _METADATA; expected <name>/params")
    try:
        with checkpointer() as orbax:
            item = orbax.metadata(folder.absolute()).item_metadata
    except (ValueError, KeyError, OSError) as error:
        raise DataError(f"{folder} is a damaged Orbax checkpoint ({error}); fetch it again") from error
    if item is None:
        raise DataError(f"{folder} is a damaged Orbax checkpoint (unreadable _METADATA); fetch it again")
    metadata = item.tree
    if set(metadata) != {"params"}:
        raise DataError(f"{folder} holds {sorted(metadata)}, expected the parameters under the key 'params'")
    found = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(metadata["params"])[0]:
        keys = tuple(str(part.key) for part in path)
        name = "/".join(keys[:-1] if keys[-1] == "value" else keys)
        found[name] = (keys, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
    return found


def _load(folder: Path, keys: dict[str, tuple[str, ...]], sharding: Mapping[str, Any] | None) -> dict[str, jax.Array]:
    """Load every leaf as float32, straight to where it belongs."""

    def argument(path: str) -> ocp.RestoreArgs:
        if sharding is None:
            return ocp.RestoreArgs(restore_type=np.ndarray, dtype=jnp.float32)
        return ocp.ArrayRestoreArgs(restore_type=jax.Array, sharding=sharding[path], dtype=jnp.float32)

    def nested(values: dict) -> dict:
        return {"params": tree.nest({"/".join(keys[path]): value for path, value in values.items()})}

    try:
        with checkpointer() as orbax:
            loaded = orbax.restore(
                folder.absolute(),
                args=ocp.args.PyTreeRestore(
                    item=nested(dict.fromkeys(keys, 0)), restore_args=nested({path: argument(path) for path in keys})
                ),
            )
    except (ValueError, OSError) as error:
        raise DataError(f"{folder} is a damaged Orbax checkpoint ({error}); fetch it again") from error
    flat = tree.flatten(loaded["params"])
    return {path: jnp.asarray(flat["/".join(keys[path])]) for path in keys}
