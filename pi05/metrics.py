"""The numbers that jobs tell in their events, by name: what each means and how it is written.

The one list of their names. A job tells only what it knows: no memory on a CPU, no share of a peak that is not known.
"""

from typing import NamedTuple


class Metric(NamedTuple):
    """One number.

    Attributes:
        words: What it is, with its unit.
        form: How it is written.
    """

    words: str
    form: str = "{:.4f}"


METRICS = {
    # Training. What steps say is the mean over those since the last report, skipped ones left out.
    "loss": Metric("loss, as published"),
    "grad_norm": Metric("norm of the gradient, of the last step"),
    "param_norm": Metric("norm of all parameters, of the last step"),
    "loss_real": Metric("loss of the robot's own dimensions inside the episode, without padding"),
    "explained": Metric("1 - loss / loss of predicting nothing"),
    "loss_held_out": Metric("loss of the weights a policy uses, over the episodes kept apart"),
    "learning_rate": Metric("learning rate, of the last step", "{:.2e}"),
    "skipped": Metric("steps of this run that changed nothing, because loss or gradient was not finite", "{:.0f}"),
    # Speed. Saves, the held-out loss and compilation are no part of a step's seconds; waits for data are. What ends in
    # _seconds is since the last report.
    "seconds_per_step": Metric("s a step"),
    "samples_per_second": Metric("samples a second", "{:.1f}"),
    "tflop_per_step": Metric("TFLOP a step of the whole batch, by the model's formula", "{:.3g}"),
    "mfu": Metric("model FLOPs used, as a share of the chips' bfloat16 peak", "{:.3f}"),
    "data_seconds": Metric("s without work because data were missing", "{:.2f}"),
    "save_seconds": Metric("s in which steps waited for saves", "{:.2f}"),
    "held_out_seconds": Metric("s in which steps waited for the held-out loss", "{:.2f}"),
    "compile_seconds": Metric("s to compile the step", "{:.1f}"),
    # Devices of the process that speaks.
    "memory_gb": Metric("GB in use on the fullest device", "{:.1f}"),
    "memory_peak_gb": Metric("GB at most in use so far on the fullest device", "{:.1f}"),
    "gpu_utilisation": Metric("share of the last second in which a kernel ran, mean of the GPUs", "{:.2f}"),
    "gpu_watts": Metric("W a GPU, mean", "{:.0f}"),
    "gpus_slowed": Metric("GPUs that are slowed down now by heat or by their power supply", "{:.0f}"),
    "gpu_ecc_errors": Metric("uncorrected memory errors of all GPUs since their driver was loaded", "{:.0f}"),
    # Demonstrations.
    "yield": Metric("demonstrations a seed tried", "{:.2f}"),
    "demos": Metric("demonstrations", "{:.0f}"),
    "frames": Metric("frames", "{:.0f}"),
    "seconds_per_demo": Metric("s of planning a demonstration, failures included", "{:.2f}"),
    "replay_seconds_per_demo": Metric("s of replay and rendering a demonstration, failures included", "{:.2f}"),
    "inexact": Metric("demonstrations whose replay differed from the plan", "{:.0f}"),
    # Evaluation.
    "success_once": Metric("share of episodes solved at some step", "{:.2f}"),
    "success_at_end": Metric("share of episodes solved at the last step", "{:.2f}"),
    "wilson_low": Metric("lower end of the 95 % interval of success_once", "{:.2f}"),
    "wilson_high": Metric("upper end of it", "{:.2f}"),
    "exact_low": Metric("lower end of it, of an evaluation that ends when it is narrow", "{:.2f}"),
    "exact_high": Metric("upper end of it", "{:.2f}"),
    "episodes": Metric("episodes", "{:.0f}"),
}


def written(name: str, value: float) -> str:
    """Return a metric's value as people read it; one of another version in its shortest form."""
    return METRICS[name].form.format(value) if name in METRICS else f"{value:g}"
