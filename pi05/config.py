"""What a job is told: job.json as frozen pydantic models, refused when anything in it is unknown or impossible.

The controller writes these models and the pod reads them, so this module knows pydantic and nothing of JAX,
ManiSkill or Kubernetes. A section (model, train, ...) is the same in a preset, in `--set section.field=value` and in
job.json.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from pi05 import tasks
from pi05.errors import ConfigError

Positive = Annotated[int, Field(gt=0)]
Natural = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Camera = Literal["base_camera", "hand_camera"]
ACTION_NAMES = (*(f"joint_{i}" for i in range(1, 8)), "gripper")
"""Of an action: 7 absolute joint targets in rad and the gripper, -1 closed to +1 open."""
StateLayout = Literal["joints", "joints_and_poses"]


class Section(BaseModel):
    """A part of a job: immutable, and strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Convention(Section):
    """What data, checkpoint and evaluation must agree on; a mismatch is refused, never averaged away.

    Attributes:
        robot: ManiSkill robot uid.
        control_mode: ManiSkill controller; 7 absolute joint targets (rad) and a gripper in {-1, +1}.
        control_rate: Control steps a second.
        cameras: Sensor cameras in prefix order; none means that the policy does not see.
        image_size: Height and width of a rendered image, in pixels.
        state: `joints` is qpos[:8]; `joints_and_poses` appends the gripper's position (tcp) and the object and
            goal poses the task is about, which a real robot would not know.
        delta_joints: Whether the model predicts joints relative to the state at the chunk's start.
        state_in_prompt: Whether the discretised state is part of the prompt.
    """

    robot: str = "panda_wristcam"
    control_mode: Literal["pd_joint_pos"] = "pd_joint_pos"
    control_rate: Positive = 20
    cameras: tuple[Camera, ...] = ("base_camera", "hand_camera")
    image_size: Positive = 224
    state: StateLayout = "joints"
    delta_joints: bool = True
    state_in_prompt: bool = True


class DemosConfig(Section):
    """How demonstrations are made.

    Attributes:
        count: Successful demonstrations wanted; None takes the task's number.
        first_seed: Environment seed of the first attempt; attempts use consecutive seeds.
        block: Seeds that one planner process plans at a time; part of no result.
        workers: Planner processes; 0 means one a core.
        max_attempts_per_demo: Give up when this many seeds a wanted demonstration were tried.
    """

    count: Positive | None = None
    first_seed: Natural = 0
    block: Positive = 20
    workers: Natural = 0
    max_attempts_per_demo: Positive = 5


class GemmaConfig(Section):
    """Sizes of one Gemma (the language model or the action expert)."""

    width: Positive
    depth: Positive
    mlp_dim: Positive
    num_heads: Positive
    num_kv_heads: Positive
    head_dim: Positive


class VitConfig(Section):
    """Sizes of the image tower."""

    width: Positive
    depth: Positive
    mlp_dim: Positive
    num_heads: Positive
    patch_size: Positive = 14


class ModelConfig(Section):
    """Sizes of Pi0.5; the defaults of nothing, so that a preset shows them all.

    Attributes:
        image_size: Height and width of an image the tower takes, in pixels.
        action_dim: Width A that states and actions are padded to.
        action_horizon: H, actions in a chunk.
        max_token_len: Longest prompt, in tokens.
        dtype: Compute type; parameters and optimizer stay float32.
        remat: Whether the backward pass recomputes each layer instead of keeping its activations.
    """

    vlm: GemmaConfig
    expert: GemmaConfig
    vit: VitConfig
    vocab_size: Positive
    image_size: Positive = 224
    action_dim: Positive = 32
    action_horizon: Positive = 16
    max_token_len: Positive = 200
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    remat: bool = False

    @model_validator(mode="after")
    def _joint_attention_fits(self) -> Self:
        for field in ("depth", "num_heads", "num_kv_heads", "head_dim"):
            vlm, expert = getattr(self.vlm, field), getattr(self.expert, field)
            if vlm != expert:
                raise ValueError(f"vlm.{field} {vlm} and expert.{field} {expert} must be equal: attention is joint")
        if self.vlm.num_heads % self.vlm.num_kv_heads:
            raise ValueError(f"num_heads {self.vlm.num_heads} is not divisible by num_kv_heads {self.vlm.num_kv_heads}")
        if self.vlm.head_dim % 2 or self.expert.width % 2 or self.vlm.width % 2:
            raise ValueError(
                "head_dim and both widths must be even: rotary, time and number embeddings are sine-cosine pairs"
            )
        if self.vit.width % self.vit.num_heads:
            raise ValueError(f"vit.width {self.vit.width} is not divisible by vit.num_heads {self.vit.num_heads}")
        if self.image_size % self.vit.patch_size:
            raise ValueError(f"image_size {self.image_size} is not divisible by vit.patch_size {self.vit.patch_size}")
        return self


class OptimizerConfig(Section):
    """AdamW with warm-up and cosine decay (the recipe of the Pi0.5 release).

    The learning rate rises linearly from peak_lr / (warmup_steps + 1) to peak_lr, then falls as a cosine to end_lr at
    decay_steps and stays there. decay_steps None means the run's steps.
    """

    peak_lr: Annotated[float, Field(gt=0)] = 5e-5
    end_lr: Annotated[float, Field(ge=0)] = 5e-6
    warmup_steps: Natural = 1000
    decay_steps: Positive | None = None
    b1: Fraction = 0.9
    b2: Fraction = 0.95
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 1e-10
    clip_norm: Annotated[float, Field(gt=0)] = 1.0


class TrainConfig(Section):
    """One training run.

    Attributes:
        steps: Optimizer steps.
        batch_size: Global batch, split over all devices.
        seed: Seed of initial weights, data order, noise and time.
        fsdp_devices: Devices over which parameters are sharded; 0 means all.
        fsdp_min_bytes: Arrays smaller than this are replicated.
        weights: Base weights in storage (`weights/<name>`); None starts from random ones.
        tokenizer: SentencePiece file in storage (`weights/<name>.model`); None uses the small one of the recipe.
        number_embedding: How random weights embed the 256 state numbers: `random`, or `fourier`, smooth in the number.
        number_frequencies: Highest frequency of `fourier`, in half-turns over the normalised range [-1, 1].
        freeze: Regular expressions over parameter paths that stay as they are.
        state_noise: Standard deviation of noise added to the normalised state.
        draws_per_sample: (noise, time) pairs a sample; they share one prefix pass.
        ema_decay: Decay of the averaged weights; None keeps none.
        log_every, save_every, keep_every: In steps; a checkpoint is kept when it is the last, or a multiple of
            keep_every.
        patience: Steps after which a run whose loss is still that of predicting nothing is stopped; 0 never stops.
    """

    steps: Positive = 30_000
    batch_size: Positive = 64
    seed: Natural = 0
    fsdp_devices: Natural = 0
    fsdp_min_bytes: Natural = 4 * 2**20
    optimizer: OptimizerConfig = OptimizerConfig()
    weights: str | None = None
    tokenizer: str | None = None
    number_embedding: Literal["random", "fourier"] = "random"
    number_frequencies: Annotated[float, Field(gt=0)] = 4.0
    freeze: tuple[str, ...] = ()
    state_noise: Annotated[float, Field(ge=0)] = 0.0
    draws_per_sample: Positive = 1
    ema_decay: Fraction | None = 0.99
    log_every: Positive = 100
    save_every: Positive = 1000
    keep_every: Positive = 5000
    patience: Natural = 1000

    @model_validator(mode="after")
    def _decay_follows_warmup(self) -> Self:
        decay = self.optimizer.decay_steps or self.steps
        if decay <= self.optimizer.warmup_steps:
            raise ValueError(
                f"optimizer.warmup_steps {self.optimizer.warmup_steps} must be less than the {decay} decay steps; "
                f"use optimizer.warmup_steps={max(decay // 10, 0)}"
            )
        return self


class EvalConfig(Section):
    """One evaluation.

    Attributes:
        episodes: Episodes, one a seed.
        first_seed: First environment seed.
        execute_steps: Actions of a chunk that are executed before the policy is asked again.
        sampling_steps: Euler steps n of the flow.
        temperature: Scale of the noise the flow starts from; 1 samples as published, 0 takes the same middle course
            every time, which steadies a small model.
        environments: Environments stepped in lockstep with one batched policy call.
        max_steps: Episode limit in control steps; None takes the task's.
        policy: `checkpoint`; `oracle` replays the demonstrations (must be 100 %); `untrained` has random weights.
        step: Checkpoint step; None takes the last.
        seed: Seed of the policy's sampling noise.
    """

    episodes: Positive = 50
    first_seed: Natural = tasks.EVAL_SEEDS.start
    execute_steps: Positive = 8
    sampling_steps: Positive = 10
    temperature: Annotated[float, Field(ge=0)] = 1.0
    environments: Positive = 10
    max_steps: Positive | None = None
    policy: Literal["checkpoint", "oracle", "untrained"] = "checkpoint"
    step: Natural | None = None
    seed: Natural = 0


class Job(Section):
    """What every job is told.

    Attributes:
        v: Version of this contract.
        run: The run's name, `<kind>-<task>-<6 hex>`.
        task: Name of the task.
        storage: Root of all artefacts, `file:///absolute/path` or `gs://bucket/prefix`.
        convention: What data, checkpoint and evaluation agree on.
    """

    v: Literal[1] = 1
    run: str
    task: str
    storage: str
    convention: Convention

    @model_validator(mode="after")
    def _task_exists(self) -> Self:
        try:
            tasks.find(self.task)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return self


class DemosJob(Job):
    """Make one dataset. `planner_python` is the interpreter of the planner's own environment (numpy < 2)."""

    kind: Literal["demos"] = "demos"
    dataset: str
    demos: DemosConfig
    planner_python: str


class TrainJob(Job):
    """Train on one dataset. `dataset` is its key in storage."""

    kind: Literal["train"] = "train"
    dataset: str
    model: ModelConfig
    train: TrainConfig

    @model_validator(mode="after")
    def _horizon_fits_episodes(self) -> Self:
        task = tasks.find(self.task)
        if self.model.action_horizon > task.demo_steps:
            raise ValueError(
                f"model.action_horizon {self.model.action_horizon} is longer than the longest {self.task} "
                f"demonstration ({task.demo_steps} steps); use 16"
            )
        if self.convention.cameras and self.convention.image_size != self.model.image_size:
            raise ValueError(
                f"convention.image_size {self.convention.image_size} and model.image_size {self.model.image_size} "
                "must be equal"
            )
        return self


class EvalJob(Job):
    """Evaluate the checkpoints of `train_run`; `dataset` feeds the oracle and says which seeds were seen."""

    kind: Literal["eval"] = "eval"
    dataset: str
    train_run: str
    eval: EvalConfig

    @model_validator(mode="after")
    def _seeds_are_unseen(self) -> Self:
        first, last = self.eval.first_seed, self.eval.first_seed + self.eval.episodes - 1
        if self.eval.policy != "oracle" and not (first in tasks.EVAL_SEEDS and last in tasks.EVAL_SEEDS):
            raise ValueError(
                f"eval seeds {first} to {last} must lie in {tasks.EVAL_SEEDS.start} to {tasks.EVAL_SEEDS.stop - 1}; "
                "lower ones belong to demonstrations"
            )
        return self


class ProbeJob(Section):
    """Look around in a pod and say what is there; no run, but told like one.

    Attributes:
        v: Version of this contract.
        run: Name of the Helm release.
        pods: The kind of run whose pods it tries out.
        storage: What the pod must be able to write, read and delete in.
        gpus: Devices that JAX must see; 0: whatever there is.
        planner_python: The planner's interpreter, which must be able to plan; None where nothing is planned.
        rights: Verb, API group and resource of all that the pod's account must be allowed to do in its namespace.
    """

    v: Literal[1] = 1
    kind: Literal["probe"] = "probe"
    run: str
    pods: Literal["train", "eval", "pipeline"]
    storage: str
    gpus: Natural = 0
    planner_python: str | None = None
    rights: tuple[tuple[str, str, str], ...] = ()


AnyJob = DemosJob | TrainJob | EvalJob
_JOB: TypeAdapter[AnyJob] = TypeAdapter(Annotated[AnyJob, Field(discriminator="kind")])


def load_job(path: Path) -> AnyJob:
    """Read job.json; raise ConfigError with every offending field when it is not a valid job."""
    try:
        return _JOB.validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read the job file {path}: {error.strerror}") from error
    except ValidationError as error:
        raise ConfigError(f"{path} is not a valid job: {explain(error)}") from error


def explain(error: ValidationError) -> str:
    """Return pydantic's complaints as one line: `train.steps: Input should be greater than 0 (given -1); ...`."""
    parts: list[str] = []
    for item in error.errors(include_url=False):
        where = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        given = "" if isinstance(item["input"], dict | BaseModel) else f" (given {item['input']!r})"
        parts.append(f"{where}: {message}{given}" if where else message)
    return "; ".join(parts)
