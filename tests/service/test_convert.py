"""Goal: a converted policy means what the files of envoyproxy/ratelimit mean. Method: the walk of the reference,
written once more here, against the rules that come out, for trees and descriptors at random; and a table of faults.
"""

from __future__ import annotations

import fnmatch
import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from ratelimiter.cli.main import main
from ratelimiter.config.loader import load
from ratelimiter.core.descriptors import DescriptorPlanner
from ratelimiter.core.planner import reader_for
from ratelimiter.service.convert import convert

if TYPE_CHECKING:
    from pathlib import Path

    from ratelimiter.core.policy import Policy

VALUES = ("", "x", "xy", "x*", "*y", "*", "z")


def trees(depth: int) -> st.SearchStrategy[list[dict[str, Any]]]:
    """Lists of descriptors as the reference allows them: no key and value twice."""
    limit = st.fixed_dictionaries({"unit": st.just("minute"), "requests_per_unit": st.integers(1, 9)})
    inner = st.just([]) if depth == 0 else trees(depth - 1)
    node = st.fixed_dictionaries(
        {"key": st.sampled_from(["a", "b"]), "value": st.sampled_from(VALUES), "descriptors": inner},
        optional={"rate_limit": limit},
    )
    return st.lists(node, max_size=4, unique_by=lambda item: (item["key"], item["value"]))


def numbered(listed: list[dict[str, Any]], count: list[int]) -> list[dict[str, Any]]:
    """The same tree with a name for each limit, by which it is told from others."""
    for item in listed:
        if "rate_limit" in item:
            item["rate_limit"]["name"] = f"limit-{count[0]}"
            count[0] += 1
        numbered(item["descriptors"], count)
        if not item["value"]:
            del item["value"]
    return listed


def walked(listed: list[dict[str, Any]], entries: tuple[tuple[str, str], ...]) -> str | None:
    """The limit that the reference finds: at each level the value, else the first pattern, else the key alone."""
    found: dict[str, Any] | None = None
    for key, value in entries:
        same = [item for item in listed if item["key"] == key]
        found = next((item for item in same if item.get("value") == value and "*" not in value), None)
        found = found or next((i for i in same if "*" in i.get("value", "") and fitting(i["value"], value)), None)
        found = found or next((item for item in same if not item.get("value")), None)
        if found is None:
            return None
        listed = found["descriptors"]
    return found["rate_limit"]["name"] if found and "rate_limit" in found else None


def fitting(pattern: str, value: str) -> bool:
    return re.fullmatch(fnmatch.translate(pattern), value) is not None


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "limits.yaml"
    file.write_text(text)
    return file


def loaded(tmp_path: Path, text: str) -> Policy:
    """The policy that *text* of the reference becomes, by way of its file."""
    converted = convert(written(tmp_path, text))
    assert [] == converted.lost
    file = tmp_path / "policy.yaml"
    file.write_text(converted.policy())
    return load(file)


ENTRIES = st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from(["x", "xy", "y", "z", "q"])), min_size=1, max_size=3
)


@given(trees(2), st.lists(ENTRIES.map(tuple), min_size=1, max_size=12))
def test_a_descriptor_meets_the_limit_that_the_reference_finds(
    tmp_path_factory: pytest.TempPathFactory, tree: list[dict[str, Any]], asked: list[tuple[tuple[str, str], ...]]
) -> None:
    """Whatever tree and descriptor: the rule met is the limit found, and there is one at most.

    But for the order of different keys, which is of no account to a policy: trees and descriptors have `a` before `b`.
    """
    numbered(tree, [0])
    tree = in_order(tree)
    folder = tmp_path_factory.mktemp("convert")
    file = folder / "limits.yaml"
    with file.open("w") as out:
        YAML().dump({"domain": "d", "descriptors": tree}, out)
    converted = convert(file) if any_limit(tree) else None
    if converted is None:
        return
    (folder / "policy.yaml").write_text(converted.policy())
    policy = load(folder / "policy.yaml")
    planner = DescriptorPlanner(policy, reader_for(policy))

    for entries in asked:
        ordered = tuple(sorted(entries, key=lambda entry: entry[0]))
        met = [hit.rule.name for hit in planner.plan("d", ordered).hits]
        expected = walked(tree, ordered)
        assert ([] if expected is None else [expected]) == met, (ordered, converted.policy())


def in_order(listed: list[dict[str, Any]], before: str = "a") -> list[dict[str, Any]]:
    """The tree without branches whose keys are not in order."""
    kept = [item for item in listed if item["key"] >= before]
    return [{**item, "descriptors": in_order(item["descriptors"], item["key"])} for item in kept]


def any_limit(listed: list[dict[str, Any]]) -> bool:
    return any("rate_limit" in item or any_limit(item["descriptors"]) for item in listed)


def test_units_and_kinds(tmp_path: Path) -> None:
    """Every unit, also as a multiple and in capitals, unlimited, none at all, shadow, choices and replaced limits."""
    policy = loaded(
        tmp_path,
        """\
domain: d
descriptors:
  - {key: s, rate_limit: {unit: SECOND, requests_per_unit: 1}}
  - {key: w, rate_limit: {unit: week, requests_per_unit: 2}}
  - {key: mo, rate_limit: {unit: month, requests_per_unit: 3}}
  - {key: y, rate_limit: {unit: year, requests_per_unit: 4}}
  - {key: m5, rate_limit: {unit: minute, unit_multiplier: 5, requests_per_unit: 5}}
  - {key: u, rate_limit: {unlimited: true}}
  - {key: n, value: 7, rate_limit: {unit: day, requests_per_unit: 0, name: Banned One}}
  - {key: sh, shadow_mode: true, rate_limit: {unit: day, requests_per_unit: 1}}
  - {key: q, quota_mode: true, rate_limit: {unit: day, requests_per_unit: 1, replaces: [{name: Banned One}]}}
  - {key: st, value: 'x*', share_threshold: true, rate_limit: {unit: day, requests_per_unit: 1}}
""",
    )
    rules = {rule.name: rule for rule in policy.rules}

    seconds = {name: rules[name].quota.window_ms // 1000 for name in ("s", "w", "mo", "y", "m5")}
    assert {"s": 1, "w": 604_800, "mo": 2_592_000, "y": 31_536_000, "m5": 300} == seconds
    matches = {name: rule.descriptors for name, rule in rules.items() if rule.descriptors}
    assert ("unlimited", "blocked") == (matches["u"].answer, matches["banned-one"].answer)
    assert rules["sh"].shadow
    assert (True, ("banned-one",)) == (matches["q"].candidate, matches["q"].replaces)
    assert not matches["st_x"].entries[0].charged


def test_a_folder_of_domains(tmp_path: Path) -> None:
    """Each file is a domain of its own, and hidden files are none."""
    for domain in ("one", "two"):
        text = f"domain: {domain}\ndescriptors:\n  - {{key: k, rate_limit: {{unit: day, requests_per_unit: 1}}}}\n"
        (tmp_path / f"{domain}.yaml").write_text(text)
    (tmp_path / ".hidden.yaml").write_text("nonsense")
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "p.yaml").write_text(convert(tmp_path).policy())
    policy = load(tmp_path / "policy" / "p.yaml")
    planner = DescriptorPlanner(policy, reader_for(policy))

    met = [[hit.rule.name for hit in planner.plan(domain, (("k", "v"),)).hits] for domain in ("one", "two", "three")]
    assert [["k"], ["k-2"], []] == met


FAULTS = [
    ("descriptors: []", "domain: is empty"),
    ("domain: d\ndescriptors:\n  - {value: v}", "2:3: descriptors[0].key: is empty".replace("2:3", "3:5")),
    ("domain: d\ndescriptors:\n  - {key: k, quota: 1}", "descriptors[0].quota: is unknown; write key, value"),
    ("domain: d\ndescriptors:\n  - {key: k}\n  - {key: k}", "descriptors[1]: k is there twice"),
    ("domain: d\ndescriptors:\n  - {key: k, rate_limit: {unit: eon, requests_per_unit: 1}}", "'eon' is no unit"),
    ("domain: d\ndescriptors:\n  - {key: k, rate_limit: {unit: day, unlimited: true}}", "beside unlimited"),
    ("domain: d\ndescriptors:\n  - {key: k, rate_limit: {unit: day, requests_per_unit: 4000000000}}", "is not 0 to"),
    ("domain: d\ndescriptors:\n  - {key: k, share_threshold: true, value: v}", "only for a value with a *"),
    ("domain: d\ndescriptors:\n  - {key: k, metadata: {a: b}}", "descriptors[0].metadata: is left out"),
    ("domain: d\ndescriptors:\n  - {key: k, value: '${X}'}", "takes for a variable"),
    ("domain: d\ndescriptors: 7", "descriptors: is no list"),
    ("[", "check quotes, brackets"),
    (
        """\
domain: d
descriptors:
  - {key: a, descriptors: [{key: b, rate_limit: {unit: day, requests_per_unit: 1}}]}
  - {key: b, descriptors: [{key: a, rate_limit: {unit: day, requests_per_unit: 2}}]}
""",
        "in another order",
    ),
    (
        """\
domain: d
descriptors:
  - {key: a, rate_limit: {name: x, replaces: [{name: x}], unit: day, requests_per_unit: 1}}
""",
        "is the limit itself",
    ),
]


@pytest.mark.parametrize(("text", "issue"), FAULTS)
def test_what_cannot_be_said_is_told(text: str, issue: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each fault has its place and its words, and the exit status is 2."""
    file = written(tmp_path, text)

    status = 0
    try:
        status = main(["convert", "envoy", str(file)])
    except SystemExit as end:
        status = int(end.code or 0)
    told = capsys.readouterr().err

    assert 2 == status
    assert issue in told
    assert "limits.yaml:" in told


def test_the_command_prints_a_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is printed is a policy file; notes that change no decision do not change the exit status."""
    text = (
        "domain: d\ndescriptors:\n  - {key: k, detailed_metric: true, rate_limit: {unit: day, requests_per_unit: 1}}\n"
    )
    assert 0 == main(["convert", "envoy", str(written(tmp_path, text))])
    printed = capsys.readouterr()

    (tmp_path / "p.yaml").write_text(printed.out)
    assert ["k"] == [rule.name for rule in load(tmp_path / "p.yaml").rules]
    assert "note: " in printed.err
