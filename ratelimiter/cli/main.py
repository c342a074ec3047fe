"""The command line: each command reads its flags, calls one function and prints the result."""

from __future__ import annotations

import argparse
import os
import sys
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ratelimiter import __version__
from ratelimiter.cli import operator, replay
from ratelimiter.cli.table import print_table
from ratelimiter.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ratelimiter.dialects.answer import Answer

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


class _OneLinePerCommand(argparse.RawDescriptionHelpFormatter):
    """Help whose list of commands is not folded."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=20, width=100)
        self._action_max_length = 16  # argparse forgets that commands are indented once more than flags


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ratelimiter",
        description="Strict rate limiting for APIs.",
        epilog=EXAMPLE,
        formatter_class=_OneLinePerCommand,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"ratelimiter {__version__}", help="print it and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False)
        added.set_defaults(run=run)
        return added

    demo = command("demo", _demo, "run an example API behind the limiter, and print what to try")
    demo.add_argument("--listen", metavar="HOST:PORT", default="127.0.0.1:8080", help="default: %(default)s")
    _add_settings(demo)

    proxy = command("proxy", _proxy, "limit the requests to any HTTP service, as a proxy in front of it")
    proxy.add_argument(
        "--upstream", metavar="URL", required=True, help="like http://127.0.0.1:8000 or unix:/run/app.sock"
    )
    proxy.add_argument(
        "--listen", metavar="HOST:PORT", default="127.0.0.1:8080", help="or unix:PATH; default: %(default)s"
    )
    proxy.add_argument(
        "--admin",
        metavar="HOST:PORT",
        default="127.0.0.1:9090",
        help="health, readiness and metrics, or none; default: %(default)s",
    )
    _add_settings(proxy)
    proxy.add_argument("--workers", metavar="N", type=_count, default=1, help="processes; default: %(default)s")
    proxy.add_argument(
        "--access-log", metavar="FILE", help="append a JSON line for each request, or - for standard output"
    )
    proxy.add_argument("--operator", metavar="HOST:PORT", help="listen for the operator's verbs; default: nowhere")
    proxy.add_argument(
        "--operator-token-file", metavar="FILE", help="a line NAME:TOKEN for each who may use --operator"
    )
    proxy.add_argument("--tls-cert", metavar="FILE", help="a certificate: listen with TLS")
    proxy.add_argument("--tls-key", metavar="FILE", help="its key, if it is in a file of its own")

    _add_serve(command("serve", _serve, "answer proxies that ask for decisions: Envoy, nginx, Traefik, Caddy, HAProxy"))

    check = command("check-config", _check_config, "say every problem of a policy file; exit 2 if any")
    check.add_argument("file", metavar="FILE", help="the policy file")
    check.add_argument(
        "--processes",
        metavar="N",
        type=_count,
        default=1,
        help="how many share the store, to say what its outage admits; default: %(default)s",
    )

    explain = command("explain", _explain, "say what a policy makes of a request; asks no store")
    explain.add_argument("--config", metavar="FILE", required=True, help="the policy file")
    explain.add_argument("method", metavar="METHOD", help="like GET")
    explain.add_argument("url", metavar="URL", help="a path like /v1/items, or a whole URL")
    explain.add_argument(
        "-H", "--header", metavar="'NAME: VALUE'", action="append", default=[], help="may be given several times"
    )
    explain.add_argument("-d", "--data", metavar="BODY", default="", help="the body of the request; default: none")
    explain.add_argument(
        "--peer",
        metavar="ADDRESS",
        default="127.0.0.1",
        help="who connected, or none for a unix socket; default: %(default)s",
    )

    replay.add_command(command)

    dialects = command("dialects", _dialects, "list the dialects, or every answer that one can give")
    dialects.add_argument("name", metavar="NAME", nargs="?", help="a dialect, or the path of a dialect file")

    top = command("top", _top, "show who is refused most and who asks for most, as an admin listener tells")
    top.add_argument("--admin", metavar="URL", default="http://127.0.0.1:9090", help="default: %(default)s")
    top.add_argument("--every", metavar="SECONDS", type=_count, default=2, help="default: %(default)s")
    top.add_argument("--once", action="store_true", help="print the table once and exit")

    _add_keys(command("keys", _keys, "make API keys, or hash them, for the key file of a policy"))

    operator.add_commands(command)

    schema = command("schema", _schema, "print the JSON Schema of policy, dialect or key files, for editors")
    schema.add_argument(
        "kind", choices=["policy", "dialect", "keys"], nargs="?", default="policy", help="default: %(default)s"
    )
    return parser


def _add_serve(command: argparse.ArgumentParser) -> None:
    listen = "HOST:PORT, unix:PATH or none; default: %(default)s"
    command.add_argument(
        "--grpc", metavar="HOST:PORT", default="127.0.0.1:8081", help=f"rate limit service and ext_authz: {listen}"
    )
    command.add_argument(
        "--http", metavar="HOST:PORT", default="127.0.0.1:8082", help=f"/check, /check/nginx and /v1/decide: {listen}"
    )
    command.add_argument(
        "--admin",
        metavar="HOST:PORT",
        default="127.0.0.1:9090",
        help="health, readiness and metrics, or none; default: %(default)s",
    )
    _add_settings(command)
    command.add_argument("--workers", metavar="N", type=_count, default=1, help="processes; default: %(default)s")
    command.add_argument(
        "--access-log", metavar="FILE", help="append a JSON line for each call, or - for standard output"
    )
    command.add_argument("--tls-cert", metavar="FILE", help="a certificate: listen with TLS")
    command.add_argument("--tls-key", metavar="FILE", help="its key, if it is in a file of its own")
    command.add_argument("--tls-client-ca", metavar="FILE", help="serve only clients that these authorities vouch for")


def _add_keys(command: argparse.ArgumentParser) -> None:
    verbs = command.add_subparsers(dest="verb", required=True, metavar="VERB", title="verbs")
    new = verbs.add_parser("new", help="print a new key, once, and its entry for the key file", allow_abbrev=False)
    new.add_argument("--principal", metavar="NAME", required=True, help="who is charged")
    new.add_argument("--plan", metavar="PLAN", help="by which limits may differ")
    new.add_argument("--scope", metavar="SCOPE", action="append", help="may be given several times")
    new.add_argument("--kind", metavar="KIND", help="of the credential, like user, org or service")
    new.add_argument("--org", metavar="NAME", help="the organisation that it belongs to")
    new.add_argument("--expires", metavar="MOMENT", help="like 2027-01-01T00:00:00Z")
    new.add_argument("--prefix", metavar="TEXT", default="rl_", help="what it begins with; default: %(default)s")
    hashing = verbs.add_parser("hash", help="hash the key on stdin, as the key file holds it", allow_abbrev=False)
    for verb in (new, hashing):
        verb.add_argument(
            "--secret-file",
            metavar="FILE",
            help="the policy's secret, if it has one; without this flag RATELIMITER_SECRET counts",
        )


def _add_settings(command: argparse.ArgumentParser) -> None:
    """What a policy can be made of on the command line."""
    command.add_argument("--config", metavar="FILE", help="a policy file, instead of --limit")
    command.add_argument("--limit", metavar="LIMIT", action="append", help="like 60/minute; may be given several times")
    command.add_argument("--store", metavar="URL", help="where tallies are kept; default: memory://")
    command.add_argument("--dialect", metavar="NAME", help="how refusals are written; default: problem")
    command.add_argument(
        "--principal",
        metavar="SOURCE",
        action="append",
        help="who is charged: header:NAME, bearer, org, client or everyone; several are tried in order",
    )
    command.add_argument(
        "--headers",
        metavar="FAMILY",
        action="append",
        help="headers on every response: x-ratelimit, draft-11 or draft-06; may be given several times",
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


def _count(text: str) -> int:
    """A whole number from 1, for argparse."""
    if not (text.isascii() and text.isdigit() and len(text) <= 6 and int(text)):
        msg = f"{text!r} is not a whole number from 1 to 999999"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def _check_config(file: str, processes: int) -> None:
    from ratelimiter.config.lint import outage, warnings
    from ratelimiter.config.loader import load_file

    policy, _, _, document = load_file(file)
    assert document is not None  # noqa: S101 - a file was read
    rules = f"{len(policy.rules)} rule{'s' if len(policy.rules) > 1 else ''}"
    store = policy.store.partition("://")[0]  # the rest may hold a password
    print(f"{document.name}: ok, {rules}, store {store}, dialect {policy.dialect}")
    for line in outage(policy, processes):
        print(f"  {line}")
    for warning in warnings(policy, document):
        print(f"warning: {warning}", file=sys.stderr)


def _explain(*, config: str, method: str, url: str, header: Sequence[str], data: str, peer: str) -> None:
    from ratelimiter.cli.explain import explain
    from ratelimiter.clock import unix_ms
    from ratelimiter.config.loader import load
    from ratelimiter.core.request import Request

    policy = load(config)
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


def _dialects(name: str | None) -> None:
    from ratelimiter.dialects import loader

    if name is None:
        for known in sorted(loader.names()):
            print(f"{known:<16} {loader.load(known).about}")
        return
    answers = loader.load(name).answers.values()
    print_table(("STATUS", "ANSWER", "CODE", "MESSAGE"), [_row(answer) for answer in answers])


def _row(answer: Answer) -> tuple[str, ...]:
    return str(answer.status), answer.name, answer.code, " ".join((answer.message or answer.cause).split())


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
