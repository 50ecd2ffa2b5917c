"""The capture's file format, and how the words of ``exec`` and ``capture`` are read."""

from __future__ import annotations

import argparse
import struct
from typing import Any

import pytest

from testbed.cli import capture as capture_command
from testbed.cli import exec as exec_command
from testbed.cli.target import exec_path, pod_named, selector_text
from testbed.errors import InputError
from testbed.kernel import capture
from testbed.kernel.capture import Labels, Packet, interface_block, packet_block, section_header


def packet(kind: int, data: bytes = b"x" * 61) -> Packet:
    return Packet(time=1_700_000_000_123_456_789, interface=2, hardware=1, kind=kind, length=1500, data=data)


class TestFile:
    @pytest.mark.parametrize(
        "block",
        [
            section_header("why"),
            interface_block("eth0", 1),
            packet_block(3, packet(0)),
            packet_block(3, packet(0, b"")),
            capture.statistics_block(0, 5, 1),
        ],
    )
    def test_blocks_are_whole_words_and_carry_their_length_at_both_ends(self, block: bytes) -> None:
        assert len(block) % 4 == 0
        assert struct.unpack_from("=I", block, 4) == struct.unpack("=I", block[-4:]) == (len(block),)

    def test_a_packets_time_is_in_nanoseconds_and_its_lengths_are_apart(self) -> None:
        _, _, interface, high, low, kept, length = struct.unpack_from("=7I", packet_block(3, packet(0)))
        assert (interface, high << 32 | low, kept, length) == (3, 1_700_000_000_123_456_789, 61, 1500)

    @pytest.mark.parametrize(
        ("kind", "flags"), [(0, 0b101), (1, 0b1101), (2, 0b1001), (3, 0b10001), (4, 0b10)]
    )
    def test_a_packets_flags_say_direction_and_reception(self, kind: int, flags: int) -> None:
        block = packet_block(0, packet(kind))
        assert struct.unpack_from("=HHI", block, 28 + 64) == (2, 4, flags)

    @pytest.mark.parametrize("step", [1, 7, 10_000])
    def test_labels_are_read_back_however_the_bytes_arrive(self, step: int) -> None:
        file = section_header("x") + interface_block("lo", 1) + packet_block(0, packet(0))
        file += (
            interface_block("veth88d1acdc", 1)
            + packet_block(1, packet(4, b"abc"))
            + packet_block(0, packet(1))
        )
        labels = Labels()
        read_back = [one for at in range(0, len(file), step) for one in labels.feed(file[at : at + step])]
        assert read_back == ["lo    In ", "veth88d1acdc Out", "lo    B  "]

    def test_code_goes_through_the_arguments_unchanged(self) -> None:
        code = capture.parse_code("2\n40 0 0 12\n6 0 0 262144\n")
        assert code == [(40, 0, 0, 12), (6, 0, 0, 262144)]
        text = capture.argv("eth0", 3, code, "why")[capture.argv("eth0", 3, code, "why").index("--code") + 1]
        assert capture.parse_code("\n" + text.replace(",", "\n")) == code


def read(command: Any, *words: str) -> tuple[argparse.Namespace, str, list[str]]:
    parser = argparse.ArgumentParser()
    command.register(parser.add_subparsers())
    args = parser.parse_args([command.__name__.rpartition(".")[2], *words])
    pod, rest = command.read_words(args)
    return args, pod, rest


class TestExecWords:
    @pytest.mark.parametrize(
        ("line", "pod", "command"),
        [
            ("web-0 -- ls -l", "web-0", "ls -l"),
            ("-it web-0 -- sh", "web-0", "sh"),
            ("web-0 -it -- sh -i", "web-0", "sh -i"),
            ("-n shop web-0 -c app -- env", "web-0", "env"),
            ("web-0 ls -l", "web-0", "ls -l"),
            ("web-0 -it bash -l", "web-0", "bash -l"),
            ("web-0 -- sh -c -- x", "web-0", "sh -c -- x"),
            ("--node node-1 -- ip addr", "", "ip addr"),
            ("--host client ip -br link", "", "ip -br link"),
            ("-i --node node-1 -t -- sh", "", "sh"),
        ],
    )
    def test_pod_and_command(self, line: str, pod: str, command: str) -> None:
        _, found, rest = read(exec_command, *line.split())
        assert (found, rest) == (pod, command.split())

    @pytest.mark.parametrize("line", ["web-0 -it -c app -n shop -- sh", "-it -c app -n shop web-0 -- sh"])
    def test_options_before_and_after_the_pod_mean_the_same(self, line: str) -> None:
        args, _, _ = read(exec_command, *line.split())
        assert (args.stdin, args.tty, args.container, args.namespace) == (True, True, "app", "shop")

    def test_options_of_the_command_are_not_ours(self) -> None:
        args, _, rest = read(exec_command, "web-0", "--", "grep", "-i", "-n", "x")
        assert (args.stdin, args.namespace, rest) == (False, "default", ["grep", "-i", "-n", "x"])

    @pytest.mark.parametrize("line", ["", "-- ls", "web-0", "web-0 --", "--node n", "web-0 ls -- -l"])
    def test_what_is_missing_is_said(self, line: str) -> None:
        with pytest.raises(InputError):
            read(exec_command, *line.split())


class TestCaptureWords:
    @pytest.mark.parametrize(
        ("line", "pod", "words"),
        [
            ("web-0", "web-0", ""),
            ("web-0 -i eth0 -c 3 tcp port 80", "web-0", "tcp port 80"),
            ("-i eth0 web-0 tcp port 80 -c 3", "web-0", "tcp port 80"),
            ("web-0 tcp -i eth0 port -c 3 80", "web-0", "tcp port 80"),
            ("--node node-1 -i eth0 icmp -c 3", "", "icmp"),
            ("--host client -c 3 -i eth0", "", ""),
        ],
    )
    def test_pod_options_and_filter(self, line: str, pod: str, words: str) -> None:
        args, found, rest = read(capture_command, *line.split())
        assert (found, rest) == (pod, words.split())
        assert (args.interface, args.count) == (("eth0", 3) if "-c" in line else ("any", 0))

    def test_a_filter_after_two_dashes_may_look_like_anything(self) -> None:
        _, pod, words = read(capture_command, "web-0", "ip", "--", "-c", "and", "tcp")
        assert (pod, words) == ("web-0", ["ip", "-c", "and", "tcp"])

    @pytest.mark.parametrize("line", ["", "-i eth0"])
    def test_without_a_place_it_says_so(self, line: str) -> None:
        with pytest.raises(InputError, match="say where"):
            read(capture_command, *line.split())

    @pytest.mark.parametrize("count", ["0", "-1", "x"])
    def test_a_count_is_above_zero(self, count: str) -> None:
        with pytest.raises(SystemExit):
            read(capture_command, "web-0", "-c", count)


@pytest.mark.parametrize(
    ("selector", "text"),
    [
        ({"matchLabels": {"app": "web", "tier": "front"}}, "app=web,tier=front"),
        ({"app": "web"}, "app=web"),
        (
            {
                "matchLabels": {"a": "b"},
                "matchExpressions": [
                    {"key": "x", "operator": "In", "values": ["1", "2"]},
                    {"key": "y", "operator": "NotIn", "values": ["3"]},
                    {"key": "z", "operator": "Exists"},
                    {"key": "w", "operator": "DoesNotExist"},
                ],
            },
            "a=b,x in (1,2),y notin (3),z,!w",
        ),
        ({}, ""),
    ],
)
def test_selector_text(selector: dict[str, Any], text: str) -> None:
    assert selector_text(selector) == text


class Server:
    """A client whose server knows one Deployment and its pods."""

    def __init__(self, **pods: str) -> None:
        self.pods, self.asked = pods, dict[str, str]()

    def get(self, path: str, **query: str) -> Any:
        if path == "/apis/apps/v1/namespaces/shop/deployments/web":
            return {"spec": {"selector": {"matchLabels": {"app": "web"}}}}
        assert path == "/api/v1/namespaces/shop/pods"
        self.asked = query
        return {
            "items": [
                {"metadata": {"name": name}, "status": {"podIPs": [{"ip": ip}] if ip else []}}
                for name, ip in self.pods.items()
            ]
        }


def client(**pods: str) -> Any:
    return Server(**pods)


class TestTarget:
    @pytest.mark.parametrize("word", ["web-0", "pod/web-0", "pods/web-0", "po/web-0"])
    def test_a_pod_is_named_as_it_is(self, word: str) -> None:
        assert pod_named(client(), "shop", word) == "web-0"

    @pytest.mark.parametrize("word", ["deploy/web", "deployment/web", "deployments/web"])
    def test_a_deployment_means_its_first_placed_pod(self, word: str) -> None:
        server = client(c="10.0.0.3", b="10.0.0.2", a="")
        assert pod_named(server, "shop", word) == "b"
        assert server.asked == {"labelSelector": "app=web"}

    @pytest.mark.parametrize("word", ["deploy/web", "nonsense/web", "deploy/", "a b", "web-0?x", ""])
    def test_what_means_no_pod_is_refused(self, word: str) -> None:
        with pytest.raises(InputError):
            pod_named(client(a=""), "shop", word)

    @pytest.mark.parametrize(
        ("place", "path"),
        [
            ({}, "/api/v1/namespaces/shop/pods/web-0/exec"),
            ({"node": "node-1"}, "/apis/testbed/v1/nodes/node-1/exec"),
            ({"host": "client"}, "/apis/testbed/v1/hosts/client/exec"),
        ],
    )
    def test_path(self, place: dict[str, str], path: str) -> None:
        args = argparse.Namespace(**{"namespace": "shop", "node": None, "host": None, **place})
        assert exec_path(client(), args, "web-0") == path

    @pytest.mark.parametrize("field", ["node", "host", "namespace"])
    def test_a_name_cannot_leave_its_place_in_the_path(self, field: str) -> None:
        args = argparse.Namespace(**{"namespace": "shop", "node": None, "host": None, field: "../x"})
        with pytest.raises(InputError):
            exec_path(client(), args, "web-0")
