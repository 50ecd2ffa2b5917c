"""What names, labels, addresses and port names may look like.

Sources: ``apimachinery/pkg/util/validation/{validation,ip}.go``, ``apimachinery/pkg/api/validate/content``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

from testbed.documents import FieldPath
from testbed.objects.status import FieldError, invalid, too_long

_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = rf"{_LABEL}(\.{_LABEL})*"
_QUALIFIED = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
_LABEL_VALUE = f"({_QUALIFIED})?"
_PORT_NAME = re.compile("[-a-z0-9]+")

MAX_LABEL = 63
MAX_SUBDOMAIN = 253
_MAX_ANNOTATIONS = 256 * 1024


def _regex_message(what: str, regex: str, *examples: str) -> str:
    shown = ",  or ".join(f"'{example}'" for example in examples)
    return f"{what} (e.g. {shown}, regex used for validation is '{regex}')"


_LABEL_MESSAGE = _regex_message(
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start "
    "and end with an alphanumeric character",
    _LABEL, "my-name", "123-abc",
)  # fmt: skip
_SUBDOMAIN_MESSAGE = _regex_message(
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must "
    "start and end with an alphanumeric character",
    _SUBDOMAIN, "example.com",
)  # fmt: skip
_QUALIFIED_MESSAGE = "name part " + _regex_message(
    "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric "
    "character",
    _QUALIFIED, "MyName", "my.name", "123-abc",
)  # fmt: skip
_LABEL_VALUE_MESSAGE = _regex_message(
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must "
    "start and end with an alphanumeric character",
    _LABEL_VALUE, "MyValue", "my_value", "12345",
)  # fmt: skip
_IP_MESSAGE = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"
_CIDR_MESSAGE = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"


def _matched(text: str, regex: str, limit: int, message: str) -> list[str]:
    found = [f"must be no more than {limit} characters"] if len(text) > limit else []
    return found if re.fullmatch(regex, text) else [*found, message]


def label(text: str) -> list[str]:
    """What is wrong with a DNS-1123 label; [] if nothing."""
    return _matched(text, _LABEL, MAX_LABEL, _LABEL_MESSAGE)


def subdomain(text: str) -> list[str]:
    """What is wrong with a DNS-1123 subdomain."""
    return _matched(text, _SUBDOMAIN, MAX_SUBDOMAIN, _SUBDOMAIN_MESSAGE)


def path_segment(text: str) -> list[str]:
    """What is wrong with a name that only has to fit into a path, as those of RBAC."""
    if text in (".", ".."):
        return [f"may not be '{text}'"]
    return [f"may not contain '{bad}'" for bad in "/%" if bad in text]


def label_value(text: str) -> list[str]:
    """What is wrong with the value of a label."""
    return _matched(text, _LABEL_VALUE, MAX_LABEL, _LABEL_VALUE_MESSAGE)


def qualified_name(text: str) -> list[str]:
    """What is wrong with the key of a label or annotation: ``prefix/name`` or ``name``."""
    prefix, slash, name = text.rpartition("/")
    if "/" in prefix:
        message = _QUALIFIED_MESSAGE.removeprefix("name part ")
        return [
            f"a qualified name {message.partition(' (e.g.')[0]}"
            f" (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '{_QUALIFIED}')"
            " with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
        ]
    errors = []
    if slash and not prefix:
        errors.append("prefix part must be non-empty")
    elif slash:
        errors += [f"prefix part {message}" for message in subdomain(prefix)]
    if not name:
        errors.append("name part must be non-empty")
    elif len(name) > MAX_LABEL:
        errors.append(f"name part must be no more than {MAX_LABEL} characters")
    if not re.fullmatch(_QUALIFIED, name):
        errors.append(_QUALIFIED_MESSAGE)
    return errors


def port_name(text: str) -> list[str]:
    """What is wrong with the name of a container's port (IANA service name)."""
    errors = []
    if len(text) > 15:
        errors.append("must be no more than 15 characters")
    if not _PORT_NAME.fullmatch(text):
        errors.append("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)")
    if not re.search("[a-z]", text):
        errors.append("must contain at least one letter (a-z)")
    if "--" in text:
        errors.append("must not contain consecutive hyphens")
    if text[:1] == "-" or text[-1:] == "-":
        errors.append("must not begin or end with a hyphen")
    return errors


def port_number(number: int) -> list[str]:
    """What is wrong with a port number."""
    return [] if 1 <= number <= 65535 else ["must be between 1 and 65535, inclusive"]


def checked(path: FieldPath, value: object, messages: list[str]) -> list[FieldError]:
    """One Invalid per message."""
    return [invalid(path, value, message) for message in messages]


def label_map(path: FieldPath, given: Mapping[str, str] | None) -> list[FieldError]:
    """What is wrong with a map of labels; the path is the map's, as upstream reports it."""
    errors: list[FieldError] = []
    for key, value in (given or {}).items():
        errors += checked(path, key, qualified_name(key))
        errors += checked(path, value, label_value(value))
    return errors


def annotation_map(path: FieldPath, given: Mapping[str, str] | None) -> list[FieldError]:
    """What is wrong with a map of annotations."""
    errors: list[FieldError] = []
    for key in given or {}:
        errors += checked(path, key, qualified_name(key.lower()))
    if sum(len(key) + len(value) for key, value in (given or {}).items()) > _MAX_ANNOTATIONS:
        errors.append(too_long(path, _MAX_ANNOTATIONS))
    return errors


def parse_ip(text: str) -> IPv4Address | IPv6Address | None:
    """An address; None for what is none."""
    try:
        return None if "%" in text else ip_address(text)
    except ValueError:
        return None


def parse_cidr(text: str) -> IPv4Network | IPv6Network | None:
    """A range, host bits allowed; None for what is none."""
    address, slash, bits = text.partition("/")
    if not slash or not re.fullmatch("[0-9]{1,3}", bits) or parse_ip(address) is None:
        return None
    try:
        return ip_network(text, strict=False)
    except ValueError:
        return None


def _leading_zeros(text: str) -> bool:
    return re.fullmatch(r"\d+\.\d+\.\d+\.\d+", text) is not None and any(
        len(part) > 1 and part[0] == "0" for part in text.split(".")
    )


def ip(path: FieldPath, text: str) -> list[FieldError]:
    """What is wrong with an address, in the strict reading that new objects get."""
    address = text.partition("/")[0]
    if _leading_zeros(address) and parse_ip(".".join(str(int(part)) for part in text.split("."))):
        return [invalid(path, text, "must not have leading 0s")]
    parsed = parse_ip(text)
    if parsed is None:
        return [invalid(path, text, _IP_MESSAGE)]
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped:
        return [invalid(path, text, "must not be an IPv4-mapped IPv6 address")]
    return []


def cidr(path: FieldPath, text: str) -> list[FieldError]:
    """What is wrong with a range, in the strict reading that new objects get."""
    address, _, bits = text.partition("/")
    if _leading_zeros(address):
        return [invalid(path, text, "must not have leading 0s in IP")]
    parsed = parse_cidr(text)
    if parsed is None:
        return [invalid(path, text, _CIDR_MESSAGE)]
    if isinstance(parsed, IPv6Network) and parsed.network_address.ipv4_mapped:
        return [invalid(path, text, "must not have an IPv4-mapped IPv6 address")]
    if len(bits) > 1 and bits[0] == "0":
        return [invalid(path, text, "must not have leading 0s in prefix length")]
    if parse_ip(address) != parsed.network_address:
        return [invalid(path, text, "must not have bits set beyond the prefix length")]
    return []


def endpoint_address(path: FieldPath, text: str) -> list[FieldError]:
    """What is wrong with an address that traffic is to go to (ValidateEndpointIP)."""
    address = parse_ip(text)
    if address is None:
        return ip(path, text)
    checks = (
        (address.is_unspecified, f"may not be unspecified ({text})"),
        (address.is_loopback, "may not be in the loopback range (127.0.0.0/8, ::1/128)"),
        (address.is_link_local, "may not be in the link-local range (169.254.0.0/16, fe80::/10)"),
        (
            address in ip_network("224.0.0.0/24") or address in ip_network("ff02::/16"),
            "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)",
        ),
    )
    return checked(path, text, [message for wrong, message in checks if wrong])
