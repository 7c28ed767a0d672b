"""How large everything is: the full preset on a GPU, the same with small sizes on a CPU, to try the kit out."""

from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue

from pi05.config import ModelConfig
from pi05ctl.spec.runspec import Options, RunSpec, resolve

TOKENS = 64
"""Of a ManiSkill task's prompt with 8 joints."""
_SMALL: dict[str, JsonValue] = {
    "model.image_size": 28,
    "model.vocab_size": 512,
    "model.max_token_len": 64,
    **{
        f"model.{gemma}.{field}": value
        for gemma in ("vlm", "expert")
        for field, value in {"width": 32, "mlp_dim": 64, "num_heads": 2, "head_dim": 16, "depth": 1}.items()
    },
    "model.vit.width": 32,
    "model.vit.mlp_dim": 64,
    "model.vit.num_heads": 2,
    "model.vit.depth": 1,
}


@dataclass(frozen=True)
class Sizes:
    """What the parts are run with.

    Attributes:
        cpu: Small, on a CPU, to try the kit out; its figures say nothing.
        rows: Samples of a training step.
        steps: That are timed.
        queries: Numbers of observations that a policy is asked about at once.
        restored_depth: Layers of the model whose checkpoint is written and restored.
    """

    cpu: bool
    rows: int
    steps: int
    queries: tuple[int, ...]
    restored_depth: int

    def preset(self, name: str) -> Options:
        """Return a preset; on a CPU the same with small sizes."""
        return resolve(RunSpec(kind="train", task="stackcube", preset=name, overrides=_SMALL if self.cpu else {}))


GPU = Sizes(cpu=False, rows=8, steps=20, queries=(1, 10, 64), restored_depth=4)
CPU = Sizes(cpu=True, rows=2, steps=3, queries=(1, 2), restored_depth=1)


def cut(model: ModelConfig, depth: int) -> ModelConfig:
    """Return a model of the same widths with fewer layers; the image tower loses as large a part of its own."""
    tower = max(1, round(model.vit.depth * depth / model.vlm.depth))
    changes: dict[str, Any] = {
        "vlm": model.vlm.model_copy(update={"depth": depth}),
        "expert": model.expert.model_copy(update={"depth": depth}),
        "vit": model.vit.model_copy(update={"depth": tower}),
    }
    return model.model_copy(update=changes)
