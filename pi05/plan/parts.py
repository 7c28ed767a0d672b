"""A training job -> the parts of its model as one GPU computes them: tokens, matrix products, what is kept and moved.

Sizes alone, from the program's own sources: pi05/model/{siglip,gemma}.py say which products there are, and
pi05/model/stack.py what is kept. How often elementwise work reads and writes an array was counted in the compiled
program of the full preset, layers looped. All counts are numbers of the compute type, a token and layer.
"""

from dataclasses import dataclass

from pi05.config import GemmaConfig, TrainJob, VitConfig
from pi05.model import leaves

CUDNN = {(9, 0): 256, (8, 0): 128}
"""Largest head of cuDNN's attention from a compute capability on, as pi05.model.device has it."""
Product = tuple[int, int]
"""Rows and columns of a matrix that tokens are multiplied by."""


@dataclass(frozen=True)
class Attention:
    """What queries see, of one sample: `keys` of kv heads that together have `kv` numbers, by `heads` of `dim`."""

    queries: int
    keys: int
    heads: int
    dim: int
    kv: int


@dataclass(frozen=True)
class Part:
    """A stack of equal layers over the tokens of a sample.

    Attributes:
        name: tower, language or suffix.
        depth: Layers.
        rows: Of the batch, for one sample: pictures, 1, or draws.
        tokens: Of a row.
        products: Of a layer; the last is never computed again, for nobody needs what it makes.
        factors: Of LoRA beside them, which are trained.
        attention: Of a row and layer.
        kept: Numbers that the backward pass needs, by what is recomputed.
        forward, backward: Numbers that elementwise work reads and writes.
        recompute: What is computed again.
        own: Whether its own matrices are trained.
        flows: Whether a gradient passes through it.
    """

    name: str
    depth: int
    rows: int
    tokens: int
    products: tuple[Product, ...]
    factors: tuple[Product, ...]
    attention: Attention
    kept: dict[str, int]
    forward: int
    backward: int
    recompute: str
    own: bool
    flows: bool


def parts(job: TrainJob, tokens: int) -> tuple[Part, ...]:
    """Return the parts that a job's samples go through."""
    trained = trained_paths(job)
    tower = [path for path in trained if path.startswith("PaliGemma/img/")]
    language = [path for path in trained if path.startswith("PaliGemma/llm/layers/") and "_1/" not in path]
    model = job.model
    patches = (model.image_size // model.vit.patch_size) ** 2
    pictures = len(job.convention.cameras)
    prefix = pictures * patches + tokens
    seen = prefix + model.action_horizon
    again = job.compute.recompute
    found = (
        _language(model.vlm, prefix, again, own=_own(language), flows=bool(tower or language)),
        _suffix(model.expert, model.action_horizon, seen, job.train.draws_per_sample, not model.expert.lora_rank),
    )
    return (_tower(model.vit, pictures, patches, again, bool(tower)), *found) if pictures else found


def trained_paths(job: TrainJob) -> list[str]:
    """Return the paths of the parameters that are trained."""
    return leaves.trained(job.model, job.train.freeze)


def _own(trained: list[str]) -> bool:
    """Return whether matrices are trained, and not only factors beside them."""
    return any(not leaves.is_factor(path) for path in trained)


def _tower(vit: VitConfig, pictures: int, patches: int, recompute: str, trained: bool) -> Part:
    w, hidden = vit.width, vit.mlp_dim
    return Part(
        name="tower",
        depth=vit.depth,
        rows=pictures,
        tokens=patches,
        products=((w, w), (w, w), (w, w), (w, w), (w, hidden), (hidden, w)),
        factors=(),
        attention=Attention(patches, patches, vit.num_heads, w // vit.num_heads, w),
        kept={"nothing": 8 * w + 2 * hidden, "cheap": 5 * w + hidden, "layers": w},
        forward=16 * w + 2 * hidden,
        backward=36 * w + 4 * hidden,
        recompute=recompute,
        own=trained,
        flows=trained,
    )


def _language(gemma: GemmaConfig, prefix: int, recompute: str, own: bool, flows: bool) -> Part:
    w, hidden, mixed = gemma.width, gemma.mlp_dim, gemma.num_heads * gemma.head_dim
    kv = gemma.num_kv_heads * gemma.head_dim
    return Part(
        name="language",
        depth=gemma.depth - 1,
        rows=1,
        tokens=prefix,
        products=_products(gemma),
        factors=_factors(gemma),
        attention=Attention(prefix, prefix, gemma.num_heads, gemma.head_dim, kv),
        kept={
            "nothing": 5 * w + 3 * hidden + 2 * mixed + 2 * kv,
            "cheap": w + 2 * hidden + 2 * mixed + 2 * kv,
            "layers": w + 2 * kv,
        },
        forward=4 * w + 3 * hidden + 2 * mixed + _added(gemma),
        backward=12 * w + 5 * hidden + 2 * mixed,
        recompute=recompute,
        own=own,
        flows=flows,
    )


def _suffix(gemma: GemmaConfig, horizon: int, seen: int, draws: int, own: bool) -> Part:
    w, hidden, mixed = gemma.width, gemma.mlp_dim, gemma.num_heads * gemma.head_dim
    kv = gemma.num_kv_heads * gemma.head_dim
    return Part(
        name="suffix",
        depth=gemma.depth,
        rows=draws,
        tokens=horizon,
        products=_products(gemma),
        factors=_factors(gemma),
        attention=Attention(horizon, seen, gemma.num_heads, gemma.head_dim, kv),
        kept={"nothing": 5 * w + 3 * hidden + 2 * mixed},
        forward=4 * w + 3 * hidden + 2 * mixed + _added(gemma),
        backward=12 * w + 5 * hidden + 2 * mixed,
        recompute="nothing",
        own=own,
        flows=True,
    )


def _products(gemma: GemmaConfig) -> tuple[Product, ...]:
    """Return queries, keys and values, the heads' output, gate, up and down."""
    w, hidden, mixed = gemma.width, gemma.mlp_dim, gemma.num_heads * gemma.head_dim
    kv = 2 * gemma.num_kv_heads * gemma.head_dim
    return (w, mixed), (w, kv), (mixed, w), (w, hidden), (w, hidden), (hidden, w)


def _factors(gemma: GemmaConfig) -> tuple[Product, ...]:
    """Return the two products with factors of LoRA beside each matrix; none where there are none."""
    rank = gemma.lora_rank
    pairs = (((rows, rank), (rank, columns)) for rows, columns in _products(gemma))
    return tuple(product for pair in pairs for product in pair) if rank else ()


def _added(gemma: GemmaConfig) -> int:
    """Return the numbers that are moved to add what factors make to gate and up."""
    return 6 * gemma.mlp_dim if gemma.lora_rank else 0
