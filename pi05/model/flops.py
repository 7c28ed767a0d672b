"""Sizes of a model and of a batch -> model FLOPs of a training step, by a formula.

Model FLOPs are those of the matrix products that the mathematics asks for: forward once; backward once for the gradient
of the weights and once for that of what went in, where either is needed. What is computed again, elementwise work and
the optimizer do not count (the definition of MFU: PaLM, arXiv 2204.02311, appendix B). A product of (m, k) and (k, n)
is 2 m k n FLOPs; t tokens that attend to s with n heads of d are 4 t s n d.

    part       tokens a sample                              what is special
    tower      (image_size / patch_size)^2 a camera         images need no gradient
    language   all cameras' and the prompt's                the last layer makes keys and values only
    suffix     action_horizon a draw, seeing the prefix     adaptive norms, time and action projections
"""

from collections.abc import Collection
from dataclasses import dataclass

from pi05.config import GemmaConfig, ModelConfig, VitConfig
from pi05.model.leaves import is_factor

_TABLE = "PaliGemma/llm/embedder/"


@dataclass(frozen=True)
class Forward:
    """FLOPs of one part's forward pass of one sample.

    Attributes:
        weights: Of products with weights.
        attention: Of products of activations.
        first: Of those with weights: what goes in needs no gradient.
    """

    weights: int
    attention: int = 0
    first: int = 0


def of_step(model: ModelConfig, cameras: int, prompt: int, samples: int, draws: int, trained: Collection[str]) -> int:
    """Return the model FLOPs of one step of a whole batch.

    Args:
        model: Sizes.
        cameras: That a sample is seen through.
        prompt: Tokens of a prompt, padding included.
        samples: Of the batch.
        draws: Of noise and time a sample, which share its prefix.
        trained: Paths of the parameters that are trained; without a gradient, a frozen part costs less.
    """
    tower = [path for path in trained if path.startswith("PaliGemma/img/")]
    language = [path for path in trained if path.startswith("PaliGemma/llm/") and "_1/" not in path]
    suffix = set(trained) - {*tower, *language}
    prefix = cameras * _tokens(model) + prompt
    return samples * (
        _both_ways(_tower(model, cameras), tower, flows=bool(tower))
        + _both_ways(_language(model.vlm, prefix), language, flows=bool(tower or language))
        + _both_ways(_suffix(model, prefix, draws), suffix, flows=True)
    )


def _both_ways(part: Forward, trained: Collection[str], flows: bool) -> int:
    """Return the FLOPs of forward and backward; `flows`: whether a gradient passes through the part."""
    own = any(not path.startswith(_TABLE) and not is_factor(path) for path in trained)
    return part.weights * (1 + own + flows) - part.first * flows + part.attention * (1 + 2 * flows)


def _tokens(model: ModelConfig) -> int:
    """Return the tokens of an image."""
    return (model.image_size // model.vit.patch_size) ** 2


def _tower(model: ModelConfig, cameras: int) -> Forward:
    vit, t = model.vit, _tokens(model)
    patches = 2 * t * 3 * vit.patch_size**2 * vit.width
    weights = patches + vit.depth * _block(vit, t) + 2 * t * vit.width * model.vlm.width
    attention = vit.depth * 4 * t * t * vit.width
    return Forward(cameras * weights, cameras * attention, cameras * patches)


def _block(vit: VitConfig, t: int) -> int:
    """Return query, key, value and output of one layer of the tower, and its MLP."""
    return 8 * t * vit.width**2 + 4 * t * vit.width * vit.mlp_dim


def _language(gemma: GemmaConfig, prefix: int) -> Forward:
    whole = gemma.depth - 1
    keys_and_values = 4 * prefix * gemma.width * gemma.num_kv_heads * gemma.head_dim
    weights = whole * _layer(gemma, prefix) + keys_and_values
    return Forward(weights, whole * 4 * prefix * prefix * gemma.num_heads * gemma.head_dim)


def _layer(gemma: GemmaConfig, t: int) -> int:
    """Return query, key, value and output of one layer, and its gated MLP."""
    heads = 2 * gemma.num_heads + 2 * gemma.num_kv_heads
    return 2 * t * gemma.width * heads * gemma.head_dim + 6 * t * gemma.width * gemma.mlp_dim


def _suffix(model: ModelConfig, prefix: int, draws: int) -> Forward:
    gemma, h = model.expert, model.action_horizon
    norms = (2 * gemma.depth + 1) * 2 * gemma.width * 3 * gemma.width
    projections = 4 * h * model.action_dim * gemma.width + 2 * 2 * gemma.width**2
    weights = gemma.depth * _layer(gemma, h) + norms + projections
    attention = gemma.depth * 4 * h * (prefix + h) * gemma.num_heads * gemma.head_dim
    return Forward(draws * weights, draws * attention)
