"""Every format by its name, and the one that a log is in, told from its first lines."""

from __future__ import annotations

import json
from datetime import UTC
from typing import TYPE_CHECKING

from ratelimiter.errors import ConfigError
from ratelimiter.replay.format import Format, Stamp
from ratelimiter.replay.json_format import KNOWN, Names, json_format, known_names, spoken_names, template_names
from ratelimiter.replay.proxy_formats import alb_format, envoy_format, haproxy_format, traefik_format
from ratelimiter.replay.record import Unread
from ratelimiter.replay.text_format import apache_format, nginx_format
from ratelimiter.replay.w3c_format import is_fields, w3c_format

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import tzinfo

COMBINED = '%h %l %u %t "%r" %>s %b "%{Referer}i" "%{User-Agent}i"'
COMMON = '%h %l %u %t "%r" %>s %b'
VHOST = f"%v:%p {COMBINED}"
SAMPLE_LINES = 200  # looked at to tell the format
TEXTS = ("combined", "common", "vhost", "nginx", "apache", "gunicorn", "traefik", "envoy", "haproxy", "alb")
NAMES = ("auto", *TEXTS, "json", "caddy", "traefik-json", "envoy-json", "istio", "ours", "w3c", "iis", "cloudfront")
ALIASES = {
    "istio": "envoy", "clf": "common", "apache-common": "common", "apache-combined": "apache", "apache-vhost": "vhost",
    "vhost-combined": "vhost", "nginx-combined": "nginx", "nginx-json": "json", "caddy-json": "caddy",
    "traefik-clf": "traefik", "envoy-default": "envoy", "istio-json": "envoy-json", "elb": "alb", "aws-alb": "alb",
    "ratelimiter": "ours", "sidecar": "ours",
}  # fmt: skip
ON_JSON = {"nginx": "json", "traefik": "traefik-json", "envoy": "envoy-json"}  # servers that write either
_UVICORN = ' - "'


def text_named(name: str, zone: tzinfo, principal: str) -> Format:
    """Return the text format *name*."""
    kind, _, argument = name.partition(":")
    makers: dict[str, Callable[[], Format]] = {
        "combined": lambda: apache_format(COMBINED, name="combined", stamp=Stamp.EITHER, principal=principal),
        "common": lambda: apache_format(COMMON, name="common", stamp=Stamp.EITHER, principal=principal),
        "vhost": lambda: apache_format(VHOST, name="vhost", principal=principal),
        "nginx": lambda: apache_format(COMBINED, name="nginx", stamp=Stamp.END, principal=principal),
        "gunicorn": lambda: apache_format(COMBINED, name="gunicorn", stamp=Stamp.END, principal=principal),
        "apache": lambda: apache_format(COMBINED, name="apache", stamp=Stamp.START, principal=principal),
        "traefik": lambda: traefik_format(principal),
        "envoy": lambda: envoy_format(principal),
        "haproxy": lambda: haproxy_format(zone, tuple(filter(None, argument.lower().split("|"))), principal),
        "alb": lambda: alb_format(principal),
    }
    return makers[kind]()


def format_of(  # noqa: PLR0911  # one answer for each notation
    wanted: str, sample: Sequence[str], *, place: str, zone: tzinfo = UTC, principal: str = ""
) -> Format:
    """Return the format of a log.

    Args:
        wanted: a name of `NAMES`, a format string of nginx (`$remote_addr ...`) or Apache (`%h ...`), or
            `json:FIELD=KEY,...`.
        sample: the first lines of the log.
        place: name of the log, for errors.
        zone: of times that do not say theirs.
        principal: the field of a line that names the caller; empty if the policy is to find it.

    Raises:
        ConfigError: *wanted* is no format, or the log is in none that is known.
    """
    if wanted.lstrip().startswith("{"):
        return _json("nginx-json", template_names(wanted), sample, place, zone, principal)
    if wanted.startswith("json:"):
        base = _found_json(sample)
        return _json("json", spoken_names(wanted[5:], base[1] if base else None), sample, place, zone, principal)
    if "$" in wanted:
        return nginx_format(wanted, principal=principal)
    if "%" in wanted:
        return apache_format(wanted, principal=principal)
    name = wanted.lower().replace("_", "-")
    name = ALIASES.get(name, name)
    if name in ON_JSON and _found_json(sample) is not None:
        name = ON_JSON[name]
    if name.partition(":")[0] in TEXTS:
        return text_named(name, zone, principal)
    if name in ("w3c", "iis", "cloudfront"):
        return _w3c(sample, place, principal)
    if name in KNOWN:
        return _json(name, KNOWN[name][0], sample, place, zone, principal)
    if name in ("auto", "json"):
        return _detected(sample, place, zone, principal)
    msg = (
        f"--format: {wanted!r} is not a format; write one of {', '.join(NAMES)}, or a format string of nginx or Apache"
    )
    raise ConfigError(msg)


def _detected(sample: Sequence[str], place: str, zone: tzinfo, principal: str) -> Format:
    if any(is_fields(line) for line in sample):
        return _w3c(sample, place, principal)
    found = _found_json(sample)
    if found is not None:
        return _json(*found, sample, place, zone, principal)
    best, most = None, 0
    for name in ("traefik", "alb", "envoy", "haproxy", "vhost", "combined", "common"):
        fitting = _fitting(text_named(name, zone, ""), sample)
        if fitting > most:
            best, most = name, fitting
    if best == "combined" and all(line.count('"') <= 2 for line in sample):
        best = "common"
    if best is not None:
        return text_named(best, zone, principal)
    if any(line.startswith("INFO: ") and _UVICORN in line for line in sample):
        msg = (
            f"{place}: uvicorn's access log has no times, so it cannot be replayed; log with a time, as with "
            "gunicorn -k uvicorn.workers.UvicornWorker --access-logformat, or behind a proxy"
        )
        raise ConfigError(msg)
    first = next((line for line in sample if line.strip()), "")
    if not first:
        return text_named("combined", zone, principal)
    msg = (
        f"{place}: the format of {first[:80]!r} is not known; name it with --format: one of {', '.join(NAMES[1:])}, "
        "a format string of nginx or Apache, or json:time=KEY,client=KEY,target=KEY"
    )
    raise ConfigError(msg)


def _fitting(form: Format, sample: Sequence[str]) -> int:
    read, count = form.open(), 0
    for line in sample:
        try:
            count += read(line) is not None
        except Unread:
            continue
    return count


def _objects(sample: Sequence[str]) -> list[dict[str, object]]:
    found = []
    for line in sample:
        start = line.find("{")
        if start < 0:
            continue
        try:
            told = json.loads(line[start:], parse_float=str)
        except (ValueError, RecursionError):
            continue
        if isinstance(told, dict):
            found.append(told)
    return found


def _found_json(sample: Sequence[str]) -> tuple[str, Names] | None:
    objects = _objects(sample)
    if 2 * len(objects) < len([line for line in sample if line.strip()]):
        return None
    for told in objects:
        found = known_names(set(told))
        if found is not None:
            return found
    return ("json", spoken_names("")) if objects else None


def _json(  # noqa: PLR0917
    name: str, names: Names, sample: Sequence[str], place: str, zone: tzinfo, principal: str
) -> Format:
    objects = _objects(sample)
    if not objects:
        msg = f"{place}: no line is a JSON object; name another --format"
        raise ConfigError(msg)
    # All keys that any line has: a line about garbage lacks some.
    merged: dict[str, object] = {}
    for told in objects:
        merged.update({key: value for key, value in told.items() if value is not None or key not in merged})
    return json_format(name, names, merged, zone=zone, principal=principal)


def _w3c(sample: Sequence[str], place: str, principal: str) -> Format:
    heading = next((line for line in sample if is_fields(line)), None)
    if heading is None:
        msg = f"{place}: no #Fields line names the columns; name another --format"
        raise ConfigError(msg)
    return w3c_format(heading, principal)
