"""What a folder may still hold, on a machine and in a pod."""

import shutil

from pi05 import disk


def test_outside_of_a_pod_the_disk_counts(tmp_path):
    assert abs(disk.free(tmp_path, {}) - shutil.disk_usage(tmp_path).free) < 1e9


def test_in_a_pod_its_share_of_the_nodes_disk_counts(tmp_path):
    pod = {"TMPDIR": str(tmp_path), disk.LIMIT: str(10_000_000)}
    (tmp_path / "below").mkdir()
    (tmp_path / "below/file").write_bytes(b"x" * 4_000_000)
    assert 5_900_000 < disk.free(tmp_path / "below", pod) <= 6_000_000
    (tmp_path / "more").write_bytes(b"x" * 9_000_000)
    assert disk.free(tmp_path, pod) == 0


def test_another_disk_than_the_scratch_one_has_no_limit(tmp_path):
    pod = {"TMPDIR": str(tmp_path / "scratch"), disk.LIMIT: "1000"}
    assert disk.free(tmp_path, pod) > 1000
