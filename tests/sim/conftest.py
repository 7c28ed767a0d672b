"""What the simulator's tests share: one import of ManiSkill, and one planned dataset."""

from pathlib import Path

import pytest

from pi05.config import Convention, DemosConfig, DemosJob
from pi05.jobs.demos import make_demos
from pi05.jobs.runtime import Context
from pi05.storage import FileStorage, RunPaths

CONVENTION = Convention(cameras=(), state="joints_and_poses")
SEEING = Convention(image_size=64)
PLANNER = Path(__file__).parents[2] / ".venv-planner/bin/python"
KEY = "datasets/pushcube/test"


def demos_job(root: Path, **demos: object) -> DemosJob:
    """Return a job that makes 4 demonstrations: of seeds 0, 1, 2 and 4, because the plan of seed 3 fails."""
    return DemosJob(
        run="demos-pushcube-000000",
        task="pushcube",
        storage=root.as_uri(),
        convention=CONVENTION,
        dataset=KEY,
        demos=DemosConfig.model_validate({"count": 4, "block": 2, "workers": 1, **demos}),
        planner_python=str(PLANNER),
    )


def context(job: DemosJob) -> Context:
    return Context(FileStorage(job.storage), RunPaths(job.run))


@pytest.fixture(scope="session")
def storage(tmp_path_factory: pytest.TempPathFactory) -> FileStorage:
    """A storage with the dataset KEY, made by the real job."""
    job = demos_job(tmp_path_factory.mktemp("storage"))
    make_demos(job, context(job))
    return FileStorage(job.storage)
