"""The command line: each command reads its flags, calls one function and prints the result."""

from __future__ import annotations

import os
import sys
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ratelimiter import __version__
from ratelimiter.cli import check_config, convert, describe, dialects, doctor, operator, replay
from ratelimiter.cli.parser import Commands, HelpFormatter, Parser, add_settings, whole_number
from ratelimiter.errors import ConfigError, StoreError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


# Each command imports its modules when it runs, so that `--version` and `--help` are fast.
# ruff: noqa: PLC0415

FAILED = 1  # exit status when the store gave no answer
UNUSABLE = 2  # exit status when a file or an argument cannot be used; argparse's own, too
EXAMPLE = """\
example:
  ratelimiter demo --limit 10/minute
  ratelimiter check-config config/quickstart.yaml
  ratelimiter explain --config config/quickstart.yaml GET /v1/items -H 'X-API-Key: alice'
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; *arguments* are those of the process by default.

    Returns:
        The exit status: 0; 1 when the store gave no answer; or 2 when a file or an argument cannot be used, of which
        every problem is on stderr.
    """
    flags = vars(_parser().parse_args(arguments))
    run = flags.pop("run")
    flags.pop("command")
    try:
        run(**flags)
    except ConfigError as fault:
        print(*fault.problems, sep="\n", file=sys.stderr)
        return UNUSABLE
    except StoreError as fault:
        print(f"store: {fault} ({fault.kind}); the operation may or may not have been done", file=sys.stderr)
        return FAILED
    except BrokenPipeError:  # the reader of the output has closed it
        sys.stderr.close()
        return 0
    return 0


def _parser() -> Parser:
    parser = Parser(prog="ratelimiter", formatter_class=HelpFormatter, epilog=EXAMPLE)
    parser.add_argument(
        "--version", action="version", version=f"ratelimiter {__version__}", help="print the version and exit"
    )
    commands = Commands(parser)
    _add_running(commands)
    _add_policy(commands)
    top = commands.add("operate", "top", _top, "show a live table of the busiest and most refused principals")
    top.add_argument(
        "--admin", metavar="URL", default="http://127.0.0.1:9090", help="ask this admin listener; default: %(default)s"
    )
    top.add_argument(
        "--every", metavar="SECONDS", type=whole_number, default=2, help="refresh this often; default: %(default)s"
    )
    top.add_argument("--once", action="store_true", help="print the table once and exit")
    doctor.add_command(commands)
    operator.add_commands(commands)
    parser.description = f"Strict rate limiting for APIs.\n\n{commands.listing()}"
    return parser


def _add_running(commands: Commands) -> None:
    demo = commands.add("run", "demo", _demo, "run an example API behind the limiter, and print commands to try")
    demo.add_argument(
        "--listen", metavar="HOST:PORT", default="127.0.0.1:8080", help="listen here; default: %(default)s"
    )
    add_settings(demo)

    proxy = commands.add("run", "proxy", _proxy, "run a reverse proxy that limits the requests to an HTTP service")
    listeners = proxy.add_argument_group("listeners")
    listeners.add_argument(
        "--upstream",
        metavar="URL",
        required=True,
        help="forward to this service, like http://127.0.0.1:8000 or unix:/run/app.sock",
    )
    listeners.add_argument(
        "--listen",
        metavar="HOST:PORT",
        default="127.0.0.1:8080",
        help="listen here, or at unix:PATH; default: %(default)s",
    )
    listeners.add_argument(
        "--admin",
        metavar="HOST:PORT",
        default="127.0.0.1:9090",
        help="serve health, readiness and metrics here, or none; default: %(default)s",
    )
    listeners.add_argument(
        "--workers", metavar="N", type=whole_number, default=1, help="run this many processes; default: %(default)s"
    )
    add_settings(proxy)
    tls = proxy.add_argument_group("TLS")
    tls.add_argument("--tls-cert", metavar="FILE", help="listen with TLS, with the certificate in this file")
    tls.add_argument("--tls-key", metavar="FILE", help="read its key from this file; default: the certificate's file")
    tls.add_argument("--tls-client-ca", metavar="FILE", help="serve only clients that these authorities vouch for")
    tls.add_argument("--upstream-ca", metavar="FILE", help="trust these authorities for the upstream, not the system's")
    tls.add_argument("--upstream-cert", metavar="FILE", help="show the upstream the certificate in this file")
    tls.add_argument("--upstream-key", metavar="FILE", help="read its key from this file; default: the same file")
    operating = proxy.add_argument_group("operator")
    operating.add_argument(
        "--access-log", metavar="FILE", help="append a JSON line for each request to this file; - for standard output"
    )
    operating.add_argument(
        "--log-format", choices=["text", "json"], default="text", help="write log lines as text or as JSON objects"
    )
    operating.add_argument("--operator", metavar="HOST:PORT", help="serve operator commands here; default: nowhere")
    operating.add_argument(
        "--operator-token-file", metavar="FILE", help="accept the operators in this file, a line NAME:TOKEN for each"
    )
    _add_serve(
        commands.add("run", "serve", _serve, "run a service that decides for Envoy, nginx, Traefik, Caddy and HAProxy")
    )


def _add_serve(command: argparse.ArgumentParser) -> None:
    listeners = command.add_argument_group("listeners", "Each is HOST:PORT, unix:PATH or none.")
    listeners.add_argument(
        "--grpc",
        metavar="HOST:PORT",
        default="127.0.0.1:8081",
        help="serve Envoy's rate limit service and ext_authz here; default: %(default)s",
    )
    listeners.add_argument(
        "--http",
        metavar="HOST:PORT",
        default="127.0.0.1:8082",
        help="serve /check, /check/nginx and /v1/decide here; default: %(default)s",
    )
    listeners.add_argument(
        "--admin",
        metavar="HOST:PORT",
        default="127.0.0.1:9090",
        help="serve health, readiness and metrics here; default: %(default)s",
    )
    listeners.add_argument(
        "--workers", metavar="N", type=whole_number, default=1, help="run this many processes; default: %(default)s"
    )
    add_settings(command)
    tls = command.add_argument_group("TLS")
    tls.add_argument("--tls-cert", metavar="FILE", help="listen with TLS, with the certificate in this file")
    tls.add_argument("--tls-key", metavar="FILE", help="read its key from this file; default: the certificate's file")
    tls.add_argument(
        "--tls-client-ca", metavar="FILE", help="accept only clients with a certificate of the authorities in this file"
    )
    command.add_argument_group("operator").add_argument(
        "--access-log", metavar="FILE", help="append a JSON line for each call to this file; - for standard output"
    )


def _add_policy(commands: Commands) -> None:
    check_config.add_command(commands)
    describe.add_command(commands)

    explain = commands.add(
        "policy", "explain", _explain, "show which rules, principal and keys a request matches (no store needed)"
    )
    explain.add_argument("--config", metavar="FILE", required=True, help="read this policy file")
    explain.add_argument("method", metavar="METHOD", nargs="?", help="method of the request, like GET")
    explain.add_argument("url", metavar="URL", nargs="?", help="URL of the request, or a path like /v1/items")
    explain.add_argument(
        "--descriptor",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="explain a descriptor of `serve` instead, of this entry; repeat it for each entry",
    )
    explain.add_argument("--domain", metavar="NAME", help="domain of the descriptor; default: the policy's")
    explain.add_argument(
        "-H", "--header", metavar="'NAME: VALUE'", action="append", default=[], help="add a header; may be repeated"
    )
    explain.add_argument("-d", "--data", metavar="BODY", default="", help="set the body of the request; default: none")
    explain.add_argument(
        "--peer",
        metavar="ADDRESS",
        default="127.0.0.1",
        help="let the request come from this address, or none for a unix socket; default: %(default)s",
    )

    replay.add_command(partial(commands.add, "policy"))
    convert.add_command(commands)

    dialects.add_command(commands)

    _add_keys(commands.add("policy", "keys", _keys, "make API keys, or hash them, for the key file of a policy"))

    schema = commands.add(
        "policy", "schema", _schema, "print the JSON Schema of policy, dialect or key files, for editors"
    )
    schema.add_argument(
        "kind",
        choices=["policy", "dialect", "keys"],
        nargs="?",
        default="policy",
        help="print the schema of these files; default: %(default)s",
    )


def _add_keys(command: argparse.ArgumentParser) -> None:
    verbs = command.add_subparsers(dest="verb", required=True, metavar="VERB", title="verbs")
    new = verbs.add_parser("new", help="print a new key, once, and its entry for the key file")
    new.add_argument("--principal", metavar="NAME", required=True, help="charge this principal")
    new.add_argument("--plan", metavar="PLAN", help="put the principal on this plan")
    new.add_argument("--scope", metavar="SCOPE", action="append", help="grant this scope; may be repeated")
    new.add_argument("--kind", metavar="KIND", help="set the kind of credential, like user, org or service")
    new.add_argument("--org", metavar="NAME", help="assign the key to this organisation")
    new.add_argument("--expires", metavar="MOMENT", help="let the key expire, like 2027-01-01T00:00:00Z")
    new.add_argument(
        "--prefix", metavar="TEXT", default="rl_", help="begin the key with this text; default: %(default)s"
    )
    hashing = verbs.add_parser("hash", help="hash the key on standard input, as the key file holds it")
    for verb in (new, hashing):
        verb.add_argument(
            "--secret-file",
            metavar="FILE",
            help="read the policy's secret from this file; default: the variable RATELIMITER_SECRET",
        )


def _demo(listen: str, **settings: Any) -> None:
    from ratelimiter.cli import demo

    demo.run(listen=listen, **{name: value for name, value in settings.items() if value is not None})


def _proxy(**settings: Any) -> None:
    from ratelimiter.sidecar import app

    status = app.run(**{name: value for name, value in settings.items() if value is not None})
    if status:
        sys.exit(status)


def _serve(**settings: Any) -> None:
    from ratelimiter.service import app

    status = app.run(**{name: value for name, value in settings.items() if value is not None})
    if status:
        sys.exit(status)


def _explain(
    *,
    config: str,
    method: str | None,
    url: str | None,
    header: Sequence[str],
    data: str,
    peer: str,
    descriptor: Sequence[str],
    domain: str | None,
) -> None:
    from ratelimiter.clock import unix_ms
    from ratelimiter.config.loader import load
    from ratelimiter.core.request import Request
    from ratelimiter.engine.explain import explain, explain_descriptor

    policy = load(config)
    if descriptor:
        entries = [text.partition("=") for text in descriptor]
        if not all(key and equals for key, equals, _ in entries):
            msg = "--descriptor: what is given has no key or no =; write KEY=VALUE, like remote_address=10.0.0.1"
            raise ConfigError(msg)
        pairs = tuple((key, value) for key, _, value in entries)
        print(*explain_descriptor(policy, domain or policy.domain or "default", pairs), sep="\n")
        return
    if method is None or url is None:
        msg = "METHOD and URL: are missing; write them, like GET /v1/items, or --descriptor KEY=VALUE"
        raise ConfigError(msg)
    body = data.encode("utf-8", "surrogateescape")
    request = Request(method, _target(url), tuple(map(_header, header)), None if peer == "none" else peer, body=body)
    print(*explain(policy, request, unix_ms()), sep="\n")


def _target(url: str) -> bytes:
    """Return the request target that a client sends for *url*."""
    if "://" not in url.partition("?")[0]:
        return url.encode("utf-8", "surrogateescape")
    try:
        parts = urlsplit(url)
    except ValueError:
        msg = f"URL: {url!r} is not a URL; write one like http://localhost/v1/items, or a path"
        raise ConfigError(msg) from None
    query = f"?{parts.query}" if parts.query else ""
    return f"{parts.path or '/'}{query}".encode("utf-8", "surrogateescape")


def _header(text: str) -> tuple[bytes, bytes]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        msg = "-H: the value is not a header; write 'Name: value'"  # not repeated: it may be a credential
        raise ConfigError(msg)
    return name.strip().lower().encode("utf-8", "surrogateescape"), value.strip().encode("utf-8", "surrogateescape")


def _top(admin: str, every: int, *, once: bool) -> None:
    from ratelimiter.cli import top

    top.run(admin, every_s=every, once=once)


def _keys(verb: str, secret_file: str | None, **said: Any) -> None:
    from ratelimiter.identity.key_issuing import give_out, hash_line

    secret = _secret(secret_file)
    if verb == "hash":
        print(hash_line(sys.stdin.buffer.read(4096), secret))
        return
    prefix, scopes = said.pop("prefix"), said.pop("scope")
    entry = {name: value for name, value in {**said, "scopes": scopes}.items() if value is not None}
    key, lines = give_out(entry, secret=secret, prefix=prefix)
    print(f"The key, which cannot be shown again:\n\n{key}\n\nIts entry for the list keys of the key file:\n")
    print(*lines, sep="\n")


def _secret(file: str | None) -> bytes:
    """Return the secret of the policy: from *file*, else from the environment, else empty."""
    from ratelimiter.parsing.values import read_secret, read_secret_file

    try:
        if file is not None:
            return read_secret_file(Path(file))
        stated = os.environ.get("RATELIMITER_SECRET")
        return read_secret(stated.encode()) if stated else b""
    except ValueError as fault:
        msg = f"{'RATELIMITER_SECRET' if file is None else '--secret-file'}: {fault}"
        raise ConfigError(msg) from None


def _schema(kind: str) -> None:
    room = {"policy": "config", "dialect": "dialects", "keys": "identity"}[kind]
    print(resources.files(f"ratelimiter.{room}").joinpath(f"{kind}.schema.json").read_text(encoding="utf-8"), end="")
