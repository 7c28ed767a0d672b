"""What a training would need and cost on GPUs that are not there: `python -m pi05.jobs.plan JOB.json`.

    --chip h100 --gpus 8 --nodes 1      on what
    --keep FILE                         keep the program's text there

Compiles the job's step (pi05.plan.compiled) and prints one JSON document (pi05.plan.document). It is no run: it reads
the job, touches no storage and needs no GPU, but the packages of requirements/train.txt. Exit code 64: the job cannot
be computed on these GPUs, whatever their memory, or the packages are not those.
"""

import argparse
import sys
from pathlib import Path

from pi05 import chips
from pi05.config import TrainJob, load_job
from pi05.data.stats import DataStats, NormStats
from pi05.data.tokenizer import TINY, Tokenizer
from pi05.data.transforms import Recipe
from pi05.errors import ConfigError, JobError
from pi05.plan import compiled
from pi05.plan.prompt import assumed_length
from pi05.simulator import state_names
from pi05.tasks import find


def main() -> None:
    """Plan the job named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m pi05.jobs.plan")
    parser.add_argument("job", type=Path, metavar="JOB.json")
    parser.add_argument("--chip", required=True)
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--keep", type=Path, metavar="FILE")
    given = parser.parse_args()
    try:
        machine = chips.Machine(chips.find(given.chip), given.gpus, given.nodes)
        job = _read(given.job)
        tokens, known = prompt_length(job)
        step = compiled.compile_step(job, machine, tokens)
    except JobError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
    if given.keep:
        given.keep.write_text(step.text)
    sys.stdout.write(compiled.plan(job, machine, step, tokens, known).model_dump_json() + "\n")


def prompt_length(job: TrainJob) -> tuple[int, bool]:
    """Return the length of the job's prompts, and whether its tokenizer was asked: the small one is always here."""
    if job.train.tokenizer is not None:
        return assumed_length(job), False
    numbers = len(state_names(find(job.task), job.convention))
    none = DataStats(state=_no_stats(numbers), actions=_no_stats(1))
    sentences = [find(share.task).sentence for share in job.shares]
    recipe = Recipe(job.model, job.convention, none, Tokenizer.load(TINY), sentences[0], tuple(sentences[1:]))
    return recipe.prompt_length, True


def _no_stats(numbers: int) -> NormStats:
    """Return statistics of nothing: a prompt's length depends on how many numbers there are alone."""
    zeros = (0.0,) * numbers
    return NormStats(mean=zeros, std=zeros, q01=zeros, q99=zeros)


def _read(path: Path) -> TrainJob:
    job = load_job(path)
    if not isinstance(job, TrainJob):
        raise ConfigError(f"{path} is a {type(job).__name__}; only a training has a plan")
    return job


if __name__ == "__main__":
    main()
