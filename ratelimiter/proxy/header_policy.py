"""The header fields of a message that are passed on, those that are dropped, and those that the proxy writes anew."""

from __future__ import annotations

import re

Roles = re.Pattern[bytes]  # finds the field lines of a response that are not passed on as they are

# RFC 9110 section 7.6.1: meant for one connection, so never forwarded. The last three: credentials for a proxy are not
# the upstream's; `Proxy` would become an environment variable of CGI programs that HTTP clients obey.
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"proxy-connection",
        b"keep-alive",
        b"te",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy",
    }
)

# Who a request came from and through. Any client can write them, so only a trusted peer's are passed on.
FORWARDED_FOR, FORWARDED_PROTO, FORWARDED_HOST = b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host"
FORWARDED = b"forwarded"
PROVENANCE = frozenset({FORWARDED_FOR, FORWARDED_PROTO, FORWARDED_HOST, FORWARDED, b"x-real-ip", b"x-forwarded-port"})

# RFC 9112 section 7.1.2, RFC 9110 section 6.5.1: the framing, the target and the sender of a message are not for
# trailers.
NOT_IN_TRAILERS = (
    HOP_BY_HOP
    | PROVENANCE
    | {
        b"host",
        b"content-length",
        b"content-type",
        b"content-encoding",
        b"content-range",
        b"trailer",
        b"authorization",
        b"cookie",
        b"set-cookie",
        b"expect",
        b"cache-control",
        b"max-forwards",
        b"range",
        b"location",
        b"retry-after",
        b"vary",
        b"date",
        b"age",
        b"expires",
        b"warning",
        b"www-authenticate",
    }
)

# Header fields that a request is not simply forwarded with: the proxy writes them or leaves them out.
WRITTEN_ANEW = HOP_BY_HOP | PROVENANCE | {b"host", b"content-length", b"expect"}
OF_FRAMING = frozenset({b"host", b"content-length", b"transfer-encoding", b"connection", b"expect", b"upgrade"})
OF_RESPONSES = frozenset({b"content-length", b"transfer-encoding", b"connection", b"upgrade"})

OF_CONNECTION = frozenset({b"close", b"keep-alive", b"upgrade"})  # options that are no names of fields
UPGRADES = frozenset({b"websocket"})  # h2c would be a tunnel past every check (rows 92, 123 of the input table)


class HeaderPolicy:
    """The fields that are dropped from requests and responses, made from the names that the judge reserves.

    Args:
        reserved_request: lower-case names of request fields that verdicts add.
        reserved_response: lower-case names of response fields that verdicts add.
        figures: those among them that say how much of a limit is left. A 429 of the upstream keeps its own.

    Attributes:
        dropped: lower-case names of request fields that are not forwarded as they are.
        roles: finds the lines of a response that are not passed on as they are.
        refusal_roles: finds those of a 429.
    """

    __slots__ = ("dropped", "figures", "refusal_roles", "reserved_request", "reserved_response", "roles")

    def __init__(
        self,
        reserved_request: frozenset[bytes] = frozenset(),
        reserved_response: frozenset[bytes] = frozenset(),
        figures: frozenset[bytes] = frozenset(),
    ) -> None:
        self.figures = figures
        self.refusal_roles = roles(reserved_response - figures)
        self.reserved_request = reserved_request
        self.reserved_response = reserved_response
        self.dropped = WRITTEN_ANEW | reserved_request
        self.roles = roles(reserved_response)


def roles(ours: frozenset[bytes]) -> Roles:
    """Return the pattern that `parse_response` needs, given the field names that are *ours* to say."""
    names = sorted(HOP_BY_HOP | OF_RESPONSES | ours)
    initials = bytes({name[0] for name in names})  # most lines differ in these, which is quicker to see
    any_initial = re.escape(initials + initials.upper())
    any_name = b"|".join([re.escape(name) for name in names])
    return re.compile(rb"\r\n(?=[" + any_initial + rb"])((?i:" + any_name + rb")):([^\r]*+)(?=\r\n)")


def options_of(value: bytes) -> list[bytes]:
    """Return the options that a Connection field's *value* lists, in lower case."""
    return [option.strip(b" \t").lower() for option in value.split(b",")]


def without(lines: list[bytes], options: list[bytes]) -> list[bytes]:
    """Return *lines* less the fields that a Connection field names: those are for us (RFC 9110 section 7.6.1)."""
    named = {option for option in options if option not in OF_CONNECTION}
    return [line for line in lines if line.partition(b":")[0].lower() not in named] if named else lines


def trailer_lines(lines: list[bytes], ours: frozenset[bytes] = frozenset()) -> list[bytes]:
    """Return the field *lines* of a trailer section that may be passed on; *ours* are names that are ours to say."""
    kept = []
    for line in lines:
        name = line.partition(b":")[0].lower()
        if name not in NOT_IN_TRAILERS and name not in ours and b"_" not in name:
            kept.append(line)
    return kept
