from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.rules.nft import deletion, fragment, parse_ruleset, script, sets_of, targets
from testbed.state import NetnsState, NftChain, NftElement, NftSet, NftTable

LISTED = """\
table inet policy {
	comment "who may talk to whom"
	set pods {
		type ipv4_addr
		flags interval
		comment "pods, by address"
		elements = { 10.244.1.2, 10.244.1.3,
			\x20\x20\x20\x20\x2010.244.2.0/24 comment "a, b: c" }
	}

	map ports {
		type inet_proto . inet_service : verdict
		elements = { tcp . 80 comment "default/web" : goto web,
			\x20\x20\x20\x20\x20udp . 53 : drop }
	}

	set seen {
		type ipv4_addr
		size 65535
		flags dynamic,timeout
		timeout 1d3h20s
		elements = { 10.0.0.1 expires 2h }
	}

	chain input {
		type filter hook prerouting priority dstnat - 10; policy drop;
		meta l4proto . th dport vmap @ports
		ip saddr @pods accept comment "jump nowhere @nothing"
	}

	chain web {
		comment "for the web"
		update @seen { ip saddr }
		goto other
	}

	chain other {
	}
}
"""
TABLE = NftTable("inet", "policy", "who may talk to whom")


def chain(name: str, *rules: str) -> NftChain:
    return NftChain("inet", "policy", name, rules)


def element(name: str, key: str, value: str = "", comment: str = "") -> NftElement:
    return NftElement("inet", "policy", name, key, value, comment)


PARSED = fragment(
    [TABLE],
    [
        NftChain(
            "inet",
            "policy",
            "input",
            (
                "meta l4proto . th dport vmap @ports",
                'ip saddr @pods accept comment "jump nowhere @nothing"',
            ),
            "filter",
            "prerouting",
            "dstnat - 10",
            "drop",
        ),
        NftChain("inet", "policy", "web", ("update @seen { ip saddr }", "goto other"), comment="for the web"),
        chain("other"),
    ],
    [
        NftSet("inet", "policy", "pods", "ipv4_addr", flags=("interval",), comment="pods, by address"),
        NftSet("inet", "policy", "ports", "inet_proto . inet_service", "verdict"),
        NftSet(
            "inet",
            "policy",
            "seen",
            "ipv4_addr",
            flags=("dynamic", "timeout"),
            timeout=86400 + 3 * 3600 + 20,
            size=65535,
        ),
    ],
    [
        element("pods", "10.244.1.2"),
        element("pods", "10.244.1.3"),
        element("pods", "10.244.2.0/24", comment="a, b: c"),
        element("ports", "tcp . 80", "goto web", "default/web"),
        element("ports", "udp . 53", "drop"),
    ],
)


def test_a_listing_is_parsed_without_what_the_kernel_put_into_sets():
    assert parse_ruleset(LISTED) == PARSED


def test_an_unknown_line_is_an_error():
    with pytest.raises(ValueError, match="flowtable"):
        parse_ruleset("table ip x {\n\tflowtable f {\n")


def test_references_are_found_outside_comments():
    rule = 'ip saddr @pods vmap { 1 : goto a-1/x., 2 : jump b } comment "goto c @d"'
    assert targets(rule) == ["a-1/x.", "b"]
    assert sets_of(rule) == ["pods"]


def test_a_new_table_is_made_anew_and_filled_from_below():
    state = fragment([TABLE], [chain("a", "goto b"), chain("b")], [], [])
    assert script(state).splitlines() == [
        "add table inet policy",
        "delete table inet policy",
        'add table inet policy { comment "who may talk to whom"; }',
        "add chain inet policy a",
        "add chain inet policy b",
        "add rule inet policy a goto b",
    ]


def test_a_changed_chain_is_emptied_and_filled_and_an_element_replaced():
    add = fragment(chains=[chain("a", "accept")], elements=[element("ports", "tcp . 80", "drop")])
    remove = fragment(elements=[element("ports", "tcp . 80", "goto web", "old")])
    assert script(add, remove).splitlines() == [
        "delete element inet policy ports { tcp . 80 : goto web }",
        "add chain inet policy a",
        "flush chain inet policy a",
        "add rule inet policy a accept",
        "add element inet policy ports { tcp . 80 : drop }",
    ]


def test_a_regular_chain_that_goes_is_emptied_and_deleted_later():
    gone = fragment(chains=[chain("a", "accept")])
    assert script(NetnsState(), gone) == "flush chain inet policy a\n"
    assert deletion(gone.nft_chains) == "delete chain inet policy a\n"


def test_a_base_chain_that_goes_is_deleted_at_once_and_so_is_a_set():
    base = NftChain("ip", "t", "in", (), "filter", "input", "filter")
    gone = fragment(chains=[base], sets=[NftSet("ip", "t", "s", "ipv4_addr")])
    assert script(NetnsState(), gone).splitlines() == [
        "flush chain ip t in",
        "delete chain ip t in",
        "delete set ip t s",
    ]


def test_a_table_takes_along_what_is_in_it():
    gone = fragment([TABLE], [chain("a")], [], [element("ports", "udp . 53", "drop")])
    assert script(NetnsState(), gone) == "add table inet policy\ndelete table inet policy\n"


def test_a_comment_that_nft_cannot_write_is_refused():
    with pytest.raises(ValueError, match="no way to write"):
        script(fragment([NftTable("ip", "t", 'a "quoted" word')]))


NAMES = st.from_regex(r"[a-z][a-z0-9./-]{0,8}", fullmatch=True)


@given(st.lists(NAMES, unique=True), st.lists(NAMES, unique=True))
def test_a_change_names_only_what_changes(before: list[str], after: list[str]):
    """Whatever the tables hold: as many commands as things that go or come."""
    add = fragment(elements=[element("s", each) for each in after if each not in before])
    remove = fragment(elements=[element("s", each) for each in before if each not in after])
    named = " ".join(script(add, remove).split("\n"))
    words = set(named.replace("{", " ").replace("}", " ").replace(",", " ").split())
    fixed = {"add", "delete", "element", "inet", "policy", "s"}
    assert words - fixed == (set(before) ^ set(after)) - fixed
