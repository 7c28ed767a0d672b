"""Sizes -> random parameters, a state and a batch, drawn on the device: nothing large passes through the host."""

import zlib
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu_kit.sizes import TOKENS
from pi05 import sharding
from pi05.config import ComputeConfig, ModelConfig, TrainConfig
from pi05.model import tree
from pi05.observation import Observation
from pi05.training import step


def parameters(model: ModelConfig, target: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Return parameters drawn as `tree.leaves` says, each with the dtype of `target`, on the default device."""

    def leaf(path: str, leaf: tree.Leaf) -> jax.Array:
        if not leaf.std:
            return jnp.full(leaf.shape, leaf.fill, target[path].dtype)
        drawn = jax.random.normal(jax.random.key(zlib.crc32(path.encode())), leaf.shape)
        return (drawn * leaf.std).astype(target[path].dtype)

    return jax.jit(lambda: {path: leaf(path, one) for path, one in tree.leaves(model).items()})()


def state(mesh: jax.sharding.Mesh, model: ModelConfig, train: TrainConfig, compute: ComputeConfig) -> step.TrainState:
    """Return the state before the first step, as a training makes it, of random weights."""
    params = parameters(model, step.abstract_state(model, train, compute).params)
    place = step.state_sharding(mesh, model, train, compute)
    begin = partial(step.new_state, model=model, train=train, compute=compute)
    return jax.jit(begin, out_shardings=place, donate_argnums=0)(params)


def observation(model: ModelConfig, cameras: tuple[str, ...], rows: int) -> Observation:
    """Return what `rows` environments might see, on the host."""
    random = np.random.default_rng(0)
    shape = (rows, model.image_size, model.image_size, 3)
    return Observation(
        images={name: random.integers(0, 256, shape, dtype=np.uint8) for name in cameras},
        image_masks={},
        tokens=random.integers(0, model.vocab_size, (rows, TOKENS), dtype=np.int32),
        token_mask=np.arange(TOKENS) < random.integers(TOKENS - 8, TOKENS, (rows, 1), endpoint=True),
    )


def batch(mesh: jax.sharding.Mesh, model: ModelConfig, cameras: tuple[str, ...], rows: int) -> step.Batch:
    """Return a batch on the device."""
    chunk = (rows, model.action_horizon, model.action_dim)
    actions = np.random.default_rng(1).uniform(-1, 1, chunk).astype(np.float32)
    made = step.Batch(observation(model, cameras, rows), actions, np.ones(chunk, bool))
    return sharding.place_rows(made, sharding.batch_sharding(mesh))
