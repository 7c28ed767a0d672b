"""Pi0.5 (arXiv 2504.16054): observation and noisy actions to velocity, loss and action chunks.

Pure functions of a parameter tree (see tree.py for its names) and the sizes; nothing here knows files, devices or how
training goes.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, UInt32

from pi05.config import ComputeConfig, ModelConfig
from pi05.model import flow, gemma, siglip
from pi05.model.tree import Params
from pi05.observation import Actions, Observation


def embed_prefix(
    params: Params, config: ModelConfig, compute: ComputeConfig, observation: Observation
) -> tuple[Float[Array, "b s w"], Bool[Array, "b s"]]:
    """Return the prefix, every camera's tokens and then the prompt's, and which of its tokens exist."""
    dtype = jnp.dtype(compute.dtype)
    tokens, masks = [], []
    if observation.images:
        for name, encoded in _encode_cameras(params, config, compute, observation).items():
            tokens.append(encoded)
            exists = observation.image_masks.get(name, np.ones(len(encoded), bool))
            masks.append(jnp.broadcast_to(exists[:, None], encoded.shape[:2]))
    tokens.append(gemma.embed(params["PaliGemma"]["llm"], jnp.asarray(observation.tokens), dtype))
    masks.append(jnp.asarray(observation.token_mask))
    return jnp.concatenate(tokens, axis=1), jnp.concatenate(masks, axis=1)


def encode(params: Params, config: ModelConfig, compute: ComputeConfig, observation: Observation) -> gemma.KeyValues:
    """Run everything that does not depend on the actions."""
    tokens, mask = embed_prefix(params, config, compute, observation)
    tokens = _existing_first(tokens, mask) if observation.image_masks else tokens
    return gemma.encode_prefix(params["PaliGemma"]["llm"], tokens, mask.sum(axis=1, dtype=jnp.int32), compute)


def velocity(
    params: Params,
    config: ModelConfig,
    compute: ComputeConfig,
    prefix: gemma.KeyValues,
    noisy_actions: Actions,
    time: Float[Array, " b"],
) -> Actions:
    """Return the velocity, float32, at noisy actions and time in [0, 1]."""
    x = _dense(params["action_in_proj"], noisy_actions)
    condition = _dense(params["time_mlp_in"], flow.time_embedding(time, config.expert.width))
    condition = jax.nn.silu(_dense(params["time_mlp_out"], jax.nn.silu(condition)))
    x = gemma.decode_suffix(params["PaliGemma"]["llm"], prefix, x.astype(compute.dtype), condition, compute)
    return _dense(params["action_out_proj"], x.astype(jnp.float32))


def predict(
    params: Params,
    config: ModelConfig,
    compute: ComputeConfig,
    observation: Observation,
    actions: Actions,
    noise: Float[Array, "draws b h a"],
    time: Float[Array, "draws b"],
) -> tuple[Float[Array, "draws b h a"], Float[Array, "draws b h a"]]:
    """Return the predicted velocity and the one to learn, for each draw of noise and time.

    All draws share one prefix pass. The published loss is the squared difference, averaged over the action width.
    """
    prefix = encode(params, config, compute, observation)

    def one(noise: Array, time: Array) -> tuple[Array, Array]:
        noisy, target = flow.interpolate(actions, noise, time)
        return velocity(params, config, compute, prefix, noisy, time), target

    return jax.vmap(one)(noise, time)


def sample(
    params: Params,
    config: ModelConfig,
    compute: ComputeConfig,
    observation: Observation,
    noise: Float[Array, "b h a"],
    steps: int,
) -> Actions:
    """Return action chunks by `steps` Euler steps from `noise`; the prefix runs once."""
    prefix = encode(params, config, compute, observation)
    return flow.integrate(partial(velocity, params, config, compute, prefix), noise, steps)


def sample_episodes(
    params: Params,
    observation: Observation,
    key: Key[Array, ""],
    episodes: UInt32[Array, " b"],
    query: UInt32[Array, ""],
    *,
    config: ModelConfig,
    compute: ComputeConfig,
    steps: int,
    temperature: float,
) -> Actions:
    """Draw each episode's noise, from the key, its own number and that of the query alone, and sample from there."""

    def draw(episode: Array) -> Array:
        episode_key = jax.random.fold_in(jax.random.fold_in(key, episode), query)
        return temperature * jax.random.normal(episode_key, (config.action_horizon, config.action_dim))

    return sample(params, config, compute, observation, jax.vmap(draw)(episodes), steps)


def _existing_first(tokens: Float[Array, "b s w"], mask: Bool[Array, "b s"]) -> Float[Array, "b s w"]:
    """Move what is masked to the end, in order: a token's position is how many exist before it."""
    order = jnp.argsort(~mask, axis=1, stable=True)
    return _permute(tokens, order, jnp.argsort(order, axis=1))


@jax.custom_vjp
def _permute(x: Array, order: Array, inverse: Array) -> Array:
    """Reorder tokens; backward by the inverse, because the gradient of a gather is a slow sum."""
    del inverse
    return jnp.take_along_axis(x, order[..., None], axis=1)


_permute.defvjp(
    lambda x, order, inverse: (_permute(x, order, inverse), inverse),
    lambda inverse, gradient: (jnp.take_along_axis(gradient, inverse[..., None], axis=1), None, None),
)


def _encode_cameras(
    params: Params, config: ModelConfig, compute: ComputeConfig, observation: Observation
) -> dict[str, Array]:
    """Run the image tower once over the cameras of all samples; they come in the order of their names, as published."""
    names = sorted(observation.images)
    stacked = jnp.concatenate([_to_float(jnp.asarray(observation.images[name])) for name in names])
    encoded = siglip.encode_images(params["PaliGemma"]["img"], stacked, config.vit.patch_size, compute)
    return dict(zip(names, jnp.split(encoded, len(names)), strict=True))


def _to_float(image: Array) -> Array:
    """Return the image in [-1, 1]; float images are there already."""
    return image.astype(jnp.float32) / 127.5 - 1 if image.dtype == jnp.uint8 else image


def _dense(layer: Params, x: Array) -> Array:
    """Apply a dense layer in float32."""
    return x @ layer["kernel"] + layer["bias"]
