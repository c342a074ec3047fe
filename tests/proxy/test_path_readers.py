"""Goal: no server takes a forwarded path for one that meets other rules than it was judged by. Method: odd paths, each
asked of nginx, Node and uvicorn, which tell how they read it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import sys
from typing import TYPE_CHECKING

import pytest

from ratelimiter.core.match import Match
from ratelimiter.core.path import routed_path
from ratelimiter.core.planner import Planner
from ratelimiter.core.policy import AmbiguousPaths, Policy
from ratelimiter.core.quota import Quota
from ratelimiter.core.request import MalformedRequest, Request
from ratelimiter.core.rule import Rule
from tests.proxy.servers import needed, started
from tests.proxy.wire import Client
from tests.stores.redis_server import free_port

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from tests.proxy.servers import Process

NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log /dev/null; events {{ }}
http {{
  access_log off; client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  server {{ listen 127.0.0.1:{port}; location / {{ return 200 $uri; }} }}
}}
"""
NODE = """
require('http').createServer((request, response) => {
  const path = FORM;
  let text = path;
  try { text = decodeURIComponent(path); } catch { }
  response.end(Buffer.from(text));
}).listen(PORT, '127.0.0.1');
"""
UVICORN = """
import sys, uvicorn
async def app(scope, receive, send):
    if scope["type"] != "http":
        raise RuntimeError
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["path"].encode("utf-8", "surrogateescape")})
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="critical")
"""


def nginx(folder: Path) -> AbstractAsyncContextManager[Process]:
    port = free_port()
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=port))
    return started(needed("nginx", "nginx-light"), "-c", str(folder / "nginx.conf"), "-p", str(folder), port=port)


def node(form: str) -> Callable[[Path], AbstractAsyncContextManager[Process]]:
    def start(_: Path) -> AbstractAsyncContextManager[Process]:
        port = free_port()
        return started(needed("node", "nodejs"), "-e", NODE.replace("PORT", str(port)).replace("FORM", form), port=port)

    return start


def uvicorn(_: Path) -> AbstractAsyncContextManager[Process]:
    port = free_port()
    return started(sys.executable, "-c", UVICORN, str(port), port=port)


READERS = {
    "nginx": nginx,
    "node": node("request.url.split('?')[0]"),
    "node-url": node("new URL('http://a' + request.url).pathname"),
    "uvicorn": uvicorn,
}
PIECES = [
    "login",
    "x",
    "a",
    "..",
    ".",
    "%2e%2e",
    "%2E",
    "%6cogin",
    "%5c",
    "%2f",
    "%2Flogin",
    ";",
    "%3B",
    "",
    "%E9",
    "[1]",
]
PIECES += ["%00", "%0d%0a", "%7f", "%c0%ae", "%zz", "%", "|", '"', "{b}", "^", "%2520", "v1", "%20", "..%2f", "%2e."]


def targets(count: int) -> list[str]:
    """Odd paths: all pairs of pieces, and as many longer ones."""
    dice = random.Random(11)  # noqa: S311  # the same each time
    pairs = ["/" + "/".join(pair) for pair in itertools.product(PIECES, repeat=2)]
    pairs += ["/" + "".join(pair) for pair in itertools.product(PIECES, repeat=2)]
    longer = ["/" + "/".join(dice.choices(PIECES, k=dice.randint(3, 5))) for _ in range(count)]
    return [*pairs, *longer]


def rule(name: str, path: str) -> Rule:
    return Rule(name, Quota(9, 60_000), match=Match(path=path))


@pytest.mark.wall_clock
@pytest.mark.parametrize("ambiguous", list(AmbiguousPaths))
@pytest.mark.parametrize("name", READERS)
async def test_every_server_meets_the_rules_that_were_charged(
    name: str, ambiguous: AmbiguousPaths, tmp_path: Path
) -> None:
    """The path that a server finds in what was forwarded meets the same rules; with `match` all of them are charged."""
    rules = (rule("login", "/login"), rule("below", "/v1/**"), rule("one", "/a/{x}"))
    planner = Planner(Policy(rules=rules, ambiguous_paths=ambiguous))
    read, passed = 0, 0
    async with READERS[name](tmp_path) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        for target in targets(500):
            try:
                forwarded = planner.forwarded("GET", target.encode())
                charged = planner.rule_set(Request("GET", forwarded, (), None)).rules
            except MalformedRequest:
                continue
            passed += 1
            client = Client(reader, writer)
            client.send(b"GET %s HTTP/1.1\r\nHost: a.example\r\n\r\n" % forwarded)
            answer = await client.response()
            if answer.value("connection") == "close" or answer.status >= 400:
                writer.close()
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            if answer.status != 200:
                continue
            read += 1
            path = routed_path(answer.body.decode("utf-8", "surrogateescape"), "")
            met = tuple(each for each in rules if each.match.matches("GET", path))
            if ambiguous is AmbiguousPaths.REFUSE:
                assert met == charged, json.dumps([target, forwarded.decode(), path])
            else:
                assert set(met) <= set(charged), json.dumps([target, forwarded.decode(), path])
        writer.close()
    assert (read, passed) > (500, 1000)
