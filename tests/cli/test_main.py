from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ratelimiter
from ratelimiter.cli.main import main
from ratelimiter.dialects import loader

BAD = Path(__file__).parents[1] / "data" / "policies" / "bad"
SHIPPED = sorted((Path(__file__).parents[2] / "config").glob("*.yaml"))
COMMANDS = [
    "demo",
    "proxy",
    "serve",
    "check-config",
    "describe",
    "explain",
    "replay",
    "dialects",
    "keys",
    "schema",
    "top",
    "peek",
    "reset",
]
COMMANDS += ["block", "unblock", "override", "shadow", "topup", "audit", "doctor"]
POLICY = """
principal: [header:X-API-Key, client]
trusted_proxies: [10.0.0.0/8]
rules:
  - limit: 60/minute
    burst: 10
  - name: posts
    match: {methods: [POST], path: '/v1/items/{id}'}
    limit: 5/second
    mode: shadow
    cost: 2
  - name: per-address
    limit: 600/minute
    principal: client
    on_store_error: deny
"""


@pytest.fixture
def policy(tmp_path: Path) -> str:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY, encoding="utf-8")
    return str(path)


def explained(policy: str, *arguments: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert 0 == main(["explain", "--config", policy, *arguments])
    return capsys.readouterr().out.splitlines()


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """--version prints name and version."""
    with pytest.raises(SystemExit) as left:
        main(["--version"])

    assert 0 == left.value.code
    assert f"ratelimiter {ratelimiter.__version__}\n" == capsys.readouterr().out


def test_it_runs_as_a_module() -> None:
    """`python -m ratelimiter` is the command, and its version is said without waiting for what other commands need."""
    heavy = {"ruamel", "jsonschema", "limits", "starlette", "uvicorn", "redis"}
    code = f"import sys, ratelimiter.cli.main; print({heavy} & set(sys.modules))"
    run = functools.partial(subprocess.run, capture_output=True, text=True, check=True)
    done = run([sys.executable, "-m", "ratelimiter", "--version"])
    lean = run([sys.executable, "-c", code])

    assert f"ratelimiter {ratelimiter.__version__}\n" == done.stdout
    assert "set()\n" == lean.stdout


def help_of(*command: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        main([*command, "--help"])
    return capsys.readouterr().out


def test_help_has_one_line_per_command(capsys: pytest.CaptureFixture[str]) -> None:
    """Each command has its line in one of three groups, and there is an example to copy."""
    lines = help_of(capsys=capsys).splitlines()

    for group in ("run a limiter:", "write and check policies:", "operate a running limiter:"):
        assert group in lines
    for command in COMMANDS:
        (line,) = (line for line in lines if re.match(f"  {command} ", line) and not line.startswith("  ratelimiter"))
        assert len(line.split()) > 3
        assert len(line) <= 100
    assert any("ratelimiter demo --limit" in line for line in lines)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_is_explained(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """No flag stands alone in the help of its command, and what it says is more than an example."""
    flags = help_of(command, capsys=capsys).partition("options:")[2].partition("example")[0]

    for flag in re.findall(r"^  -.*(?:\n {10,}.*)*", flags, re.MULTILINE):
        text = " ".join(re.split(r"\s{2,}", flag.strip())[1:])
        assert len(text.split()) > 1, flag
        assert not text.startswith(("like ", "default: ", "or ")), flag


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["chek-config", "p.yaml"], "there is no 'chek-config' here; did you mean check-config?"),
        (["override", "st"], "did you mean set?"),
        (["schema", "polcy"], "did you mean policy?"),
        (["shadow", "onn", "--config", "p.yaml"], "did you mean on?"),
        (["demo", "--limt=1/minute"], "unrecognized arguments: --limt=1/minute; did you mean --limit?"),
        (["override", "list", "--config", "p.yaml", "--jsno"], "did you mean --json?"),
    ],
)
def test_a_misspelt_word_is_answered_with_the_one_that_was_meant(
    arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Commands, verbs, choices and flags are looked up among those that exist."""
    with pytest.raises(SystemExit) as left:
        main(arguments)

    assert 2 == left.value.code
    assert hint in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["nosuch"], ["explain", "GET", "/"], ["demo", "--lim", "1/minute"]])
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Usage errors exit with 2, as a bad file does."""
    with pytest.raises(SystemExit) as left:
        main(arguments)

    assert 2 == left.value.code
    assert "usage: ratelimiter" in capsys.readouterr().err


# check-config


@pytest.mark.parametrize("path", sorted(BAD.glob("*.yaml")), ids=lambda path: path.stem)
def test_check_config_says_every_problem(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bad file: exit status 2, its problem on stderr, nothing on stdout, no traceback."""
    monkeypatch.chdir(BAD)
    expected = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")

    assert 2 == main(["check-config", path.name])
    assert ("", expected + "\n") == capsys.readouterr()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_check_config_accepts_what_is_shipped(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A good file: exit status 0, one line, no warning."""
    assert 0 == main(["check-config", str(path)])

    out, err = capsys.readouterr()
    assert out.startswith(f"{path}: ok, ")
    assert 1 == len(out.splitlines())
    assert not err


def test_check_config_warns_and_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A doubtful file is a good file: exit status 0, and the doubts on stderr."""
    path = tmp_path / "p.yaml"
    path.write_text("rules:\n  - {limit: 1/minute, match: {methods: [GET]}}\n", encoding="utf-8")

    assert 0 == main(["check-config", str(path)])

    out, err = capsys.readouterr()
    assert f"{path}: ok, 1 rule, store memory, dialect problem\n" == out
    assert err.startswith(f"warning: {path}:2:3: rules: a request that none matches is admitted;")


OUTAGE = """
store: redis://127.0.0.1:6379/0
local_share: 0.1
rules:
  - limit: 70/minute
    burst: 5
  - {name: open, limit: 5/second, on_store_error: allow}
  - {name: closed, limit: 5/2 hours, on_store_error: deny}
  - {name: watched, limit: 1/second, mode: shadow}
"""


@pytest.mark.parametrize(
    ("flags", "expected", "first"),
    [
        ([], "each process at most 8 per minute", 75),
        (["--processes", "1"], "each process at most 8 per minute", 75),
        (["--processes", "4"], "4 processes at most 32 per minute", 99),
    ],
)
def test_check_config_says_what_an_outage_admits(
    flags: list[str], expected: str, first: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For a shared store, one line per rule: how much of it is admitted while the store is out."""
    path = tmp_path / "p.yaml"
    path.write_text(OUTAGE, encoding="utf-8")

    assert 0 == main(["check-config", str(path), *flags])
    then = f"; with what the store has admitted, {first} in the one in which it fails"
    assert [
        f"{path}: ok, 4 rules, store redis, dialect problem",
        f"  per-minute: without the store, {expected}{then}",
        "  open: without the store, unlimited",
        "  closed: without the store, 0: refused with 503",
        "  watched: without the store, unlimited",
    ] == capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("count", ["0", "-1", "1.5", "many", "1000000", "٣"])
def test_check_config_of_no_number_of_processes(count: str, policy: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A number of processes is a whole one, from 1."""
    with pytest.raises(SystemExit) as left:
        main(["check-config", policy, f"--processes={count}"])

    assert 2 == left.value.code
    assert "is not a whole number from 1 to 999999" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["nowhere.yaml", "."])
def test_check_config_of_what_is_no_file(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A missing file is a problem and no traceback."""
    assert 2 == main(["check-config", str(tmp_path / name)])
    assert "cannot be read" in capsys.readouterr().err


# explain


def test_explain_says_who_is_charged_what(policy: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Canonical path, matched rules, where each principal was found, its digest and every key; never its value."""
    lines = explained(
        policy,
        "POST",
        "http://api.example/v1//items/./%61?x=1",
        "-H",
        "X-API-Key: alice",
        "--peer",
        "192.0.2.7",
        capsys=capsys,
    )
    key = next(line.split()[2] for line in lines if "header:x-api-key" in line)
    address = next(line.split()[2] for line in lines if "charged  client" in line)

    assert [
        "client     192.0.2.7, the peer",
        "method     POST",
        "path       /v1/items/a",
        "forwarded  by the sidecar as /v1/items/a?x=1: servers could take what came for a path of other rules",
        "rules      3 of 3 match",
        "",
        "per-minute: 60 per minute, burst 10, cost 1, enforce, local without the store",
        f"  charged  header:x-api-key {key}",
        f"  key      rl1:{{{key}}}:default:per-minute:0 holds 70 per minute",
        f"  key      rl1:{{{key}}}:default:per-minute:1 holds 610 per 10 minutes",
        "",
        "posts: 5 per second, cost 2, shadow, local without the store",
        f"  charged  header:x-api-key {key}",
        f"  key      rl1:{{{key}}}:default:posts:0 holds 5 per second",
        "",
        "per-address: 600 per minute, cost 1, enforce, deny without the store",
        f"  charged  client {address}",
        f"  key      rl1:{{{address}}}:default:per-address:0 holds 600 per minute",
    ] == lines
    assert not any("alice" in line or "192.0.2.7" in line for line in lines[1:])


def test_explain_says_what_is_reserved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A rule that counts tokens says how many a request reserves; what uses none reserves nothing."""
    policy = tmp_path / "policy.yaml"
    policy.write_text("rules: [{name: tokens, tokens: openai, limit: 10000/minute, models: [gpt-x]}]\n")
    body = '{"model": "gpt-x", "max_tokens": 500, "messages": []}'
    told = explained(str(policy), "POST", "/v1/chat/completions", "--data", body, capsys=capsys)
    free = explained(str(policy), "GET", "/v1/models", capsys=capsys)

    assert "  reserves 514 units of model gpt-x, until the response says what it used" in told
    assert "  reserves nothing: the request uses no tokens" in free
    assert any(line.startswith("tokens: 10000 per minute, tokens of openai") for line in told)


def test_explain_charges_as_the_limiter_does(policy: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The keys are those that the limiter would charge, forwarded addresses and all."""
    from ratelimiter.config.loader import load
    from ratelimiter.core.planner import Planner
    from ratelimiter.core.request import Request

    headers = ((b"x-forwarded-for", b"198.51.100.9"),)
    request = Request("GET", b"/", headers, "10.0.0.1")
    hits = Planner(load(policy)).rule_set(request).hits(request)
    lines = explained(policy, "GET", "/", "-H", "X-Forwarded-For: 198.51.100.9", "--peer", "10.0.0.1", capsys=capsys)

    assert [hit.key.decode() for hit in hits] == [line.split()[1] for line in lines if line.startswith("  key")]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["GET", "v1"], "refused    400, path must begin with a slash"),
        (["GET", "/", "-H", "X-API-Key: a", "-H", "x-api-key: b"], "refused    400, x-api-key is there more than once"),
    ],
)
def test_explain_says_why_a_request_is_refused(
    policy: str, arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A request that can be read in two ways has no rules, and the reason is said."""
    assert [expected] == explained(policy, *arguments, capsys=capsys)


def test_explain_of_what_no_rule_matches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A request that no rule matches is admitted, and that is said."""
    path = tmp_path / "p.yaml"
    path.write_text("rules:\n  - {limit: 1/minute, match: {path: /v1/**}}\n", encoding="utf-8")

    assert [
        "client     local, a unix socket",
        "method     GET",
        "path       /v2",
        "rules      none matches: admitted, and not charged",
    ] == explained(str(path), "GET", "/v2", "--peer", "none", capsys=capsys)


def test_explain_does_not_repeat_a_malformed_header(policy: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What was meant as a header may be a credential."""
    assert 2 == main(["explain", "--config", policy, "GET", "/", "-H", "hunter2"])
    assert "-H: the value is not a header; write 'Name: value'\n" == capsys.readouterr().err


# dialects and schema


def test_dialects_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """Each dialect that comes with the package has a line with its name and what it is."""
    assert 0 == main(["dialects"])

    lines = capsys.readouterr().out.splitlines()
    assert loader.names() == [line.split()[0] for line in lines]
    assert all(len(line.split()) > 1 for line in lines)


@pytest.mark.parametrize("name", loader.names())
def test_every_answer_of_a_dialect_is_printed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The table has a line for every answer, with its status."""
    assert 0 == main(["dialects", name])

    table, *samples = capsys.readouterr().out.split("\n\n")
    head, *lines = table.splitlines()
    assert any("over the limit: 429" in sample for sample in samples)
    assert ["STATUS", "ANSWER", "CODE", "MESSAGE"] == head.split()
    assert [[str(answer.status), answer.name] for answer in loader.load(name).answers.values()] == [
        line.split()[:2] for line in lines
    ]


def test_an_unknown_dialect_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    """A misspelt dialect is answered with the one that was meant."""
    assert 2 == main(["dialects", "intrase"])
    assert "did you mean intrace?" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["policy"], ["dialect"], ["keys"]])
def test_schemas_are_printed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """What is printed is JSON Schema and nothing else, so that it can be redirected into a file."""
    assert 0 == main(["schema", *arguments])
    assert "https://json-schema.org/draft/2020-12/schema" == json.loads(capsys.readouterr().out)["$schema"]


# demo


def test_demo_hands_its_flags_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is given on the command line arrives, and what is not is left open."""
    from ratelimiter.cli import demo

    given: list[dict[str, object]] = []
    monkeypatch.setattr(demo, "run", lambda **settings: given.append(settings))

    flags = "--listen 127.0.0.1:0 --limit 1/minute --limit 5/hour --dialect trace --store memory://"
    more = "--principal bearer --principal client --headers draft-11"

    assert 0 == main(["demo"])
    assert 0 == main(["demo", *flags.split(), *more.split()])
    assert [
        {"listen": "127.0.0.1:8080"},
        {
            "listen": "127.0.0.1:0",
            "limit": ["1/minute", "5/hour"],
            "dialect": "trace",
            "principal": ["bearer", "client"],
            "headers": ["draft-11"],
            "store": "memory://",
        },
    ] == given


def test_demo_says_what_is_wrong_with_its_flags(capsys: pytest.CaptureFixture[str]) -> None:
    """A bad flag is a problem with the flag's name, and the demo does not start."""
    assert 2 == main(["demo", "--limit", "10 parsecs", "--listen", "127.0.0.1:0"])
    assert capsys.readouterr().err.startswith("limit[0]: '10 parsecs' is not a limit;")


def test_top_hands_its_flags_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table is another module's; here its flags are read."""
    from ratelimiter.cli import top

    asked: list[object] = []
    monkeypatch.setattr(top, "run", lambda *words, **more: asked.append((words, more)))
    main(["top"])
    main(["top", "--admin", "http://10.0.0.1:9090", "--every", "5", "--once"])

    assert [
        (("http://127.0.0.1:9090",), {"every_s": 2, "once": False}),
        (("http://10.0.0.1:9090",), {"every_s": 5, "once": True}),
    ] == asked


def test_top_of_nobody_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    """One line says what did not answer, and how to name it."""
    assert 2 == main(["top", "--admin", "localhost:9090", "--once"])
    assert capsys.readouterr().err.startswith("--admin: 'localhost:9090' is not an http URL; write one like http://")


def test_proxy_says_all_that_is_wrong_with_its_flags(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing limit does not hide a bad upstream or listener: all problems come in one go."""
    monkeypatch.delenv("RATELIMITER_CONFIG", raising=False)

    assert 2 == main(["proxy", "--upstream", "foo", "--listen", "nowhere", "--tls-cert", "/nonexistent.pem"])
    told = capsys.readouterr().err.splitlines()
    assert ["limit", "--upstream", "--listen", "--tls-cert"] == [line.partition(":")[0] for line in told]


def test_explain_a_descriptor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`explain --descriptor` shows the rules that a descriptor meets; without it a method and a URL are needed."""
    file = tmp_path / "policy.yaml"
    file.write_text(
        "rules:\n  - {name: r, descriptors: [{path: /login}, ip], limit: 5/minute}\n"
        "  - {name: b, descriptors: [{ip: evil}], limit: blocked}\n  - {name: other, limit: 1/minute}\n"
    )

    assert 0 == main(["explain", "--config", str(file), "--descriptor", "path=/login", "--descriptor", "ip=::1"])
    shown = capsys.readouterr().out
    assert "1 of 2 match" in shown
    assert "r: 5 per minute" in shown
    assert 0 == main(["explain", "--config", str(file), "--descriptor", "ip=evil"])
    assert "b: blocked, nothing is counted" in capsys.readouterr().out
    assert 2 == main(["explain", "--config", str(file), "--descriptor", "ip"])
    assert 2 == main(["explain", "--config", str(file)])
    assert "METHOD and URL: are missing" in capsys.readouterr().err


def test_dialects_print_the_words(capsys: pytest.CaptureFixture[str]) -> None:
    """Every word of the vocabulary is in the table, with its value."""
    from ratelimiter.dialects.words import VOCABULARY

    assert 0 == main(["dialects", "--words"])
    lines = capsys.readouterr().out.splitlines()[1:]
    assert sorted(f"{{{word}}}" for word in VOCABULARY) == sorted(line.split()[0] for line in lines)


def test_the_slowapi_dialect_says_what_slowapi_says(capsys: pytest.CaptureFixture[str]) -> None:
    """Callers that read its message go on reading it."""
    assert 0 == main(["dialects", "slowapi"])
    assert '{"error": "Rate limit exceeded: 60 per 1 minute"}' in capsys.readouterr().out


def test_check_config_takes_store_and_environment(
    policy: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The outage table is there if the store comes from the environment or a flag, as in a container."""
    assert 0 == main(["check-config", policy])
    assert "store memory" in capsys.readouterr().out
    assert 0 == main(["check-config", policy, "--processes", "3", "--store", "redis://127.0.0.1:6379"])
    assert "3 processes at most" in capsys.readouterr().out
    monkeypatch.setenv("RATELIMITER_STORE", "redis://127.0.0.1:6379")
    assert 0 == main(["check-config", policy, "--processes", "3"])
    told = capsys.readouterr().out
    assert "store redis" in told
    assert "3 processes at most" in told


def test_check_config_compares_with_an_api(policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A rule without an operation is a line below the number of operations."""
    api = tmp_path / "api.json"
    api.write_text('{"openapi": "3.1.0", "paths": {"/v1/itmes/{id}": {"post": {}}}}')

    assert 0 == main(["check-config", policy, "--openapi", str(api)])
    out = capsys.readouterr().out
    assert f"{api}: 1 operations\n  rules[1]: posts matches no operation" in out


def test_describe_publishes_the_limits(policy: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A table for the API's documentation, or JSON; rules in shadow mode are not published."""
    assert 0 == main(["describe", policy])
    lines = capsys.readouterr().out.splitlines()
    assert "| Limit | Applies to | Counted for | Burst | Cost |" == lines[0]
    assert "| 60 per minute | all requests | header:x-api-key or client | 10 | 1 |" == lines[2]
    assert 4 == len(lines)
    assert 0 == main(["describe", policy, "--json"])
    described = json.loads(capsys.readouterr().out)
    assert ["per-minute", "per-address"] == [rule["name"] for rule in described["rules"]]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--peer", "10.0.0.7", "-H", "X-Forwarded-For: 203.0.113.9"), "203.0.113.9, from x-forwarded-for"),
        (
            ("--peer", "192.0.2.1", "-H", "X-Forwarded-For: 203.0.113.9"),
            "192.0.2.1, the peer; x-forwarded-for is not read",
        ),
        (("--peer", "192.0.2.1"), "192.0.2.1, the peer"),
        (("--peer", "none"), "local, a unix socket"),
    ],
)
def test_explain_shows_the_address(
    arguments: tuple[str, ...], expected: str, policy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The address that is charged, and where it was found."""
    assert (
        explained(policy, "GET", "/", *arguments, capsys=capsys)[0].removeprefix("client").strip().startswith(expected)
    )
