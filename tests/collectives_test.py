"""Collectives in the text of programs, in forms that XLA writes for other devices; `sharding_test` has compiled ones."""

import pytest

from scenarios.base.collectives import Collectives, Traffic, collectives_in

PROGRAM = """HloModule jit_f, is_scheduled=true, num_partitions=8, entry_computation_layout={{(f32[4]{{0}})->f32[4]{{0}}}}

%add (a: f32[], b: f32[]) -> f32[] {{
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}}

%wrapped (p: f32[8,2]) -> f32[8,2] {{
  %p = f32[8,2]{{1,0}} parameter(0)
  ROOT %all-to-all = f32[8,2]{{1,0}} all-to-all(%p), replica_groups=[1,8]<=[8], dimensions={{0}}
}}

ENTRY %main (x: f32[4], y: bf16[2,3], z: f32[8,2]) -> f32[4] {{
  %x = f32[4]{{0}} parameter(0), metadata={{op_name="x"}}
  %y = bf16[2,3]{{1,0:T(8,128)(2,1)}} parameter(1)
  %z = f32[8,2]{{1,0}} parameter(2)
  {lines}
}}
"""


def told(*lines: str) -> Collectives:
    return collectives_in(PROGRAM.format(lines="\n  ".join(lines)))


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["%s = f32[4]{0} all-reduce-start(%x), replica_groups=[2,4]<=[8], to_apply=%add",
          "ROOT %d = f32[4]{0} all-reduce-done(%s)"], Traffic("all-reduce", 1, 16, 24)),
        (["%s = (f32[4]{0}, f32[16]{0}) all-gather-start(%x), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}",
          "ROOT %d = f32[16]{0} all-gather-done(%s)"], Traffic("all-gather", 1, 16, 48)),
        (["%s = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%x), source_target_pairs={{0,1},{1,0}}",
          "ROOT %d = f32[4]{0} collective-permute-done(%s)"], Traffic("collective-permute", 1, 16, 16)),
        (["%s = ((f32[8,2]{1,0}), f32[8,2]{1,0}, u32[]) async-start(%z), calls=%wrapped",
          "%u = ((f32[8,2]{1,0}), f32[8,2]{1,0}, u32[]) async-update(%s), calls=%wrapped",
          "ROOT %d = f32[8,2]{1,0} async-done(%u), calls=%wrapped"], Traffic("all-to-all", 1, 64, 56)),
        (["ROOT %s = (f32[4]{0}, bf16[2,3]{1,0}, /*index=2*/f32[8,2]{1,0}) all-reduce(%x, %y, /*index=2*/%z), "
          "replica_groups={}, to_apply=%add"], Traffic("all-reduce", 1, 16 + 12 + 64, 161)),
        (["ROOT %s = f32[4]{0} all-reduce(%x), replica_groups=mesh['a'=2,'b'=4] {'b':(1)2}, to_apply=%add"],
         Traffic("all-reduce", 1, 16, 16)),
        (["ROOT %s = f32[4]{0} all-reduce(%x), replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}, to_apply=%add"],
         Traffic("all-reduce", 1, 16, 24)),
        (["ROOT %s = f32[4]{0} all-reduce(%x), replica_groups={{0},{1}}, to_apply=%add"], Traffic("all-reduce", 1, 16, 0)),
    ],
    ids=["all-reduce", "all-gather", "permute", "wrapped", "tuple", "part of an axis", "axes", "alone"],
)  # fmt: skip
def test_each_form_counts_once(lines: list[str], expected: Traffic) -> None:
    assert told(*lines) == Collectives((expected,))


def test_what_is_said_is_a_table_and_its_sum() -> None:
    assert str(told("ROOT %s = f32[4]{0} copy(%x)")) == "the devices send nothing to each other"
    kinds = Traffic("all-gather", 2, 2000, 14000), Traffic("all-reduce", 1, 16, 24)
    assert str(Collectives(kinds)).splitlines() == [
        "| Collective | Count | Given    | Sent     |",
        "|------------+-------+----------+----------|",
        "| all-gather | 2     | 2 kB     | 14 kB    |",
        "| all-reduce | 1     | 16 bytes | 24 bytes |",
        "each device sends 14 kB",
    ]
    assert str(Collectives(kinds, are_all=False)).endswith("each device sends at least 14 kB")
