"""What the reader of compiled programs counts, on programs small enough to count by hand."""

import pytest

from pi05.chips import CHIPS, Chip, find
from pi05.errors import ConfigError
from pi05.plan.program import LAUNCH, Cost, groups, read

H100 = find("h100")
PRODUCT = "%dot.1 = f32[64,32]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}"
FLOPS = 2 * 64 * 32 * 128
BYTES = 4 * (64 * 128 + 128 * 32 + 64 * 32)


def program(*lines: str, before: str = "") -> str:
    """Return the text of a module whose program has two matrices and these lines."""
    body = ["%a = f32[64,128]{1,0} parameter(0)", "%b = f32[128,32]{1,0} parameter(1)", *lines]
    return (
        "HloModule step, is_scheduled=true\n\n"
        + before
        + "\nENTRY %main (a: f32[], b: f32[]) -> f32[] {\n  "
        + ("\n  ".join(body) + "\n}\n")
    )


def cost(*lines: str, before: str = "", chip: Chip = H100, gpus: int = 8) -> Cost:
    return read(program(*lines, before=before), chip, gpus)


def computation(name: str, *lines: str) -> str:
    return f"%{name} (p: f32[]) -> f32[] {{\n  " + "\n  ".join(lines) + "\n}\n"


def collective(operation: str, result: str, groups: str, name: str = "c", rest: str = "") -> str:
    return f"%{name} = {result} {operation}(%a), replica_groups={groups}{rest}"


def test_a_product_costs_two_flops_an_element_and_summand_and_the_bytes_of_its_matrices():
    found = cost(PRODUCT)
    assert (found.flops, found.memory, found.kernels) == (FLOPS, BYTES, 1)
    assert found.kernel_seconds == pytest.approx(BYTES / H100.bandwidth + LAUNCH)


def test_a_fusion_has_the_products_of_the_fusions_inside_it():
    inner = computation("inner", "%a = f32[64,128]{1,0} parameter(0)", "%b = f32[128,32]{1,0} parameter(1)", PRODUCT)
    outer = computation("outer", "%x = f32[64,32]{1,0} fusion(%a, %b), kind=kLoop, calls=%inner")
    found = cost("%f = f32[64,32]{1,0} fusion(%a, %b), kind=kCustom, calls=%outer", before=inner + outer)
    assert (found.flops, found.memory, found.kernels) == (FLOPS, BYTES, 1)


def test_a_product_by_cublas_does_not_count_its_own_memory():
    call = '%g = (f32[64,32]{1,0}, s8[4194304]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", '
    config = 'backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}'
    found = cost(call + config)
    assert (found.flops, found.memory) == (FLOPS, BYTES)


def test_a_slice_written_in_place_moves_the_slice_alone():
    update = computation(
        "update",
        "%whole = f32[64,128]{1,0} parameter(0)",
        "%part = f32[1,128]{1,0} parameter(1)",
        "%d = f32[64,128]{1,0} dynamic-update-slice(%whole, %part, %zero)",
    )
    found = cost("%f = f32[64,128]{1,0} fusion(%a, %b), kind=kLoop, calls=%update", before=update)
    assert found.memory == 2 * 4 * 128


def test_a_fusion_that_takes_parts_reads_no_more_than_four_times_what_it_writes():
    part = computation("part", "%s = f32[1,128]{1,0} dynamic-slice(%whole, %zero)")
    found = cost("%f = f32[1,128]{1,0} fusion(%a), kind=kLoop, calls=%part", before=part)
    assert found.memory == (4 + 1) * 4 * 128


def test_a_loop_counts_its_body_as_often_as_it_runs():
    body = computation("body", "%a = f32[64,128]{1,0} parameter(0)", "%b = f32[128,32]{1,0} parameter(1)", PRODUCT)
    trips = 'backend_config={"known_trip_count":{"n":"17"}}'
    found = cost(f"%w = f32[64,32]{{1,0}} while(%a), condition=%c, body=%body, {trips}", before=body)
    assert (found.flops, found.kernels) == (17 * FLOPS, 17)
    assert found.schedule == pytest.approx(found.kernel_seconds)


@pytest.mark.parametrize(
    ("operation", "result", "sent"),
    [
        ("all-gather-start", "(f32[8]{0}, f32[64]{0})", 7 * 32),
        ("reduce-scatter", "f32[8]{0}", 7 * 32),
        ("all-reduce-start", "f32[64]{0}", 2 * 7 * 32),
        ("all-to-all", "f32[64]{0}", 7 * 32),
        ("all-to-all-start", "(f32[64]{0}, f32[64]{0})", 7 * 32),
    ],
)
def test_a_collective_sends_what_a_ring_sends(operation: str, result: str, sent: int):
    found = cost(collective(operation, result, "{{0,1,2,3,4,5,6,7}}"))
    assert sum(found.wire.values()) == pytest.approx(sent)
    assert found.network == 0


def test_a_permutation_sends_the_array_once():
    line = "%p = (f32[64]{0}, f32[64]{0}) collective-permute-start(%a), source_target_pairs={{0,1},{1,2}}, x=1"
    assert sum(cost(line).wire.values()) == 256


def test_the_groups_of_a_collective_are_read_in_every_way_that_they_are_written():
    inside = [(0, 1, 2, 3), (4, 5, 6, 7)]
    across = [(0, 4), (1, 5), (2, 6), (3, 7)]
    assert groups("replica_groups={{0,1,2,3},{4,5,6,7}}, x") == inside
    assert groups("replica_groups=[2,4]<=[8], x") == inside
    assert groups("replica_groups=[4,2]<=[2,4]T(1,0), x") == across
    assert groups("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, x") == inside
    assert groups("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}, x") == across
    assert groups("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}, x") == across
    assert groups("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}, x") == inside
    assert groups("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','b'}, x") == [(0, 2, 4, 6), (1, 3, 5, 7)]
    with pytest.raises(ValueError, match="no groups"):
        groups("replica_groups=written in a new way")


def test_what_crosses_nodes_counts_once_for_each_group_of_the_node():
    across = cost(collective("all-reduce-start", "f32[64]{0}", "[4,2]<=[2,4]T(1,0)"), gpus=4)
    assert (sum(across.wire.values()), across.network) == (256, 4 * 256)
    inside = cost(collective("all-reduce-start", "f32[64]{0}", "[2,4]<=[8]"), gpus=4)
    assert (sum(inside.wire.values()), inside.network) == (2 * 0.75 * 256, 0)
    everywhere = cost(collective("all-reduce-start", "f32[64]{0}", "[1,8]<=[8]"), gpus=4)
    assert everywhere.network == sum(everywhere.wire.values())


def test_a_collective_runs_beside_what_stands_between_its_start_and_its_end():
    start = collective("all-gather-start", "(f32[8000000]{0}, f32[64000000]{0})", "[1,8]<=[8]")
    end = "%d = f32[64000000]{0} all-gather-done(%c)"
    kernel = "%k = f32[64000000]{0} copy(%a)"
    beside, after = cost(start, kernel, end), cost(start, end, kernel)
    wire = 7 * 32e6 / H100.link
    assert beside.kernel_seconds < wire == beside.wire_seconds
    assert beside.schedule == pytest.approx(wire)
    assert after.schedule == pytest.approx(wire + after.kernel_seconds)


def test_each_chip_is_found_by_its_name_and_another_is_refused_with_the_nearest():
    assert list(CHIPS) == ["a100-80", "h100", "h200", "b200", "l40s"]
    with pytest.raises(ConfigError, match=r"did you mean 'h100'\?"):
        find("h10")
