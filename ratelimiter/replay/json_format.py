"""Formats of one JSON object a line: those of known servers, our own, and any other whose fields are named."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from ratelimiter.errors import ConfigError
from ratelimiter.replay.format import Format, Stamp
from ratelimiter.replay.format_fields import NGINX, field_named, nginx_field
from ratelimiter.replay.record import (
    ABSENT,
    NO_REQUEST,
    NO_TIME,
    NOT_JSON,
    Record,
    Unread,
    first_of,
    host_of,
    split_request,
)
from ratelimiter.replay.times import reader_for

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import tzinfo

    from ratelimiter.replay.format import ReadLine

FIELDS = (
    "time", "client", "peer", "forwarded", "user", "request", "method", "target", "args", "status", "size",
    "duration", "agent", "referer", "host", "principal", "omitted", "input", "output", "max_output", "model",
)  # fmt: skip
UNITS_MS = {"s": 1000.0, "ms": 1.0, "us": 0.001, "ns": 0.000001}


class Names(NamedTuple):
    """The keys of a JSON format. A dot steps into an object."""

    keys: Mapping[str, str]  # of `FIELDS`, and `header:NAME` and `response:NAME`
    stamp: Stamp
    duration_ms: float = 1000.0  # unit of the duration
    headers: str = ""  # key of an object with all request headers
    responses: str = ""  # key of an object with all response headers
    header_prefix: str = ""  # of the keys of request headers, where they stand side by side


# Known servers by keys that no other has.
_TRAEFIK = Names(
    {
        "time": "StartUTC", "client": "ClientHost", "peer": "ClientAddr", "user": "ClientUsername",
        "method": "RequestMethod", "target": "RequestPath", "status": "DownstreamStatus",
        "size": "DownstreamContentSize", "duration": "Duration", "host": "RequestHost",
        "agent": "request_User-Agent", "referer": "request_Referer", "forwarded": "request_X-Forwarded-For",
    },
    Stamp.START, UNITS_MS["ns"], header_prefix="request_",
)  # fmt: skip
_CADDY = Names(
    {
        "time": "ts", "client": "request.client_ip", "peer": "request.remote_ip", "user": "user_id",
        "method": "request.method", "target": "request.uri", "status": "status", "size": "size",
        "duration": "duration", "host": "request.host",
    },
    Stamp.END, UNITS_MS["s"], headers="request.headers", responses="resp_headers",
)  # fmt: skip
_ENVOY = Names(
    {
        "time": "start_time", "client": "downstream_remote_address", "forwarded": "x_forwarded_for",
        "method": "method", "target": "path", "status": "response_code", "size": "bytes_sent",
        "duration": "duration", "agent": "user_agent", "host": "authority",
    },
    Stamp.START, UNITS_MS["ms"],
)  # fmt: skip
_OURS = Names(
    {
        "time": "time", "client": "client", "principal": "principal", "method": "method", "target": "path",
        "status": "status", "size": "sent", "duration": "duration_ms", "omitted": "omitted",
    },
    Stamp.END, UNITS_MS["ms"],
)  # fmt: skip
KNOWN = {
    "traefik-json": (_TRAEFIK, {"StartUTC", "ClientHost", "RequestMethod"}),
    "caddy": (_CADDY, {"ts", "request", "duration", "status"}),
    "envoy-json": (_ENVOY, {"start_time", "response_code", "downstream_remote_address"}),
    "ours": (_OURS, {"time", "source", "received", "duration_ms", "upstream_ms"}),
}
# What people call fields in formats of their own, the most exact first.
_USUAL = {
    "time": ("msec", "time_msec", "ts", "timestamp", "@timestamp", "time_iso8601", "time", "time_local", "datetime"),
    "client": ("remote_addr", "client_ip", "clientip", "remote_ip", "client", "ip", "remote_host", "source_ip"),
    "forwarded": ("http_x_forwarded_for", "x_forwarded_for", "xff", "forwarded_for"),
    "user": ("remote_user", "user", "username"),
    "request": ("request", "request_line"),
    "method": ("request_method", "method", "verb", "http_method"),
    "target": ("request_uri", "uri", "url", "path", "target", "request_path"),
    "args": ("args", "query", "query_string"),
    "status": ("status", "status_code", "response_code", "code", "response"),
    "size": ("body_bytes_sent", "bytes_sent", "bytes", "size", "response_size"),
    "duration": ("request_time", "duration", "duration_ms", "request_time_ms", "latency_ms", "elapsed_ms", "latency"),
    "agent": ("http_user_agent", "user_agent", "agent"),
    "input": ("input_tokens", "prompt_tokens", "input_length"),
    "output": ("output_tokens", "completion_tokens", "output_length"),
    "max_output": ("max_tokens", "max_completion_tokens", "max_output_tokens"),
    "model": ("model",),
    "referer": ("http_referer", "referer", "referrer"),
    "host": ("http_host", "host", "server_name", "vhost"),
}
_API_KEYS = ("api_key", "apikey", "x_api_key")
_TEMPLATE = re.compile(r'"([^"]+)"\s*:\s*"?\$\{?(\w+)')


def known_names(keys: set[str]) -> tuple[str, Names] | None:
    """Return the name and the keys of the known format that an object with *keys* is of, or of usual names."""
    for name, (names, marks) in KNOWN.items():
        if marks <= keys:
            return name, names
    usual = {field: next((key for key in among if key in keys), "") for field, among in _USUAL.items()}
    found = {field: key for field, key in usual.items() if key}
    for key in keys:
        if key.startswith(("http_", "header_")) and key not in found.values():
            found[f"header:{key.partition('_')[2].replace('_', '-')}"] = key
        if key.startswith("sent_http_"):
            found[f"response:{key.removeprefix('sent_http_').replace('_', '-')}"] = key
        if key in _API_KEYS:
            found.setdefault("header:x-api-key", key)
    if "time" not in found or not ({"target", "request"} & set(found)):
        return None
    unit = "ms" if found.get("duration", "").endswith("_ms") else "s"
    return "json", Names(found, Stamp.END, UNITS_MS[unit])


def template_names(template: str) -> Names:
    """Return the keys of a `log_format escape=json` of nginx.

    Raises:
        ConfigError: it has no time or no request.
    """
    found: dict[str, str] = {}
    for key, variable in _TEMPLATE.findall(template):
        field = nginx_field(variable).name.replace("path", "target")
        if field and (field not in found or variable == "msec"):
            found[field] = key
    if not NGINX.search(template) or "time" not in found or not ({"target", "request"} & set(found)):
        msg = f"--format: {template!r} needs a time ($msec or $time_iso8601) and $request, or $request_uri"
        raise ConfigError(msg)
    return Names(found, Stamp.END, UNITS_MS["s"])


def spoken_names(text: str, base: Names | None = None) -> Names:
    """Return the keys that *text* names: `time=ts,client=ip,target=uri,duration=took:ms,stamp=start`.

    Args:
        text: pairs of a field and a key; what is not named is as in *base*.
        base: of the format that was found.

    Raises:
        ConfigError: a field is unknown, or a unit.
    """
    keys = dict(base.keys) if base else {}
    stamp, unit = (base.stamp, base.duration_ms) if base else (Stamp.END, UNITS_MS["s"])
    for pair in filter(None, text.split(",")):
        field, _, key = pair.strip().partition("=")
        if field == "stamp" and key in ("start", "end"):
            stamp = Stamp(key)
            continue
        if field == "duration" and key.rpartition(":")[2] in UNITS_MS:
            key, _, told = key.rpartition(":")
            unit = UNITS_MS[told]
        if not key or (field not in FIELDS and not field.startswith(("header:", "response:"))):
            listed = ", ".join(FIELDS)
            msg = f"--format: json: {pair!r} is not FIELD=KEY; fields are {listed}, header:NAME, response:NAME, stamp"
            raise ConfigError(msg)
        keys[field.lower()] = key
    return Names(keys, stamp, unit)


def json_format(
    name: str, names: Names, sample: Mapping[str, Any], *, zone: tzinfo, principal: str = ""
) -> Format:  # fmt: skip
    """Return a format of JSON lines.

    Args:
        name: of the format.
        names: its keys.
        sample: an object of the log, to tell how it writes its times.
        zone: of times without an offset.
        principal: the key, or the field, that names the caller.

    Raises:
        ConfigError: the sample has no time, or not the key *principal*.
    """
    keys = dict(names.keys)
    if principal:
        known = {*_flat(sample), *keys.values()}
        keys["principal"] = principal if principal in known else keys.get(field_named(principal), principal)
        if keys["principal"] not in known:
            msg = f"--principal: {principal!r} is not in the log; it has {', '.join(sorted(_flat(sample)))}"
            raise ConfigError(msg)
    if "time" not in keys or not {"target", "request"} & set(keys):
        missing = "time" if "time" not in keys else "request or target"
        listed = ", ".join(sorted(_flat(sample)))
        msg = f"--format: json: no field is known as {missing}; name one, like json:time=KEY; the log has {listed}"
        raise ConfigError(msg)
    try:
        read_time, resolution_ms = reader_for(_text(_value(sample, keys["time"])) or "", zone)
    except Unread:
        told = _value(sample, keys["time"])
        msg = f"--format: json: {keys['time']} is {told!r}, no time; name the key of one, like json:time=msec"
        raise ConfigError(msg) from None
    flat = _flat(sample)
    tells = set()
    for field, key in keys.items():
        if key not in flat:
            continue
        fact = {"peer": "client", "target": "query", "request": "query", "args": "query"}.get(field, field)
        fact = {"agent": "header:user-agent", "referer": "header:referer"}.get(fact, fact)
        tells.add(fact)
    if name == "ours":
        tells.discard("query")
    if {"input", "output"} <= tells:
        tells.add("tokens")
    tells |= {f"header:{key.removeprefix(names.header_prefix).lower()}" for key in flat
              if names.header_prefix and key.startswith(names.header_prefix)}  # fmt: skip

    def open_reader() -> ReadLine:
        return _reader(names, keys, read_time)

    return Format(name, names.stamp, resolution_ms, frozenset(tells), open_reader, headers_open=bool(names.headers))


def _flat(value: Mapping[str, Any], before: str = "") -> set[str]:
    found = set()
    for key, held in value.items():
        found.add(before + key)
        if isinstance(held, dict):
            found |= _flat(held, f"{before}{key}.")
    return found


def _value(told: Mapping[str, Any], key: str) -> Any:
    if "." not in key or key in told:
        return told.get(key)
    value: Any = told
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _text(value: Any) -> str | None:
    """Return a field's value as text; None for none. A number is taken as it was written, see `_reader`."""
    if value is None or isinstance(value, dict | bool):
        return None
    if isinstance(value, list):
        value = value[0] if value else None
        return _text(value)
    text = value if isinstance(value, str) else repr(value)
    return None if text in ABSENT else text


def _getter(key: str | None) -> Callable[[dict[str, Any]], Any]:
    if key is None:
        return lambda _: None
    if "." not in key:
        return lambda told: told.get(key)
    return lambda told: _value(told, key)


def _reader(  # noqa: C901, PLR0915  # one closure over all getters, so that a line costs no look-up by name
    names: Names, keys: Mapping[str, str], read_time: Callable[[str], int]
) -> ReadLine:
    get = {field: _getter(keys.get(field)) for field in FIELDS}
    time_of, method_of, target_of, request_of = get["time"], get["method"], get["target"], get["request"]
    client_of, peer_of, forwarded_of, status_of = get["client"], get["peer"], get["forwarded"], get["status"]
    duration_of, size_of, user_of, agent_of = get["duration"], get["size"], get["user"], get["agent"]
    referer_of, host_of_, args_of, principal_of = get["referer"], get["host"], get["args"], get["principal"]
    omitted_of, model_of = get["omitted"], get["model"]
    input_of, output_of, bound_of = get["input"], get["output"], get["max_output"]
    metered = "input" in keys and "output" in keys
    ends = names.stamp is Stamp.END
    unit_ms = names.duration_ms
    headers = [(key.partition(":")[2], _getter(value)) for key, value in keys.items() if key.startswith("header:")]
    responses = [(key.partition(":")[2], _getter(value)) for key, value in keys.items() if key.startswith("response:")]
    prefix = names.header_prefix
    all_headers, all_responses = _getter(names.headers or None), _getter(names.responses or None)
    decode = json.JSONDecoder(parse_float=str).decode  # times keep the digits that they were written with

    def read(line: str) -> Record:  # noqa: PLR0912  # one line, one pass: a call for each field would double it
        start = line.find("{")  # behind what syslog or a container runtime writes before it
        try:
            told = decode(line[start:] if start else line)
        except (ValueError, RecursionError):
            raise Unread(NOT_JSON) from None
        if not isinstance(told, dict):
            raise Unread(NOT_JSON)
        stamp = time_of(told)
        if stamp is None:
            raise Unread(NO_TIME)
        start_us = read_time(stamp if isinstance(stamp, str) else str(stamp))
        method, target = method_of(told), target_of(told)
        if target is None and method is None:
            method, target = split_request(_text(request_of(told)) or "")
        if not isinstance(target, str) or target in ABSENT or method in ABSENT:
            raise Unread(NO_REQUEST)
        args = args_of(told)
        if args not in ABSENT and "?" not in target:
            target += f"?{args}"
        took_ms = _number(duration_of(told))
        if took_ms is not None:
            took_ms *= unit_ms
            if ends:
                start_us -= round(took_ms * 1000)
        client, addresses = _text(client_of(told)), _text(forwarded_of(told))
        if client is None:
            client = _text(peer_of(told))
        elif "," in client:
            client, addresses = first_of(client)
        if client is not None and (client[0] == "[" or client.count(":") == 1):
            client = host_of(client)
        agent, referer, host = _text(agent_of(told)), _text(referer_of(told)), _text(host_of_(told))
        others = [(name, value) for name, find in headers if (value := _text(find(told)))]
        told_headers = all_headers(told)
        if isinstance(told_headers, dict):
            found = {name.lower(): text for name, value in told_headers.items() if (text := _text(value))}
            agent, referer = found.pop("user-agent", agent), found.pop("referer", referer)
            addresses = found.pop("x-forwarded-for", addresses)
            others += [(name, value) for name, value in found.items() if value != "REDACTED"]
        if prefix:
            others += [
                (key.removeprefix(prefix).lower(), text)
                for key, value in told.items()
                if key.startswith(prefix) and (text := _text(value))
            ]
        answered = [(name, value) for name, find in responses if (value := _text(find(told)))]
        told_responses = all_responses(told)
        if isinstance(told_responses, dict):
            answered += [(name.lower(), text) for name, value in told_responses.items() if (text := _text(value))]
        return Record(
            start_us // 1000, str(method), target, int(_number(status_of(told)) or 0), client, addresses, took_ms,
            _whole(size_of(told)), _text(user_of(told)), agent, referer, host, tuple(others), tuple(answered),
            _text(principal_of(told)), _whole(omitted_of(told)) or 0,
            (_whole(input_of(told)) or 0, _whole(output_of(told)) or 0, _whole(bound_of(told))) if metered else None,
            _text(model_of(told)),
        )  # fmt: skip

    return read


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if 0 <= number < 1e15 else None


def _whole(value: Any) -> int | None:
    number = _number(value)
    return None if number is None else int(number)
