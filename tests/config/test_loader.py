from __future__ import annotations

import json
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimiter.config.layers import policy_schema
from ratelimiter.config.lint import warnings
from ratelimiter.config.loader import build, load, load_file
from ratelimiter.core.client_address import Trust
from ratelimiter.core.match import Match
from ratelimiter.core.policy import AmbiguousPaths, Policy
from ratelimiter.core.principal import CLIENT, EVERYONE, Source
from ratelimiter.core.quota import Quota
from ratelimiter.core.rule import Mode, OnStoreError, Rule
from ratelimiter.errors import ConfigError
from ratelimiter.stores.factory import OPENERS, open_store
from ratelimiter.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable

BAD = Path(__file__).parents[1] / "data" / "policies" / "bad"
SHIPPED = sorted((Path(__file__).parents[2] / "config").glob("*.yaml"))
BARE = "rules:\n  - limit: 60/minute\n"
KEY = Source("header", "x-api-key")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, text: str, name: str = "policy.yaml") -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return name


def refusal(**settings: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        build(**{"environ": {}} | settings)  # type: ignore[arg-type]
    return list(caught.value.problems)


# Files


@pytest.mark.parametrize("path", sorted(BAD.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_bad_file_is_refused_in_so_many_words(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file in the folder has one mistake, and its first line is what must be said of it, to the letter."""
    monkeypatch.chdir(BAD)
    expected = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")

    with pytest.raises(ConfigError) as caught:
        load(path.name)

    assert expected == str(caught.value)


def test_the_folder_of_bad_files_is_there() -> None:
    """The test above does not pass for lack of files."""
    assert len(list(BAD.glob("*.yaml"))) > 80


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_policies_are_beyond_doubt(path: Path) -> None:
    """What we ship loads, and check-config has nothing to say about it."""
    policy, _, _, document = load_file(path)

    assert [] == warnings(policy, document)
    assert policy.catch_all


def test_every_documented_api_has_a_policy() -> None:
    """There is an example for each of the documented APIs, and one to begin with."""
    assert {"intrace", "quickstart", "sentinel", "trace", "tracefinance", "tracefinance-v1"} <= {
        p.stem for p in SHIPPED
    }


def test_every_field_of_a_file_arrives(folder: Path) -> None:
    """Each field of a file is where the policy has it."""
    (folder / "secret").write_bytes(b"  hush\n")
    path = write(
        folder,
        """
name: shop
store: memory://?keys_max=10
dialect: trace
headers: [x-ratelimit, draft-11]
expose_headers: true
principal: [header:X-API-Key, client]
trusted_proxies: [10.0.0.0/8, '2001:db8::1']
client_header: X-Real-IP
ipv6_prefix: 48
on_store_error: deny
decision_timeout: 2s
local_share: 0.25
ambiguous_paths: match
path_case: insensitive
method_override: true
show_principals: true
mode: shadow
secret_file: ./secret
rules:
  - limit: 60/minute
    burst: 10
  - name: deep
    limit: 5 per 2 seconds
    match: {methods: [POST], path: /V1/Items}
    principal: everyone
    cost: 2
    mode: enforce
    quiet: true
    on_store_error: allow
""",
    )

    expected = Policy(
        rules=(
            Rule(
                "per-minute",
                Quota(60, 60_000),
                burst=10,
                principal=(KEY, CLIENT),
                mode=Mode.SHADOW,
                on_store_error=OnStoreError.DENY,
            ),
            Rule(
                "deep",
                Quota(5, 2000),
                match=Match(frozenset({"POST"}), "/V1/Items", ignore_case=True),
                principal=(EVERYONE,),
                cost=2,
                on_store_error=OnStoreError.ALLOW,
                quiet=True,
            ),
        ),
        name="shop",
        store="memory://?keys_max=10",
        dialect="trace",
        headers=("x-ratelimit", "draft-11"),
        expose_headers=True,
        trust=Trust((ip_network("10.0.0.0/8"), ip_network("2001:db8::1")), header="x-real-ip", ipv6_prefix=48),
        decision_timeout_ms=2000,
        local_share=0.25,
        ambiguous_paths=AmbiguousPaths.MATCH,
        method_override=True,
        show_principals=True,
        secret=b"hush",
    )
    assert expected == load(path)


def test_a_file_that_says_little_means_the_defaults(folder: Path) -> None:
    """What a file leaves out is as the schema says and as the core has it."""
    policy = load(write(folder, BARE))
    defaults = {name: field["default"] for name, field in policy_schema()["properties"].items() if "default" in field}

    assert Policy((Rule("per-minute", Quota(60, 60_000)),)) == policy
    assert policy == build(limit="60/minute", environ={}, **defaults | {"trusted_hops": None})


def test_rules_without_a_name_are_named_for_their_window(folder: Path) -> None:
    """A derived name says the window, avoids the names that are given, and is unique."""
    limits = ["60/minute", "5 per 300 seconds", "90/minute", "9/hour", "1/second", "1 per 48 hours"]
    rules = "".join(f"  - limit: {limit}\n" for limit in limits)
    policy = load(write(folder, f"rules:\n{rules}  - {{name: per-minute-2, limit: 1/day}}\n"))

    assert [
        "per-minute",
        "per-5-minutes",
        "per-minute-3",
        "per-hour",
        "per-second",
        "per-2-days",
        "per-minute-2",
    ] == [rule.name for rule in policy.rules]


def test_problems_of_all_kinds_are_told_at_once(folder: Path) -> None:
    """What YAML, the schema and the meaning have against a file comes in one answer, by place."""
    text = """headrs: [x-ratelimit]
store: redis-ish://user:hunter2@db
trusted_proxies: [10.0.0.1/8]
rules:
  - limit: 10 parsecs
    burst: 010
  - limit: 60/minute
    mode: shdow
    cost: 61
"""
    with pytest.raises(ConfigError) as caught:
        load(write(folder, text))

    assert [
        "policy.yaml:1:1: 'headrs' is unknown",
        "policy.yaml:2:8: store: 'redis-ish://' does not begin the URL of a store",
        "policy.yaml:3:19: trusted_proxies[0]: '10.0.0.1/8' is an address within a network",
        "policy.yaml:5:12: rules[0].limit: '10 parsecs' is not a limit",
        "policy.yaml:6:12: 010 is read as different numbers by different readers",
        "policy.yaml:8:11: rules[1].mode: 'shdow' is not enforce or shadow",
        "policy.yaml:9:11: rules[1].cost: 61 never fits a limit of 60",
    ] == [problem.partition(";")[0] for problem in caught.value.problems]


def test_a_password_is_never_repeated(folder: Path) -> None:
    """A problem with a store's URL shows its scheme and nothing that follows."""
    with pytest.raises(ConfigError) as caught:
        load(write(folder, f"store: nosuch://user:hunter2@db\n{BARE}"))

    assert "hunter2" not in str(caught.value)


def test_a_dialect_file_is_relative_to_the_policy(folder: Path) -> None:
    """A path in a file holds wherever the process was started; problems of a dialect carry the dialect's name."""
    (folder / "sub").mkdir()
    write(folder, "about: [\n", "sub/my.yaml")
    path = write(folder, f"dialect: ./my.yaml\nmode: shdow\n{BARE}", "sub/policy.yaml")

    with pytest.raises(ConfigError) as caught:
        load(path)

    assert ["sub/policy.yaml:2:7", "sub/my.yaml:2:1"] == [line.partition(": ")[0] for line in caught.value.problems]


@pytest.mark.parametrize(("content", "size"), [(b"", 0), (b" \n", 0), (b"x" * 65, 65)])
def test_a_secret_has_a_size(folder: Path, content: bytes, size: int) -> None:
    """An empty secret is none, and one beyond 64 bytes is not used in part."""
    (folder / "secret").write_bytes(content)

    with pytest.raises(ConfigError, match=f"secret_file: a secret of {size} bytes is not one of 1 to 64"):
        load(write(folder, f"secret_file: secret\n{BARE}"))


# Arguments and environment


def test_neither_limit_nor_file_is_a_mistake() -> None:
    """A limiter without limits is not what anybody asked for."""
    expected = (
        "limit: there is neither a limit nor a policy file; write a limit like 60/minute, or name a file with config"
    )

    assert [f"{expected} or RATELIMITER_CONFIG"] == refusal()


def test_limits_become_rules() -> None:
    """One limit or several, each a rule on everything, with the principal that was given."""
    policy = build(limit=["60/minute", "1000/hour"], principal="header:X-API-Key", environ={})

    assert (
        Rule("per-minute", Quota(60, 60_000), principal=(KEY,)),
        Rule("per-hour", Quota(1000, 3_600_000), principal=(KEY,)),
    ) == policy.rules


def test_limit_and_config_exclude_each_other(folder: Path) -> None:
    """Nobody could say whether the limit joins the file's rules or replaces them."""
    path = write(folder, BARE)

    assert ["limit: excludes config; write the limits into the file's rules, or leave the file out"] == refusal(
        limit="1/minute", config=path
    )
    assert ["RATELIMITER_LIMIT: excludes RATELIMITER_CONFIG; unset one of them"] == refusal(
        environ={"RATELIMITER_LIMIT": "1/minute", "RATELIMITER_CONFIG": path}
    )


def test_arguments_win_over_the_file_and_the_file_over_the_environment(folder: Path) -> None:
    """Each setting is taken from the first place that has it."""
    path = write(folder, f"dialect: trace\nheaders: draft-11\n{BARE}")
    environ = {
        "RATELIMITER_DIALECT": "sentinel",
        "RATELIMITER_HEADERS": "draft-06",
        "RATELIMITER_STORE": "memory://?keys_max=7",
        "RATELIMITER_PRINCIPAL": "header:X-API-Key, client",
        "RATELIMITER_EXPOSE_HEADERS": "true",
        "RATELIMITER_IPV6_PREFIX": "48",
        "RATELIMITER_LOCAL_SHARE": "0.5",
        "RATELIMITER_SECRET": "hush",
        "RATELIMITER_CONFIG": path,
        "RATELIMITER_PORT": "tcp://10.0.0.1:80",  # what an orchestrator sets for a service of that name
    }
    policy = build(dialect="intrace", environ=environ)

    assert "intrace" == policy.dialect
    assert ("draft-11",) == policy.headers
    assert "memory://?keys_max=7" == policy.store
    assert (KEY, CLIENT) == policy.rules[0].principal
    assert policy.expose_headers
    assert 48 == policy.trust.ipv6_prefix
    assert 0.5 == policy.local_share
    assert b"hush" == policy.secret


def test_an_argument_for_limits_hides_both_variables() -> None:
    """The rules come from one place, and an argument is nearer than the environment."""
    environ = {"RATELIMITER_LIMIT": "1/minute", "RATELIMITER_CONFIG": "/nowhere"}

    assert 60 == build(limit="60/minute", environ=environ).rules[0].quota.limit


def test_an_empty_variable_is_not_set() -> None:
    """Compose files pass variables on whether they are set or not."""
    assert "memory://" == build(environ={"RATELIMITER_LIMIT": "1/minute", "RATELIMITER_STORE": ""}).store


def test_trust_is_taken_from_one_place(folder: Path) -> None:
    """Trusted proxies given as an argument replace the hops of the file: together they would mean nothing."""
    path = write(folder, f"trusted_hops: 2\nipv6_prefix: 56\n{BARE}")

    assert (
        Trust((ip_network("10.0.0.0/8"),), ipv6_prefix=56)
        == build(config=path, trusted_proxies="10.0.0.0/8", environ={}).trust
    )


def test_problems_name_the_argument_or_the_variable() -> None:
    """Where there is no line, the name of the argument or variable says where to look."""
    assert [
        "dialetc: 'dialetc' is unknown; did you mean dialect?",
        "headers[0]: 'draft-7' is not x-ratelimit, draft-11, draft-06, openai or anthropic; did you mean draft-11?",
        "limit[1]: '10 parsecs' is not a limit; write one like 60/minute, 1000 per hour or 5 per 2 seconds",
        "RATELIMITER_IPV6_PREFIX: 'many' is not a number of bits from 32 to 128; write 64",
        "RATELIMITER_LOCAL_SHARE: '1/2' is not a number above 0 and up to 1; write 0.5",
        "RATELIMITER_PRINCIPAL: 'x' is not a principal source; write header:x, bearer, org, client or everyone",
    ] == sorted(
        refusal(
            limit=["60/minute", "10 parsecs"],
            headers=("draft-7",),
            dialetc="trace",
            environ={
                "RATELIMITER_PRINCIPAL": "client,x",
                "RATELIMITER_IPV6_PREFIX": "many",
                "RATELIMITER_LOCAL_SHARE": "1/2",
            },
        ),
        key=lambda line: (line.startswith("RATELIMITER"), line),
    )


@pytest.mark.parametrize("limit", [60, 0.5, object(), [], [60], ["60/minute", "60/minute"], {"a": 1}, "", b"60/minute"])
def test_a_limit_of_another_type_is_a_config_error(limit: object) -> None:
    """Whatever is given for a limit, the problem names the argument."""
    assert all(line.startswith("limit") for line in refusal(limit=limit))


def test_none_is_not_given() -> None:
    """An option that was left out of a command line changes nothing."""
    assert build(limit="60/minute", environ={}) == build(
        limit="60/minute", store=None, dialect=None, headers=None, secret=None, environ={}
    )


def test_a_ready_policy_is_taken_as_it_is() -> None:
    """A policy leaves nothing open for the environment; arguments change what is no rule's."""
    policy = Policy((Rule("one", Quota(1, 1000)),), trust=Trust(hops=2))

    assert policy == build(config=policy, environ={"RATELIMITER_DIALECT": "trace"})
    assert "trace" == build(config=policy, dialect="trace", environ={}).dialect
    assert Trust((ip_network("10.0.0.0/8"),)) == build(config=policy, trusted_proxies=["10.0.0.0/8"], environ={}).trust
    assert Trust(hops=2, ipv6_prefix=48) == build(config=policy, ipv6_prefix=48, environ={}).trust
    assert ["principal: belongs to the rules of a ready policy; write it there"] == refusal(
        config=policy, principal="client"
    )


@pytest.mark.parametrize("share", [0, -1, 1.01, float("nan"), float("inf"), True, "half"])
def test_a_share_is_above_0_and_at_most_1(share: object) -> None:
    """A share of nothing would refuse everybody, one above 1 more than the limit admits."""
    (line,) = refusal(limit="1/minute", local_share=share)

    assert line.startswith("local_share: ")
    assert line.endswith("is not a number above 0 and up to 1; write 0.5")


@pytest.mark.parametrize("share", [1, 1.0, 0.5, 1e-9])
def test_a_share_is_taken_as_it_is(share: float) -> None:
    """A whole 1 is a share, too, and the default."""
    assert share == build(limit="1/minute", local_share=share, environ={}).local_share
    assert 1 == build(limit="1/minute", environ={}).local_share


@pytest.mark.parametrize("secret", ["", "x" * 65, b"", 5])
def test_a_secret_that_will_not_do_is_not_repeated(secret: object) -> None:
    """A secret is text or bytes of 1 to 64, and its problem does not show it."""
    (line,) = refusal(limit="1/minute", secret=secret)

    assert line.startswith("secret: a ")
    assert "xxx" not in line


# Whatever it says

FIELDS = [*policy_schema()["properties"], *policy_schema()["$defs"]["rule"]["properties"]]
FIELDS += ["methods", "path", "secret"]
WORDS = ["60/minute", "1/day", "client", "bearer", "header:x", "10.0.0.0/8", "::/0", "/v1/{id}", "/a/**", "GET", "5ms"]
WORDS += [
    "enforce",
    "x-ratelimit",
    "draft-06",
    "trace",
    "memory://",
    "unix",
    "./x.yaml",
    "a",
    "",
    "../",
    "\0",
    "é",
    "\n",
]
values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**12) | st.sampled_from(WORDS) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=5),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(FIELDS), values, max_size=6), st.lists(values, max_size=3))
def test_no_policy_raises_anything_but_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, document: dict[str, object], rules: list[object]
) -> None:
    """A file whose fields hold anything at all is a policy or a list of problems, and so are such arguments."""
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_text(json.dumps(document | ({"rules": rules} if rules else {})), encoding="utf-8")
    problems: list[str] = []
    arguments: dict[str, Any] = {"environ": {}} | document
    attempts: tuple[Callable[[], Policy], ...] = (lambda: load(path), lambda: build(**arguments))
    for attempt in attempts:
        try:
            warnings(attempt())
        except ConfigError as fault:
            problems += fault.problems

    assert all(line.isprintable() for line in problems)


# Stores


def test_a_memory_store_is_opened() -> None:
    """The number of keys is an option of the URL."""
    store = open_store("memory://?keys_max=5")

    assert isinstance(store, MemoryStore)
    assert 5 == store.keys_max


@pytest.mark.parametrize(
    "url",
    ["", "memory", "memory:", "memory://host", "memory://?keys_max=0", "memory://?x", "x://", "memory://[", "://"],
)
def test_a_url_that_names_no_store_is_a_config_error(url: str) -> None:
    """Whatever the URL, the problem names the argument."""
    with pytest.raises(ConfigError, match=r"^store: .*; write "):
        open_store(url)


@pytest.mark.parametrize(("url", "shown"), [("nosuch://user:hunter2@db", "nosuch://"), ("localhost:6379", "localhost")])
def test_an_unknown_scheme_is_answered_with_the_known_ones(folder: Path, url: str, shown: str) -> None:
    """Whoever names a store that there is not is told which there are."""
    own = [scheme for scheme in OPENERS if not scheme.startswith("limits+")]
    known = ", ".join(f"{scheme}://" for scheme in [*own, "limits+memcached"])

    with pytest.raises(ConfigError) as caught:
        load(write(folder, f"store: {url}\n{BARE}"))

    expected = f"policy.yaml:1:8: store: {shown!r} does not begin the URL of a store; write one of {known}"
    assert expected == str(caught.value)


# Warnings

NOT_VERIFIED = "is not verified, so a caller that invents a new one meets no limit; add a rule with principal: [client]"
NEVER_FITS = "its cost of 7 never fits the local share of 6 while the store is out; write a larger local_share"
WEAKER = (
    "limits+ takes several round trips per decision, is not atomic over rules, and its windows are approximate; "
    "write memory:// or a redis:// URL for strict limits"
)
WRITTEN_BY_CALLER = "is written by the caller; write client, and your proxies into trusted_proxies"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (BARE, []),
        (
            "rules:\n  - {limit: 60/minute, match: {path: /v1/**}}\n",
            ["f.yaml:2:3: rules: a request that none matches is admitted; add a rule without match if not intended"],
        ),
        (
            f"principal: [header:X-API-Key, bearer, client]\n{BARE}",
            [
                f"f.yaml:3:5: rules[0]: header:x-api-key {NOT_VERIFIED}",
            ],
        ),
        (f"principal: [header:X-API-Key]\n{BARE}  - {{limit: 600/minute, principal: client}}\n", []),
        (
            f"{BARE}  - {{limit: 60/minute, name: again}}\n",
            ["f.yaml:3:5: rules[1]: is the same as rules[0]; leave one out"],
        ),
        (
            "rules:\n  - {limit: 90/minute, name: wide}\n  - limit: 60/minute\n",
            ["f.yaml:2:5: rules[0]: never refuses before rules[1] does; leave one out"],
        ),
        ("rules:\n  - {limit: 90/hour}\n  - limit: 60/minute\n", []),
        ("rules:\n  - {limit: 90/minute, name: new, mode: shadow}\n  - limit: 60/minute\n", []),
        (
            f"{BARE}  - {{limit: 9/minute, principal: header:X-Forwarded-For, name: b}}\n",
            [
                f"f.yaml:3:5: rules[1]: header:x-forwarded-for {WRITTEN_BY_CALLER}",
            ],
        ),
        (
            f"client_header: forwarded\n{BARE}",
            ["f.yaml:1:16: client_header: is never read, as no proxy is trusted; write trusted_proxies, too"],
        ),
        (f"store: redis://127.0.0.1\nlocal_share: 0.1\n{BARE}    cost: 6\n", []),
        (f"local_share: 0.1\n{BARE}    cost: 7\n", []),
        (
            f"store: redis://127.0.0.1\nlocal_share: 0.1\n{BARE}    cost: 7\n",
            [f"f.yaml:4:5: rules[0]: {NEVER_FITS}"],
        ),
        (f"store: limits+redis://127.0.0.1:6379\n{BARE}", [f"f.yaml:1:8: store: {WEAKER}"]),
    ],
)
def test_what_may_not_be_meant_is_warned_of(folder: Path, text: str, expected: list[str]) -> None:
    """A policy that can be used and yet looks wrong is told so, with the place."""
    assert expected == warnings(*load_file(write(folder, text, "f.yaml"))[::3])


def test_warnings_need_no_file() -> None:
    """A policy made of arguments is doubted, too."""
    (line,) = warnings(build(limit="60/minute", principal="bearer", environ={}))

    assert line.startswith("rules[0]: bearer is not verified")
