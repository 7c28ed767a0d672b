"""What a job is told: job.json as frozen pydantic models, refused when anything in it is unknown or impossible.

The controller writes these models and the pod reads them, so this module knows pydantic and nothing of JAX,
ManiSkill or Kubernetes. A section (model, train, ...) is the same in a preset, in `--set section.field=value` and in
job.json.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator

from pi05 import intervals, tasks
from pi05.errors import ConfigError

LONGEST_PROFILE = 50
"""Steps that a profile may record: some hundred MB on 8 GPUs."""
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
        cameras: Sensor cameras; none means that the policy does not see. In whatever order they are given, the model
            sees them in that of their names, base before hand, as the published one does.
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

    @field_validator("cameras")
    @classmethod
    def _order_says_nothing(cls, cameras: tuple[Camera, ...]) -> tuple[Camera, ...]:
        if len(set(cameras)) < len(cameras):
            raise ValueError(f"a camera is named twice in {', '.join(cameras)}; name each once")
        return tuple(sorted(cameras))


class DemosConfig(Section):
    """How demonstrations are made.

    Attributes:
        count: Successful demonstrations wanted; None takes the task's number.
        first_seed: Environment seed of the first attempt; attempts use consecutive seeds.
        source: ManiSkill's h5 file of recordings to replay, its json beside it; "" plans them.
        fewer: Of a source, be content with fewer demonstrations when not as many replay.
        dataset: Name of an imported dataset of the task, to train on instead of making one; "" makes one.
        hold: Control steps that are added at the end, the last action repeated: how to stay when all is done.
        disturb: Size of the pushes that lead a replay off its course and show the way back, in rad a joint
            (pi05.data.disturb); 0: none. Where a pushed replay fails, the demonstration is the undisturbed one.
        block: Seeds that one process plans and replays at a time; part of no result.
        workers: How many do so at once; 0 means one a core.
        max_attempts_per_demo: Give up when this many seeds a wanted demonstration were tried.
    """

    count: Positive | None = None
    first_seed: Natural = 0
    source: str = ""
    fewer: bool = False
    dataset: Annotated[str, Field(pattern=r"^(import-[0-9a-f]{12})?$")] = ""
    hold: Natural = 0
    disturb: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    block: Positive = 20
    workers: Natural = 0
    max_attempts_per_demo: Positive = 5


class GemmaConfig(Section):
    """Sizes of one Gemma (the language model or the action expert).

    Attributes:
        width: Numbers a token; even.
        depth: Layers; the same in both Gemmas, whose attention is joint, as are heads and head_dim.
        mlp_dim: Hidden width of each layer's MLP.
        num_heads: Query heads.
        num_kv_heads: Heads of keys and values that the query heads share.
        head_dim: Numbers a head; even.
        lora_rank: Rank of the factors beside each matrix of attention and MLP (LoRA, arXiv 2106.09685; alpha is the
            rank, so nothing is scaled). Where there are factors they are trained and this Gemma's own weights are
            frozen. 0: no factors, and the weights are trained.
    """

    width: Positive
    depth: Positive
    mlp_dim: Positive
    num_heads: Positive
    num_kv_heads: Positive
    head_dim: Positive
    lora_rank: Natural = 0


class VitConfig(Section):
    """Sizes of the image tower.

    Attributes:
        width: Numbers a patch; divisible by num_heads.
        depth: Layers.
        mlp_dim: Hidden width of each layer's MLP.
        num_heads: Attention heads.
        patch_size: Height and width of a patch, in pixels; model.image_size is a multiple of it.
    """

    width: Positive
    depth: Positive
    mlp_dim: Positive
    num_heads: Positive
    patch_size: Positive = 14


class ModelConfig(Section):
    """Sizes of Pi0.5; the defaults of nothing, so that a preset shows them all.

    Attributes:
        vocab_size: Rows of the token table, at least the tokenizer's.
        image_size: Height and width of an image the tower takes, in pixels; images of another size are resized.
        action_dim: Width A that states and actions are padded to.
        action_horizon: H, actions in a chunk.
        max_token_len: Longest prompt, in tokens.
    """

    vlm: GemmaConfig
    expert: GemmaConfig
    vit: VitConfig
    vocab_size: Positive
    image_size: Positive = 224
    action_dim: Positive = 32
    action_horizon: Positive = 16
    max_token_len: Positive = 200

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


class ComputeConfig(Section):
    """How the numbers are computed; no part of the model, and free when a run resumes.

    Attributes:
        dtype: Compute type; parameters and optimizer stay float32.
        recompute: What the backward pass computes again instead of keeping it: `nothing` but the insides of norms and
            activation functions; `cheap`, all that is between matrix products; whole `layers`. Less memory, more time.
            The suffix is never computed again: its activations are small.
        layers: `looped`, which is quick to compile, `unrolled`, which runs faster, or `auto`: unrolled on a GPU.
        attention: `xla`, `cudnn` (NVIDIA, bfloat16; keeps no logits in memory), or `auto`: cudnn where it can be had.
        microbatches: Parts of a batch that are computed one after the other; their gradients are averaged. Less memory,
            more time, the same numbers to rounding.
        xla_options: Options of XLA for the step, each `name=value`, for example `xla_gpu_deterministic_ops=true`; those
            of a GPU count on a GPU alone.
    """

    dtype: Literal["float32", "bfloat16"] = "float32"
    recompute: Literal["nothing", "cheap", "layers"] = "nothing"
    layers: Literal["auto", "looped", "unrolled"] = "auto"
    attention: Literal["auto", "xla", "cudnn"] = "auto"
    microbatches: Positive = 1
    xla_options: tuple[Annotated[str, Field(pattern=r"^xla_[a-z0-9_]+=\S+$")], ...] = ()


FLOAT32 = ComputeConfig()
"""The plainest way to compute."""


class OptimizerConfig(Section):
    """AdamW with warm-up and cosine decay (the recipe of the Pi0.5 release).

    The learning rate rises linearly from peak_lr / (warmup_steps + 1) to peak_lr, then falls as a cosine to end_lr at
    decay_steps and stays there.

    Attributes:
        peak_lr, end_lr: Learning rates after the rise and after the fall.
        warmup_steps: Steps of the rise.
        decay_steps: Step at which the fall ends; None means the run's steps.
        b1, b2: Decay of the means of gradients and of their squares.
        eps: Added to the root of the mean square.
        weight_decay: Share of a weight that is taken off it each step, times the learning rate.
        clip_norm: Longer gradients, over all parameters, are shortened to this length.
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


class AugmentConfig(Section):
    """Random changes of training images; the defaults are those of the Pi0.5 release, as its library makes them.

    The release also asks for a change of saturation, which its library computes and throws away, and for none of hue,
    of which that library has a default of its own.

    Attributes:
        crop: Side of the part that is kept and resized back, as a share of the image, in whole pixels; base camera
            only. 1 keeps all.
        rotation: Largest angle, in degrees; base camera only, because the hand's camera turns with the hand.
        probability: Share of the pictures whose colours change.
        brightness: Largest blend with white or black.
        contrast: Largest change of the angle at which a curve rises in the middle: 1 is from flat to a step.
        hue: Largest turn, in degrees of the circle of colours.
    """

    crop: Annotated[float, Field(gt=0, le=1)] = 0.95
    rotation: Annotated[float, Field(ge=0, le=180)] = 5.0
    probability: Fraction = 0.5
    brightness: Fraction = 0.3
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.4
    hue: Annotated[float, Field(ge=0, le=180)] = 36.0

    @model_validator(mode="before")
    @classmethod
    def _of_old(cls, data: Any) -> Any:
        """Take what a job or checkpoint says that had a saturation, and changed every picture, but no hue."""
        said = cast("dict[str, Any]", data)
        if not isinstance(data, dict) or "saturation" not in said:
            return said
        return {"probability": 1.0, "hue": 0.0} | {name: value for name, value in said.items() if name != "saturation"}


class TrainConfig(Section):
    """One training run.

    Attributes:
        steps: Optimizer steps.
        batch_size: Global batch, split over all devices.
        seed: Seed of initial weights, data order, noise and time.
        fsdp_devices: Devices over which parameters are sharded; 0 means those of a node. Between nodes they are copied.
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
        save_state_every: In steps; these checkpoints training can go on from, and so from the last one and from that of
            a signal. Of others only policies are made: they are a quarter of the size. None: every checkpoint.
        held_out: Episodes of each dataset that are kept apart from training, in number, or below 1 as a share; neither
            batches nor statistics have them. Which ones depends on nothing but how many there are.
        held_out_every: Steps between two looks at their loss, of the weights that a policy uses and always with the
            same noise and time; the last step has one, too.
        profile: First and last step that JAX's profiler records into the run's storage; None records none.
        patience: Steps after which a run whose loss is still that of predicting nothing is stopped; 0 never stops.
        augment: Random changes of images.
        mix: Tasks to train on beside the run's own, each `task` or `task:weight`. The run's own has weight 1, and so
            has one that names none; a task's share of the samples is its weight by the sum of all.
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
    save_state_every: Positive | None = None
    keep_every: Positive = 5000
    held_out: Annotated[float, Field(ge=0)] = 0
    held_out_every: Positive = 1000
    profile: tuple[Positive, Positive] | None = None
    patience: Natural = 1000
    augment: AugmentConfig = AugmentConfig()
    mix: tuple[str, ...] = ()

    @property
    def weights_of_others(self) -> dict[str, float]:
        """The tasks of `mix` and their weights."""
        pairs = (entry.partition(":") for entry in self.mix)
        return {name: float(weight) if colon else 1.0 for name, colon, weight in pairs}

    @field_validator("mix")
    @classmethod
    def _mix_names_tasks(cls, mix: tuple[str, ...]) -> tuple[str, ...]:
        names = [entry.partition(":")[0] for entry in mix]
        for entry, name in zip(mix, names, strict=True):
            _find_task(name)
            weight = re.fullmatch(r"[a-z]+(?::(\d*\.?\d+))?", entry)
            if not weight or float(weight[1] or 1) < 1e-3:
                raise ValueError(f"{entry!r} is not task or task:weight with a weight of 0.001 or more; use {name}:0.5")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{', '.join(twice)} is named twice; give it one weight")
        return mix

    @field_validator("held_out")
    @classmethod
    def _share_or_number(cls, held_out: float) -> float:
        if held_out >= 1 and held_out != int(held_out):
            raise ValueError(f"{held_out:g} is neither a share below 1 nor a number of episodes; use {int(held_out)}")
        return held_out

    @model_validator(mode="after")
    def _profile_is_short(self) -> Self:
        first, last = self.profile or (1, 1)
        if not first <= last <= self.steps or last - first >= LONGEST_PROFILE:
            raise ValueError(
                f"profile {list(self.profile or ())} must be [first, last] with at most {LONGEST_PROFILE} of the steps "
                f"1 to {self.steps}; use profile=[{min(20, self.steps)}, {min(24, self.steps)}]"
            )
        return self

    @model_validator(mode="after")
    def _decay_follows_warmup(self) -> Self:
        decay = self.optimizer.decay_steps or self.steps
        if decay <= self.optimizer.warmup_steps:
            raise ValueError(
                f"optimizer.warmup_steps {self.optimizer.warmup_steps} must be less than the {decay} decay steps; "
                f"use train.optimizer.warmup_steps={max(decay // 10, 0)}"
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
        batch_size: Rows of a policy call, whatever the number of environments. Part of the result: sums of another
            shape round differently.
        environments: Environments stepped in lockstep; part of no result.
        workers: Processes that share them, physics and rendering; 0 means one a core. Part of no result.
        max_steps: Episode limit in control steps; None takes the task's.
        policy: `checkpoint`; `oracle` replays the demonstrations (must be 100 %); `untrained` has random weights.
        step: Checkpoint step; None takes the last.
        seed: Seed of the policy's sampling noise.
        renderer: `same` refuses a renderer that the policy did not learn from; `any` takes it, and the result says so.
        videos: Episodes that are filmed afterwards, failures first, where there is a renderer.
        until: End when the 95 % interval of the success rate is so wide or less, a share; `episodes` are the most that
            are run then. None runs them all.
    """

    episodes: Positive = 50
    first_seed: Natural = tasks.EVAL_SEEDS.start
    execute_steps: Positive = 8
    sampling_steps: Positive = 10
    temperature: Annotated[float, Field(ge=0)] = 1.0
    batch_size: Positive = 10
    environments: Positive = 10
    workers: Natural = 0
    max_steps: Positive | None = None
    policy: Literal["checkpoint", "oracle", "untrained"] = "checkpoint"
    step: Natural | None = None
    seed: Natural = 0
    renderer: Literal["same", "any"] = "same"
    videos: Natural = 4
    until: float | None = None

    @model_validator(mode="after")
    def _until_can_be(self) -> Self:
        if self.until is None:
            return self
        intervals.check_width(self.until)
        if self.policy == "oracle":
            raise ValueError("until is about the success rate of a policy; demonstrations must succeed, leave it out")
        if self.episodes < (fewest := intervals.fewest(self.until)):
            raise ValueError(
                f"until {self.until:g} takes {fewest} episodes or more, episodes {self.episodes} are the most; "
                f"use episodes={intervals.most(self.until)}, which is enough for every rate, or another until"
            )
        return self


class Job(Section):
    """What every job is told.

    Attributes:
        v: Version of this contract.
        run: The run's name, `<kind>-<task>-<6 hex>`.
        task: Name of the task.
        storage: Root of all artefacts, `file:///absolute/path`, `gs://bucket/prefix` or `s3://bucket/prefix`.
        convention: What data, checkpoint and evaluation agree on.
    """

    v: Literal[1] = 1
    run: str
    task: str
    storage: str
    convention: Convention

    @model_validator(mode="before")
    @classmethod
    def _of_old(cls, data: Any) -> Any:
        return computed_apart(data)

    @model_validator(mode="after")
    def _task_exists(self) -> Self:
        _find_task(self.task)
        return self


def computed_apart(data: Any) -> Any:
    """Return what a job or checkpoint says with `compute` apart from `model`, of which it once was a part."""
    said = cast("dict[str, Any]", data)
    if not isinstance(data, dict) or "compute" in said:
        return said
    model: dict[str, Any] = said["model"] if isinstance(said.get("model"), dict) else {}
    if not model.keys() & {"dtype", "remat"}:
        return said
    kept = {name: value for name, value in model.items() if name not in ("dtype", "remat")}
    recompute = "layers" if model.get("remat") else "nothing"
    return {**said, "model": kept, "compute": {"dtype": model.get("dtype", "bfloat16"), "recompute": recompute}}


class DemosJob(Job):
    """Make one dataset. `planner_python` is the interpreter of the planner's own environment (numpy < 2)."""

    kind: Literal["demos"] = "demos"
    dataset: str
    demos: DemosConfig
    planner_python: str


class Share(Section):
    """A dataset to train on.

    Attributes:
        task: Name of its task.
        dataset: Its key in storage.
        weight: Its share of the samples is this by the sum of all weights.
    """

    task: str
    dataset: str
    weight: Annotated[float, Field(ge=1e-3)] = 1.0


class TrainJob(Job):
    """Train on one dataset or more. `dataset` is the key of the task's own in storage, `others` are `train.mix`."""

    kind: Literal["train"] = "train"
    dataset: str
    others: tuple[Share, ...] = ()
    model: ModelConfig
    compute: ComputeConfig = FLOAT32
    train: TrainConfig

    @property
    def shares(self) -> tuple[Share, ...]:
        """All datasets, the task's own first."""
        return (Share(task=self.task, dataset=self.dataset), *self.others)

    @model_validator(mode="after")
    def _horizon_fits_episodes(self) -> Self:
        for task in (tasks.find(share.task) for share in self.shares):
            if self.model.action_horizon > task.demo_steps:
                raise ValueError(
                    f"model.action_horizon {self.model.action_horizon} is longer than the longest {task.name} "
                    f"demonstration ({task.demo_steps} steps); use 16"
                )
        return self

    @model_validator(mode="after")
    def _frozen_weights_come_from_somewhere(self) -> Self:
        if (self.model.vlm.lora_rank or self.model.expert.lora_rank) and not self.train.weights:
            raise ValueError(
                "model.vlm.lora_rank and model.expert.lora_rank freeze a Gemma, which random weights make useless; set "
                "train.weights, as in train.weights=pi05_base, or both ranks to 0"
            )
        return self

    @model_validator(mode="after")
    def _others_are_the_mix(self) -> Self:
        wanted, found = self.train.weights_of_others, {share.task: share.weight for share in self.others}
        if wanted != found:
            raise ValueError(f"others are the datasets of {found}, train.mix asks for {wanted}; they must be the same")
        if self.task in found:
            raise ValueError(f"train.mix names {self.task}, which is the run's own task and has weight 1; leave it out")
        return self


class EvalJob(Job):
    """Evaluate the checkpoints of `train_run`; `dataset` feeds the oracle and says which seeds were seen."""

    kind: Literal["eval"] = "eval"
    dataset: str
    train_run: str
    compute: ComputeConfig = FLOAT32
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


class Described(Section):
    """A training, and GPUs that need not be there."""

    job: TrainJob
    chip: str
    gpus: Positive
    nodes: Positive


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
        described: What to compile instead of looking around.
    """

    v: Literal[1] = 1
    kind: Literal["probe"] = "probe"
    run: str
    pods: Literal["train", "eval", "pipeline"]
    storage: str
    gpus: Natural = 0
    planner_python: str | None = None
    rights: tuple[tuple[str, str, str], ...] = ()
    described: Described | None = None


def _find_task(name: str) -> None:
    """Raise ValueError, which pydantic reports with its place, unless there is a task of this name."""
    try:
        tasks.find(name)
    except ConfigError as error:
        raise ValueError(str(error)) from None


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
