"""The report: one page, well formed, with the numbers it was given and nothing from elsewhere."""

import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from pi05.events import Event
from pi05.storage import FileStorage
from pi05ctl.errors import UsageError
from pi05ctl.runs.status import RunStatus
from pi05ctl.stored.evaluations import Episode, Evaluation
from pi05ctl.views import drawing, published
from pi05ctl.views.page import copy, gpus, numbers, page, publish, values
from pi05ctl.views.plot import loss_png
from pi05ctl.views.sections import Report

TRACKS = {"tcp": ((0.0, 0.0), (0.1, 0.1)), "object": ((0.0, 0.1), (0.2, 0.1)), "goal": ((0.2, 0.1),)}
EPISODES = tuple(
    Episode(seed, seed % 10 != 3, seed % 10 > 3, 80, 150, TRACKS, None if seed % 10 != 3 else "never touched")
    for seed in range(50)
)
EVALUATION = Evaluation(EPISODES, "checkpoint", 2400)
CONTENT = Report(
    status=RunStatus(run="pipeline-pushcube-abcdef", task="pushcube", kind="pipeline", state="Done"),
    parts=(RunStatus(run="train-pushcube-123456", task="pushcube", kind="train", state="Done", step=2400, total=2400),),
    losses=((1, 1.2), (100, 0.3), (2400, 0.02)),
    evaluation=EVALUATION,
    command="pi05ctl submit pipeline pushcube --set 'train.freeze=[\"<b>\"]'",
    job_json='{"freeze": "<script>"}',
    written="2026-11-23 12:00",
)


class Checker(HTMLParser):
    """Collects text and attributes, and what is not closed."""

    void = frozenset({"meta", "li", "tr", "td", "th", "circle", "line", "polyline"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str | None] = []
        self.words = ""

    def handle_starttag(self, tag, attrs):
        if tag not in self.void:
            self.open.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        if tag not in self.void:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data


def read(content: Report) -> Checker:
    checker = Checker()
    checker.feed(page(content))
    assert checker.open == []
    return checker


def test_it_says_what_was_found():
    words = read(CONTENT).words
    assert "90 %" in words
    assert "45 of 50 unseen episodes solved by checkpoint 2400; 95 % interval 79 to 96 % (Wilson)" in words
    assert "Push and move a cube to a goal region" in words
    assert "From 1.2 at step 1 to 0.02 at step 2,400." in words
    assert CONTENT.command in words
    assert CONTENT.job_json in words
    assert "train-pushcube-123456" in words


def test_it_needs_nothing_from_elsewhere():
    assert read(CONTENT).links == []
    assert read(replace(CONTENT, videos={3: b"film"})).links == ["data:video/mp4;base64,ZmlsbQ=="]
    assert "http" not in page(CONTENT)
    assert "@import" not in page(CONTENT)
    assert "url(" not in page(CONTENT)


def test_it_works_in_the_dark_and_on_a_phone():
    assert "prefers-color-scheme: dark" in page(CONTENT)
    assert 'name="viewport"' in page(CONTENT)


def test_failures_are_drawn_first():
    captions = re.findall(r"<figcaption>(\d+) <span class=(\w+)>", page(CONTENT))
    assert captions[:5] == [(str(seed), "bad") for seed in (3, 13, 23, 33, 43)]
    assert len(captions) == 12


def test_every_episode_is_in_the_table():
    assert re.findall(r"<tr><td>(\d+)<td>", page(CONTENT)) == [str(seed) for seed in range(50)]


def test_the_rate_is_beside_what_others_reach():
    words = read(CONTENT).words
    for text in ("RDT-1B", "Diffusion Policy joint positions88 %", "Aim of a full Pi0.5 run98 %", "replayed through"):
        assert text in words
    assert "Pi0.5, run by hand" not in words, "that was PickCube"
    hidden = replace(CONTENT, status=replace(CONTENT.status, task="pickcube"))
    assert "base camera, 40 episodes; goal hidden2.5 %" in read(hidden).words


def test_a_policy_without_eyes_is_not_compared_with_those_that_see():
    blind = replace(EVALUATION, settings={"renderer": "none"})
    assert "its rate is no rate of theirs" in read(replace(CONTENT, evaluation=blind)).words
    assert "no rate of theirs" not in read(CONTENT).words
    oracle = replace(blind, policy="oracle")
    assert "no rate of theirs" not in read(replace(CONTENT, evaluation=oracle)).words


def test_another_renderer_than_that_of_the_demonstrations_is_told():
    seen = {"renderer": "NVIDIA 570", "dataset_renderer": "lavapipe 25.0.7"}
    told = "learned from images of lavapipe 25.0.7 and saw images of NVIDIA 570"
    assert told in read(replace(CONTENT, evaluation=replace(EVALUATION, settings=seen))).words
    seen["renderer"] = seen["dataset_renderer"]
    assert "differ a little" not in read(replace(CONTENT, evaluation=replace(EVALUATION, settings=seen))).words


def test_it_says_where_episodes_failed():
    some = [replace(one, failure="dropped") if one.seed == 3 else one for one in EPISODES]
    words = read(replace(CONTENT, evaluation=Evaluation(tuple(some), "checkpoint", 2400))).words
    assert "5 of 50 episodes" in words
    assert words.index("never touched") < words.index("dropped"), "in the order of a success"
    assert re.search(r"let go of before it was where it belongs\.1", words)
    solved = [replace(one, success_once=True, failure=None) for one in EPISODES]
    assert "Where it failed" not in read(replace(CONTENT, evaluation=Evaluation(tuple(solved), "oracle"))).words


def test_films_come_with_their_outcome():
    text = page(replace(CONTENT, videos={3: b"one", 0: b"two", 77: b"of no episode"}))
    assert re.findall(r"</video><figcaption>(\d+) <span class=\w+>([\w ]+)<", text) == [
        ("3", "never touched"),
        ("0", "solved"),
    ]


def test_how_to_make_it_again_names_what_it_rests_on():
    settings = {"dataset": "datasets/pushcube/1f2abafea1cb", "checkpoint": None, "temperature": 0.0}
    words = read(replace(CONTENT, evaluation=replace(EVALUATION, settings=settings))).words
    assert "Datasetdatasets/pushcube/1f2abafea1cb" in words
    assert "noise0.0" in words
    assert "Checkpoint" not in words
    assert "Environment seeds0 to 49" in words


def test_what_changed_when_it_was_resumed_is_part_of_how_to_make_it_again():
    changed = replace(CONTENT.parts[0], changed=("since step 2400 (2026-11-26): train.steps=4000 instead of 2400",))
    assert "went on with other settings:since step 2400 (2026-11-26)" in read(replace(CONTENT, parts=(changed,))).words


def test_the_full_preset_is_drawn_beside_the_run_by_hand():
    compared = replace(CONTENT, by_hand=published.LOSS_BY_HAND)
    assert "by hand" not in read(CONTENT).words
    assert "ended at 0.0045 and solved 0 of 50" in read(compared).words
    svg = ElementTree.fromstring(drawing.curve(CONTENT.losses, "loss", published.LOSS_BY_HAND))
    lines = {child.attrib["class"]: child.attrib["points"].split() for child in svg if child.tag == "polyline"}
    assert [len(lines["by-hand"]), len(lines["line"])] == [8, 3]
    ends = {name: float(points[-1].split(",")[0]) for name, points in lines.items()}
    assert ends["line"] < ends["by-hand"], "2,400 of 29,900 steps"


def test_the_loss_is_a_picture():
    assert loss_png(CONTENT.losses, published.LOSS_BY_HAND, "a run").startswith(b"\x89PNG")
    with pytest.raises(UsageError, match="a run has 1 losses in its log, a curve needs 2"):
        loss_png(CONTENT.losses[:1], (), "a run")


def test_without_matplotlib_the_page_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match="pip install matplotlib, or see the curve in the page"):
        loss_png(CONTENT.losses, (), "a run")


class Bucket(FileStorage):
    """A storage that is elsewhere."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.url = "gs://bucket/pi05"


class Somewhere:
    """As much of a target as publishing needs."""

    def __init__(self, storage: FileStorage) -> None:
        self.storage = storage


def test_a_page_in_a_bucket_is_copied_to_this_machine(tmp_path):
    far = Somewhere(Bucket((tmp_path / "far").as_uri()))
    assert publish(far, "train-x-1", "index.html", b"page") == "gs://bucket/pi05/runs/train-x-1/report/index.html"
    assert copy(far, "train-x-1", "index.html", tmp_path / "copies") == tmp_path / "copies/train-x-1.html"
    assert (tmp_path / "copies/train-x-1.html").read_bytes() == b"page"
    near = Somewhere(FileStorage((tmp_path / "near").as_uri()))
    publish(near, "train-x-1", "index.html", b"page")
    assert copy(near, "train-x-1", "index.html", tmp_path / "copies") is None


def test_the_oracle_is_not_called_unseen():
    words = read(replace(CONTENT, evaluation=Evaluation(EPISODES, "oracle"))).words
    assert "45 of 50 replayed episodes solved by oracle" in words


@pytest.mark.parametrize(
    "poor",
    [
        replace(CONTENT, evaluation=None),
        replace(CONTENT, evaluation=Evaluation(())),
        replace(CONTENT, losses=()),
        replace(CONTENT, losses=((1, 1.2),)),
        replace(CONTENT, parts=()),
        replace(CONTENT, evaluation=Evaluation(tuple(replace(e, tracks={}, steps=None) for e in EPISODES))),
    ],
)
def test_what_is_missing_is_left_out(poor):
    assert read(poor).words


def test_a_part_of_an_evaluation_is_not_its_result():
    part = read(replace(CONTENT, evaluation=Evaluation(EPISODES, "checkpoint", 2400, total=len(EPISODES) + 9))).words
    assert f"Not evaluated yet: {len(EPISODES)} of {len(EPISODES) + 9} episodes are there" in part


def test_without_an_evaluation_it_says_so():
    assert "Not evaluated yet" in read(replace(CONTENT, evaluation=None)).words


def event(step: int, **metrics: float) -> Event:
    return Event(run="r", kind="progress", time=0.0, step=step, metrics=metrics)


def test_a_repeated_step_counts_once_and_as_it_was_last():
    told = [event(1, loss=9.0), event(2, loss=8.0), event(1, loss=7.0), event(3)]
    assert values(told, "loss") == ((1, 7.0), (2, 8.0))


def test_seconds_are_summed_and_everything_else_is_the_latest():
    told = [event(1, mfu=0.1, data_seconds=1.0), event(2, mfu=0.4, data_seconds=2.0), event(3, save_seconds=30.0)]
    assert numbers(told) == {"mfu": 0.4, "data_seconds": 3.0, "save_seconds": 30.0}


def test_the_page_tells_speed_gpus_and_what_was_kept_apart():
    last = event(3).model_copy(update={"gpus": [{"gpu": 0, "gb": 61.2, "slowed": "heat"}]})
    content = replace(
        CONTENT, numbers={"mfu": 0.47, "save_seconds": 30.0}, gpus=gpus([last]), held_out=((100, 0.5), (2400, 0.1))
    )
    words = read(content).words
    assert "0.470model FLOPs used, as a share of the chips' bfloat16 peak" in words
    assert "30.00s in which steps waited for saves" in words
    assert "Slowed by061.2heat" in words
    assert "Over the episodes kept apart 0.1 at step 2,400." in words
    assert 'class="held-out"' in page(content)


@pytest.mark.parametrize(
    "points",
    [
        [(1, 1.2), (2400, 0.02)],
        [(1, 0.0833), (29_900, 0.0045)],
        [(0, 1.0), (1, 1.0)],
        [(0, 0.0), (10, 0.0)],
        [(0, -1.0), (10, 5.0)],
        [(1, 1e-9), (2, 1e6)],
        [(1, 1.0), (2, 10.0)],
    ],
)
def test_a_curve_stays_inside_its_frame(points):
    svg = ElementTree.fromstring(drawing.curve(points, "loss"))
    _, _, width, height = (float(number) for number in svg.attrib["viewBox"].split())
    line = next(child for child in svg if child.tag == "polyline")
    places = [tuple(float(part) for part in place.split(",")) for place in line.attrib["points"].split()]
    assert len(places) == len(points)
    assert all(0 <= x <= width and 0 <= y <= height for x, y in places)
    ticks = [float(child.attrib["y"]) for child in svg if child.tag == "text"]
    assert len(ticks) >= 3
    assert all(0 <= y <= height for y in ticks)


def test_runs_have_a_line_each_in_one_scale():
    runs = {"a": [(1, 1.2), (2400, 0.02)], "b": [(1, 1.1), (1200, 0.3)], "c": [(1, 1.0)]}
    svg = ElementTree.fromstring(drawing.curves(runs, "loss"))
    lines = [child for child in svg if child.tag == "polyline"]
    assert [line.attrib["class"] for line in lines] == ["line line-0", "line line-1", "line line-2"]
    ends = [line.attrib["points"].split()[-1].split(",") for line in lines[:2]]
    assert float(ends[1][0]) < float(ends[0][0]), "1,200 of 2,400 steps"
    assert float(ends[1][1]) < float(ends[0][1]), "a loss of 0.3 is above one of 0.02"
    titles = [title.text for title in svg.iter("title")]
    assert "b, step 1,200: loss 0.3" in titles


def test_a_page_says_how_an_interval_was_made_and_when_episodes_were_solved():
    words = read(replace(CONTENT, evaluation=replace(EVALUATION, until=0.3, ended=True))).words
    assert "(exact; the evaluation was to end when it is 30 points wide)" in words
    assert "Half of the solved ones were so after 80 steps or fewer, 95 % interval 80 to 80." in words
    never = read(replace(CONTENT, evaluation=replace(EVALUATION, until=0.1))).words
    assert "came to its largest number of episodes first" in never


def test_a_falling_loss_falls_on_the_page():
    svg = ElementTree.fromstring(drawing.curve([(1, 1.2), (100, 0.3), (2400, 0.02)], "loss"))
    line = next(child for child in svg if child.tag == "polyline")
    heights = [float(place.split(",")[1]) for place in line.attrib["points"].split()]
    assert heights == sorted(heights)


def test_drawings_share_one_scale():
    small = replace(EPISODES[0], tracks={"object": ((0.0, 0.0), (0.1, 0.0))})
    large = replace(EPISODES[1], tracks={"object": ((0.0, 0.0), (0.2, 0.0))})
    lengths = []
    for svg in drawing.episodes([small, large]):
        line = next(child for child in ElementTree.fromstring(svg) if child.tag == "polyline")
        (_, first), (_, last) = (place.split(",") for place in line.attrib["points"].split())
        lengths.append(float(first) - float(last))  # forward is up
    assert lengths[1] == pytest.approx(2 * lengths[0], abs=0.2)
