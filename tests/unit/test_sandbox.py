"""Which ids a user namespace gets, from /etc/subuid and /etc/subgid."""

from __future__ import annotations

from testbed.kernel.sandbox import Extent, IdMaps, parse_subids, plan_id_maps


def test_ranges_are_found_by_name_and_by_uid() -> None:
    text = "# comment\nann:100000:65536\nbob:165536:65536\n1000:300000:10\nann:x:1\nann:5:0\nann\n\n"
    assert parse_subids(text, ["1000", "ann"]) == [(100000, 65536), (300000, 10)]
    assert parse_subids(text, ["carl"]) == []


def test_the_caller_is_root_and_subordinate_ids_follow() -> None:
    maps = plan_id_maps(1000, 100, [(100000, 65535), (300000, 5)], [(200000, 65536)])
    assert maps == IdMaps(
        uids=(Extent(0, 1000, 1), Extent(1, 100000, 65535), Extent(65536, 300000, 5)),
        gids=(Extent(0, 100, 1), Extent(1, 200000, 65536)),
        subordinate=True,
    )


def test_without_both_kinds_of_ranges_there_is_one_id() -> None:
    one = IdMaps(uids=(Extent(0, 65534, 1),), gids=(Extent(0, 65534, 1),), subordinate=False)
    assert plan_id_maps(65534, 65534, (), ()) == one
    assert plan_id_maps(65534, 65534, [(100000, 65536)], ()) == one
