"""Weight files in the published form, read and written: an Orbax PyTree with the parameters under the key `params`.

Two forms are read: a released checkpoint, and one of a trainer that kept an extra key `value` at every leaf. Both are
checked leaf by leaf against the sizes of the model before any array is loaded.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from pi05.config import ModelConfig
from pi05.errors import DataError
from pi05.model import arrays, tree

_SHOWN = 5
"""Leaves named in an error; the rest are counted."""
_AT_ONCE = 2**31
"""Bytes of float32 that are read at a time, or one leaf: a leaf passes through the host up to three times its size."""
_EXACT = re.compile(
    r"img/(embedding/|pos_embedding)"  # patches are embedded in float32
    r"|LayerNorm_\d/|encoder_norm/|norm/scale"  # norms scale and shift in float32
    r"|input_embedding"  # multiplied by sqrt(width) before it is rounded
    r"|^action_|^time_"  # projections of actions and time
)
"""Paths of parameters that the model does not round to the compute type."""


def write(folder: Path, params: Mapping[str, Any]) -> None:
    """Write parameters, given by path, to `folder`, which must not exist, in the form of a released checkpoint."""
    arrays.save(folder, {"params": tree.nest(params)})


def read(folder: Path, config: ModelConfig, target: Mapping[str, Any] | None = None) -> dict[str, jax.Array]:
    """Read parameters straight onto the devices, by path.

    Args:
        folder: The `params` folder of a checkpoint.
        config: Sizes that the weights must have.
        target: Where and as what each parameter goes (jax.ShapeDtypeStruct); None: as float32 to the default device.

    Raises:
        DataError: Not an Orbax PyTree, or a leaf is missing, unknown, or of another shape or type.
    """
    found = _leaves(folder)
    problems = check({path: shape for path, (_, shape) in found.items()}, config)
    if problems:
        shown = "; ".join(problems[:_SHOWN]) + (f"; and {len(problems) - _SHOWN} more" if problems[_SHOWN:] else "")
        raise DataError(
            f"the weights in {folder} do not fit the model ({len(problems)} leaves): {shown}. {_remedy(found, config)}"
        )
    keys = {path: key for path, (key, _) in found.items()}
    loaded = _load(folder, keys, target or for_acting(config, "float32"))
    return {path: loaded[path] for path in tree.leaves(config)}


def ranks(folder: Path) -> tuple[int, int]:
    """Return the ranks of the factors of LoRA that a checkpoint has, of the language model and the expert; 0: none."""
    return _ranks(_leaves(folder))


def read_through(folder: Path) -> None:
    """Read every array of a checkpoint of any tree once, and keep none.

    Raises:
        DataError: Something is missing or damaged.
    """
    everything = arrays.described(folder)
    leaves, form = jax.tree_util.tree_flatten(everything)
    sizes = {str(number): math.prod(getattr(leaf, "shape", None) or ()) * 8 for number, leaf in enumerate(leaves)}
    with arrays.reading(folder), arrays.checkpointer() as orbax:
        for group in _groups(sizes):
            chosen = {int(number) for number in group}
            item = [0 if number in chosen else ocp.PLACEHOLDER for number in range(len(leaves))]
            how = [ocp.RestoreArgs(restore_type=np.ndarray)] * len(leaves)
            some = ocp.args.PyTreeRestore(form.unflatten(item), restore_args=form.unflatten(how))
            orbax.restore(folder.absolute(), args=some)


def for_acting(config: ModelConfig, dtype: str) -> dict[str, jax.ShapeDtypeStruct]:
    """Return where and as what a policy that computes in `dtype` needs each parameter: on the default device.

    What the model rounds to the compute type before it uses it may as well be kept rounded: the numbers are the same to
    the bit, in half of the memory. The others stay float32.
    """
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return {
        path: jax.ShapeDtypeStruct(leaf.shape, jnp.float32 if is_exact(path) else dtype, sharding=place)
        for path, leaf in tree.leaves(config).items()
    }


def is_exact(path: str) -> bool:
    """Return whether the model computes with a parameter in float32, whatever the compute type."""
    return bool(_EXACT.search(path))


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
    metadata = arrays.described(folder)
    if not isinstance(metadata, dict) or set(metadata) != {"params"}:
        holds = sorted(map(str, metadata)) if isinstance(metadata, dict) else type(metadata).__name__
        raise DataError(f"{folder} holds {holds}, expected the parameters under the key 'params'")
    found = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(metadata["params"], is_leaf=lambda leaf: leaf is None)[0]:
        keys = tuple(map(_key, path))
        name = "/".join(keys[:-1] if keys[-1:] == ("value",) else keys)
        shape, dtype = getattr(leaf, "shape", None) or (), getattr(leaf, "dtype", None) or bool
        found[name] = (keys, jax.ShapeDtypeStruct(shape, dtype))  # what is no array is none of ours by its type
    return found


def _key(part: Any) -> str:
    """Return a part of a path in a tree, which in trees of others may be a place in a list."""
    return str(next(getattr(part, name) for name in ("key", "idx", "name") if hasattr(part, name)))


def _ranks(found: Mapping[str, tuple[Any, jax.ShapeDtypeStruct]]) -> tuple[int, int]:
    """Return the ranks by one leaf that every form of the model has."""

    def rank(suffix: str) -> int:
        path = f"PaliGemma/llm/layers/attn/attn_vec_einsum{suffix}/lora_a"
        return found[path][1].shape[-1] if path in found else 0

    return rank(""), rank("_1")


def _remedy(found: Mapping[str, tuple[Any, jax.ShapeDtypeStruct]], config: ModelConfig) -> str:
    """Return what to do about weights that do not fit."""
    (vlm, expert), wanted = _ranks(found), (config.vlm.lora_rank, config.expert.lora_rank)
    if (vlm, expert) == wanted:
        return "Use the preset they were made with, or other weights"
    return (
        f"They have factors of LoRA of rank {vlm} (language model) and {expert} (expert), 0 meaning none; the model "
        f"wants {wanted[0]} and {wanted[1]}: use model.vlm.lora_rank={vlm} and model.expert.lora_rank={expert}, or "
        "other weights"
    )


def _load(folder: Path, keys: dict[str, tuple[str, ...]], target: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Load every leaf straight to where, and as what, it belongs; the largest first, while there is most room."""

    def argument(path: str) -> ocp.RestoreArgs:
        wanted = target[path]
        return ocp.ArrayRestoreArgs(restore_type=jax.Array, sharding=wanted.sharding, dtype=wanted.dtype)

    def nested(values: dict) -> dict:
        return {"params": tree.nest({"/".join(keys[path]): value for path, value in values.items()})}

    loaded = {}
    with arrays.reading(folder), arrays.checkpointer() as orbax:
        for group in _groups({path: math.prod(target[path].shape) * 4 for path in keys}):
            some = ocp.args.PyTreeRestore(
                item=nested(dict.fromkeys(group, 0)),
                restore_args=nested({path: argument(path) for path in group}),
                partial_restore=True,
            )
            flat = tree.flatten(orbax.restore(folder.absolute(), args=some)["params"])
            loaded |= {path: flat["/".join(keys[path])] for path in group}
    return loaded


def _groups(sizes: dict[str, int]) -> list[list[str]]:
    """Return the paths from the largest to the smallest, as many at a time as have _AT_ONCE bytes, but at least one."""
    groups: list[list[str]] = []
    room = 0
    for path in sorted(sizes, key=lambda path: -sizes[path]):
        if sizes[path] > room:
            groups.append([])
            room = _AT_ONCE
        groups[-1].append(path)
        room -= sizes[path]
    return groups
