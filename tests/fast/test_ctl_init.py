"""pi05ctl init: options and answers become a pi05.toml that says what was answered."""

import json
import os
import pty
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

from pi05ctl.cli import init
from pi05ctl.cli import main as cli
from pi05ctl.cli.init import Answers, Given, collect
from pi05ctl.errors import UsageError
from pi05ctl.spec.settings import Cluster, Images, load

IMAGES = Images(train="r/t:1", sim="r/s:1", ctl="r@sha256:0")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PI05_STORAGE", raising=False)
    contexts = [{"name": name, "context": {"cluster": "c", "user": "u"}} for name in ("here", "there")]
    content = {
        "contexts": contexts,
        "clusters": [{"name": "c", "cluster": {"server": "https://localhost:1"}}],
        "users": [{"name": "u", "user": {}}],
        "current-context": "here",
    }
    (tmp_path / "kubeconfig").write_text(json.dumps(content))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    return tmp_path


def settings(folder: Path) -> Cluster:
    found = load(folder, {}, Path("python"))
    assert found.target == "cluster"
    return found.cluster


@pytest.mark.parametrize(
    "answers",
    [
        Answers(),
        Answers("gke_a_b_c", "team-a", "gs://bucket/runs", IMAGES, "queue"),
        Answers(storage="s3://bucket/runs", images=IMAGES),
        Answers('odd "name" \\ with é and \x7f', images=IMAGES),
    ],
)
def test_what_was_answered_is_what_is_loaded(tmp_path, answers):
    init.write(tmp_path, answers, force=False)
    assert settings(tmp_path) == answers.cluster()


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path):
    init.write(tmp_path, Answers(), force=False)
    with pytest.raises(UsageError, match="--force replaces it"):
        init.write(tmp_path, Answers(namespace="other"), force=False)
    assert settings(tmp_path).namespace == "pi05"
    init.write(tmp_path, Answers(namespace="other"), force=True)
    assert settings(tmp_path).namespace == "other"


def test_the_file_says_what_pods_get_without_a_word(tmp_path):
    """Every commented default, uncommented, is the default."""
    text = init.write(tmp_path, Answers(), force=False).read_text()
    begin = text.index("# What pods ask for")
    lines = [line.removeprefix("# ") for line in text[begin:].splitlines() if "=" in line or "# [" in line]
    assert len(lines) > 20
    tables = tomllib.loads("\n".join(lines))["cluster"]
    for kind in ("train", "demos", "eval", "pipeline"):
        default = getattr(Cluster(), kind).model_dump()
        if kind == "train":  # without defaults, but with examples
            examples = {"chip": "h100", "jobset": True, "node_selector": tables[kind]["node_selector"]}
            default |= examples
        assert tables[kind].items() <= default.items()


def test_every_line_of_it_is_explained(tmp_path):
    lines = init.write(tmp_path, Answers(), force=False).read_text().splitlines()
    for before, line in pairwise(lines):
        if line.partition(" = ")[0] in ("context", "namespace", "storage", "queue", "gpu_resource"):
            assert before.startswith("# ")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Given(context="hear"), "the kubeconfig has no context 'hear'; did you mean 'here'?"),
        (Given(context="xyz"), "no context 'xyz'; there are here, there"),
        (Given(namespace="Team_A"), "namespace: String should match pattern"),
        (Given(storage="az://bucket"), "'az://bucket' is not one that pods can reach; use gs://bucket/folder or s3://"),
        (Given(storage="file:///data"), "'file:///data' is not one that pods can reach"),
        (Given(queue="A B"), "queue: String should match pattern"),
        (Given(registry="https://ghcr.io/me"), "is not a prefix of image names"),
        (Given(registry="ghcr.io/me", tag="a b"), "is not a prefix of image names"),
    ],
)
def test_bad_words_are_refused(given, message):
    with pytest.raises(UsageError) as error:
        collect(given, ("here", "there"), "here", "0.1.0", lambda _, default, check: check(default) or default)
    assert message in str(error.value)


def test_images_are_named_by_their_registry_or_one_by_one():
    def default(_, default, check):
        check(default)
        return default

    both = collect(Given(registry="ghcr.io/me/", tag="3", images={"sim": "x/y:1"}), (), None, "0.1.0", default)
    assert both.images == Images(train="ghcr.io/me/pi05-train:3", sim="x/y:1", ctl="ghcr.io/me/pi05-ctl:3")
    each = collect(Given(images={"train": "a", "sim": "b", "ctl": "c"}), (), None, "0.1.0", default)
    assert each.images == Images(train="a", sim="b", ctl="c")


def test_without_a_registry_each_image_is_asked_for():
    replies = iter(["", "team", "gs://bucket", "", "a:1", "b:1", "c:1", ""])
    answers = collect(Given(), (), None, "0.1.0", lambda *_: next(replies))
    assert answers == Answers(None, "team", "gs://bucket", Images(train="a:1", sim="b:1", ctl="c:1"))


# ---- The command -----------------------------------------------------------------------------------------------------
def test_options_make_a_file_that_is_complete(capsys, here):
    words = "-y --storage gs://bucket --registry ghcr.io/me --tag 7 --namespace team --queue q --context there"
    assert cli.run(["init", *words.split()]) == 0
    out = capsys.readouterr().out
    assert f"wrote {here}/pi05.toml" in out
    assert "kubectl --context there apply -k k8s/overlays/gke-kueue" in out
    assert "`namespace: team` in the overlay" in out
    assert "pi05ctl doctor" in out
    made = settings(here)
    assert (made.unset, made.queue, made.images.ctl) == ([], "q", "ghcr.io/me/pi05-ctl:7")


def test_defaults_are_the_current_context_and_placeholders_that_are_named(capsys, here):
    assert cli.run(["init", "-y"]) == 0
    assert "set cluster.storage, cluster.images.train, cluster.images.sim" in capsys.readouterr().out
    assert settings(here).context == "here"
    assert cli.run(["init", "-y", "--force", "--tag", "5"]) == 0
    assert len(settings(here).unset) == 4


def test_a_file_is_not_replaced_unless_that_is_said(capsys, here):
    (here / "pi05.toml").write_text("mine")
    assert cli.run(["init", "-y"]) == 2
    assert f"{here}/pi05.toml exists; --force replaces it" in capsys.readouterr().err
    assert (here / "pi05.toml").read_text() == "mine"
    assert cli.run(["init", "-y", "--force"]) == 0
    assert settings(here).namespace == "pi05"


def test_a_bad_word_leaves_the_file_as_it_was(capsys, here):
    (here / "pi05.toml").write_text("mine")
    for words in (["--context", "her"], ["--storage", "x"], ["--image", "tran=x"], ["--image", "train="]):
        assert cli.run(["init", "-y", "--force", *words]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert (here / "pi05.toml").read_text() == "mine"


def test_without_a_terminal_nothing_is_asked(capsys, here, monkeypatch):
    with Path(os.devnull).open() as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        assert cli.run(["init"]) == 2
    assert "use -y and options" in capsys.readouterr().err
    assert not (here / "pi05.toml").exists()


def test_a_person_is_asked_and_asked_again(here):
    near, far = pty.openpty()
    for reply in ("her", "there", "", "gs://bucket/x", "ghcr.io/me", ""):
        os.write(near, reply.encode() + b"\n")
    program = [sys.executable, "-m", "pi05ctl", "init", "--tag", "3"]
    done = subprocess.run(program, stdin=far, capture_output=True, cwd=here, text=True, check=False, timeout=120)
    os.close(near)
    os.close(far)
    assert (done.returncode, done.stdout.startswith("wrote ")) == (0, True), done.stderr
    assert "the kubeconfig has no context 'her'; did you mean 'here'?" in done.stderr
    made = settings(here)
    assert (made.context, made.namespace, made.storage) == ("there", "pi05", "gs://bucket/x")
    assert (made.images.sim, made.queue) == ("ghcr.io/me/pi05-sim:3", None)
