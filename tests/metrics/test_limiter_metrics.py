"""What Prometheus is told."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import product
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from ratelimiter.config.redact import fingerprint
from ratelimiter.config.reload import RESULTS
from ratelimiter.core.decision import (
    CREDIT_EXHAUSTED,
    OVER_LIMIT,
    STORE_ERROR,
    SUSPENDED,
    WITHIN_LIMIT,
    Decision,
    Outcome,
)
from ratelimiter.core.identity import FAULTS
from ratelimiter.core.match import Match
from ratelimiter.core.overrides import Block, PlanChoice, RuntimeOverrides
from ratelimiter.core.policy import Policy
from ratelimiter.core.principal import parse_source
from ratelimiter.core.quota import Balance, Quota
from ratelimiter.core.receipt import FAIL_CLOSED, FAIL_OPEN, LOCAL, REMEMBERED, STORE
from ratelimiter.core.requirement import REASONS, Requirement
from ratelimiter.core.rule import Mode, OnStoreError
from ratelimiter.engine.limiter import Limiter
from ratelimiter.engine.observer import Observer
from ratelimiter.errors import Kind, StoreUnavailable
from ratelimiter.metrics.limiter_metrics import (
    DECISION_S,
    KINDS,
    OUTCOMES,
    RULE_OUTCOMES,
    SOURCES,
    Metrics,
)
from ratelimiter.metrics.prometheus import Instruments, process_registry
from ratelimiter.stores.base import Store
from ratelimiter.stores.circuit_breaker import FAILURES_MAX
from ratelimiter.stores.fallback import FallbackStore
from ratelimiter.stores.memory import MemoryStore
from tests.reference_store import hits_of
from tests.requesting import per_minute, request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ratelimiter.core.receipt import Receipt
    from ratelimiter.core.rule import Hit, Rule
    from ratelimiter.testing import FakeClock

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "metrics.md"
BY_KEY = (parse_source("header:x-api-key"),)


class Observed:
    """A limiter with metrics, and what they say."""

    def __init__(self, *rules: Rule, store: Any = None, clock: FakeClock | None = None) -> None:
        self.seconds = 0.0
        self.registry = CollectorRegistry()
        told: dict[str, Any] = {"clock": clock} if clock else {}
        self.metrics = Metrics(self.registry, stopwatch=lambda: self.seconds, **told)
        self.policy = Policy(rules)
        self.limiter = Limiter(self.policy, store or MemoryStore(), observer=self.metrics)

    async def ask(self, times: int = 1, key: str = "alice", target: str = "/") -> None:
        for _ in range(times):
            await self.limiter.judge(request(target, headers=[("x-api-key", key)]))

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"ratelimiter_{name}", labels)

    def requests(self, outcome: str, source: str = "store") -> float | None:
        return self.value("requests_total", outcome=outcome, source=source)

    def of_rule(self, rule: str, outcome: str, source: str = "store") -> float | None:
        return self.value("rule_requests_total", rule=rule, outcome=outcome, source=source)

    def series(self) -> set[str]:
        return set(samples(self.metrics.exposition()[0]))


def samples(exposition: bytes) -> dict[str, float]:
    """Every sample that is ours, by name and labels."""
    found = {}
    for family in text_string_to_metric_families(exposition.decode()):
        for sample in family.samples:
            if sample.name.startswith("ratelimiter_"):
                found[f"{sample.name}{sorted(sample.labels.items())}"] = sample.value
    return found


def exposed(instruments: Instruments) -> dict[str, tuple[str | None, tuple[str, ...]]]:
    """Every metric, with its type and its labels."""
    return {
        metric._name + ("_total" if metric._type == "counter" else ""): (metric._type, tuple(metric._labelnames))
        for metric in instruments._metrics
    }


def documented(which: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return the same, as the reference has it, of the metrics whose names match *which* behind the prefix."""
    rows = re.findall(rf"^\| `(ratelimiter_{which}\w+)` \| (\w+) \|([^|]*)\|", PAGE.read_text(), re.MULTILINE)
    return {name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


class TestDecisions:
    async def test_every_request_is_counted_once(self) -> None:
        """Admitted, refused, unmatched and malformed requests are told apart, and their sum is all of them."""
        observed = Observed(per_minute(2, match=Match(path="/v1/**")))
        await observed.ask(5, target="/v1/x")
        await observed.ask(2, target="/other")
        await observed.ask(1, target="/v1%2fx")
        seen = samples(observed.metrics.exposition()[0])

        assert (2, 3) == (observed.requests("admitted"), observed.requests("refused"))
        assert (2, 1) == (observed.requests("unmatched", "none"), observed.requests("malformed", "none"))
        assert 8 == sum(value for name, value in seen.items() if name.startswith("ratelimiter_requests_total"))
        assert 8 == sum(value for name, value in seen.items() if name.startswith("ratelimiter_decision_seconds_count"))

    async def test_every_rule_says_what_it_made_of_a_request(self) -> None:
        """Of a refused request one rule has refused and the others are spared; by rule the sum is what it matched."""
        observed = Observed(per_minute(2, name="tight"), per_minute(100, name="wide"))
        await observed.ask(5)

        assert (2, 3) == (observed.of_rule("tight", "admitted"), observed.of_rule("tight", "refused"))
        assert (2, 3) == (observed.of_rule("wide", "admitted"), observed.of_rule("wide", "spared"))
        assert (2, 3) == (observed.requests("admitted"), observed.requests("refused"))

    @pytest.mark.parametrize("others", [(), (per_minute(100, name="wide"),)], ids=["alone", "with-another"])
    async def test_exhausted_credits_stand_out(self, others: tuple[Rule, ...]) -> None:
        """The 402 is told from the 429; what the rule did is refuse, all the same. Both are there before it happens."""
        observed = Observed(per_minute(name="credits", quota=Balance(2)), *others)
        before = observed.requests("credit_exhausted")
        await observed.ask(5)

        assert (0, 3, 0) == (before, observed.requests("credit_exhausted"), observed.requests("refused"))
        assert (2, 3) == (observed.of_rule("credits", "admitted"), observed.of_rule("credits", "refused"))

    @pytest.mark.parametrize("others", [(), (per_minute(100, name="wide"),)], ids=["alone", "with-another"])
    async def test_the_switch_and_blocks_show(self, others: tuple[Rule, ...]) -> None:
        """While an operator's switch is on, what a rule would have refused counts as in shadow; how many orders there
        are is shown by kind, and the series of what they lead to are there before.
        """
        observed = Observed(per_minute(2, name="tight"), *others)
        before = observed.requests("shadow_refused"), observed.requests("blocked", "none")
        observed.limiter.apply(RuntimeOverrides("1", blocks=(Block("0" * 32, 0), Block("1" * 32, 0)), shadow=True))
        await observed.ask(5)
        during = [observed.value("orders", kind=kind) for kind in ("override", "block", "shadow")]
        observed.limiter.apply(RuntimeOverrides("2"))
        await observed.ask(1)

        assert (0, 0) == before
        assert [0, 2, 1] == during
        assert [0, 0, 0] == [observed.value("orders", kind=kind) for kind in ("override", "block", "shadow")]
        assert (2, 3, 1) == tuple(map(observed.requests, ("admitted", "shadow_refused", "refused")))
        assert 3 == observed.of_rule("tight", "shadow_refused")

    @pytest.mark.parametrize("others", [(), (per_minute(100, name="wide"),)], ids=["alone", "with-another"])
    async def test_shadow_refusals_are_admissions_that_stand_out(self, others: tuple[Rule, ...]) -> None:
        """What a rule in shadow would have refused can be counted before it is enforced."""
        observed = Observed(per_minute(1, name="shade", mode=Mode.SHADOW), *others)
        await observed.ask(4)

        assert (1, 3) == (observed.requests("admitted"), observed.requests("shadow_refused"))
        assert (1, 3) == (observed.of_rule("shade", "admitted"), observed.of_rule("shade", "shadow_refused"))

    @pytest.mark.parametrize("others", [(), (per_minute(100, name="wide"),)], ids=["alone", "with-another"])
    async def test_near_the_limit_is_from_eighty_percent(self, others: tuple[Rule, ...]) -> None:
        """The admissions that leave at most a fifth of the limit are counted; refusals are not, they have a counter."""
        observed = Observed(per_minute(10, name="ten"), *others)
        await observed.ask(7)
        before = observed.value("rule_near_limit_total", rule="ten")
        await observed.ask(8)

        assert (0, 3) == (before, observed.value("rule_near_limit_total", rule="ten"))

    @pytest.mark.parametrize("others", [(), (per_minute(100, name="wide"),)], ids=["alone", "with-another"])
    @pytest.mark.parametrize(("limit", "cost"), [(1, 1), (4, 1), (9, 2)])
    async def test_nobody_is_near_a_small_limit(self, limit: int, cost: int, others: tuple[Rule, ...]) -> None:
        """Who may do something once, and does, is not near a limit but uses it: of a limit of fewer than five requests
        there is no such series, which no query has to leave out then.
        """
        observed = Observed(per_minute(limit, name="small", cost=cost), *others)
        await observed.ask(limit)

        assert observed.of_rule("small", "admitted") == limit // cost
        assert observed.value("rule_near_limit_total", rule="small") is None

    async def test_source_says_who_answered(self) -> None:
        """Requests decided without the store can be told from the others, by rule as well."""
        rule = per_minute(10)
        observed = Observed(rule)
        observed.metrics.decided(
            Decision(True, WITHIN_LIMIT, 0, (Outcome(rule, 5, 9, 0),), None, LOCAL), hits_of(rule), 0.001
        )
        observed.metrics.decided(
            Decision(False, OVER_LIMIT, 0, (Outcome(rule, 0, 9, 9),), None, REMEMBERED), hits_of(rule), 0.001
        )
        observed.metrics.decided(Decision(False, STORE_ERROR, 0, (), None, FAIL_CLOSED), hits_of(rule), 0.001)

        assert 1 == observed.requests("admitted", "local") == observed.of_rule("rule", "admitted", "local")
        assert 1 == observed.requests("refused", "remembered") == observed.of_rule("rule", "refused", "remembered")
        assert (
            1
            == observed.requests("store_error", "fail_closed")
            == observed.of_rule("rule", "store_error", "fail_closed")
        )

    async def test_decision_seconds_have_sub_millisecond_buckets(self) -> None:
        """A decision lands in the bucket that its seconds fit, its bound included."""
        observed = Observed(per_minute(10))
        for seconds in (0.000_01, 0.000_011, 0.000_9, 2.0):
            observed.metrics.decided(Decision(True, WITHIN_LIMIT, 0, (), None), (), seconds)

        def up_to(bound: str) -> float | None:
            return observed.value("decision_seconds_bucket", source="store", le=bound)

        assert (1, 2, 2, 3, 3, 4) == tuple(map(up_to, ("1e-05", "2.5e-05", "0.0005", "0.001", "1.0", "+Inf")))
        assert pytest.approx(2.000_921) == observed.value("decision_seconds_sum", source="store")
        assert sum(bound < 0.001 for bound in DECISION_S) >= 5

    async def test_principals_make_no_series(self) -> None:
        """10^5 principals leave the number of series unchanged, and none of them is in the exposition (invariant 8)."""
        observed = Observed(per_minute(1, principal=BY_KEY), per_minute(1000, name="addresses"))
        await observed.ask(2000, key="first")
        before = observed.series()
        for number in range(100_000):
            await observed.limiter.judge(
                request(headers=[("x-api-key", b"k%d" % number)], peer=f"10.0.{number % 200}.1")
            )

        assert before == observed.series()
        assert not re.search(rb"k99|10\.0\.", observed.metrics.exposition()[0])


class TestStore:
    async def test_errors_by_kind_and_time_without_the_store(self, clock: FakeClock) -> None:
        """An outage shows as errors of a kind, an open breaker, and seconds that grow until it is over."""

        class Out(Store):
            async def charge(self, hits: Sequence[Hit]) -> Receipt:
                raise StoreUnavailable("gone")

            async def close(self) -> None: ...

        observed = Observed(per_minute(100, on_store_error=OnStoreError.ALLOW))
        observed.limiter.store = FallbackStore(Out(), observer=observed.metrics)
        await observed.ask(FAILURES_MAX)
        observed.seconds = 10.0

        assert FAILURES_MAX == observed.value("store_errors_total", kind=Kind.UNREACHABLE)
        assert observed.metrics.store_out
        assert (1, 10) == (observed.value("store_breaker_open"), observed.value("degraded_seconds_total"))
        assert FAILURES_MAX == observed.requests("admitted", "fail_open")

        observed.seconds = 12.0
        observed.metrics.degraded(degraded=False)
        observed.seconds = 99.0

        assert not observed.metrics.store_out
        assert (0, 12) == (observed.value("store_breaker_open"), observed.value("degraded_seconds_total"))

    async def test_kinds_are_a_closed_set(self) -> None:
        """Every kind is there from the start; an exception of ours is internal, whatever its name."""
        observed = Observed(per_minute())
        for name in ("KeyError", "ZeroDivisionError", Kind.TIMEOUT):
            observed.metrics.failed(name)

        assert 2 == observed.value("store_errors_total", kind="internal")
        assert len(KINDS) == len([name for name in observed.series() if "store_errors_total" in name])

    async def test_round_trips_and_their_sizes(self) -> None:
        """A round trip is one observation of its seconds and one of its requests."""
        observed = Observed(per_minute())
        observed.metrics.called(1, 0.000_2)
        observed.metrics.called(30, 0.002)

        assert (2, 31) == (observed.value("store_call_seconds_count"), observed.value("store_batch_requests_sum"))
        assert 1 == observed.value("store_batch_requests_bucket", le="16.0")


class TestPolicy:
    async def test_limits_hash_and_age_are_those_in_force(self, clock: FakeClock) -> None:
        """After a swap nothing of the old policy is left but its counters."""
        observed = Observed(per_minute(60, name="old"), per_minute(5, name="kept"), clock=clock)
        await observed.ask()
        first = fingerprint(observed.policy)
        assert (60, 60, 1) == (
            observed.value("rule_limit", rule="old"),
            observed.value("rule_window_seconds", rule="old"),
            observed.value("policy_info", hash=first),
        )

        clock.advance(5000)
        second = Policy((per_minute(7, name="kept"),))
        observed.limiter.swap(second)

        assert (None, 7) == (observed.value("rule_limit", rule="old"), observed.value("rule_limit", rule="kept"))
        assert (None, 1) == (
            observed.value("policy_info", hash=first),
            observed.value("policy_info", hash=fingerprint(second)),
        )
        assert clock() / 1000 == observed.value("policy_loaded_timestamp_seconds")
        assert 1 == observed.of_rule("old", "admitted")

    @pytest.mark.parametrize(
        ("store", "rule", "expected"),
        [
            ("memory://", per_minute(), {("admitted", "store"), ("refused", "store")}),
            ("memory://", per_minute(mode=Mode.SHADOW), {("admitted", "store"), ("shadow_refused", "store")}),
            (
                "redis://h",
                per_minute(),
                {*product(("admitted", "refused"), ("store", "local")), ("refused", "remembered")},
            ),
            (
                "redis://h",
                per_minute(on_store_error=OnStoreError.ALLOW),
                {("admitted", "store"), ("refused", "store"), ("refused", "remembered"), ("admitted", "fail_open")},
            ),
            (
                "redis://h",
                per_minute(on_store_error=OnStoreError.DENY),
                {
                    ("admitted", "store"),
                    ("refused", "store"),
                    ("refused", "remembered"),
                    ("store_error", "fail_closed"),
                },
            ),
            (
                "redis://h",
                per_minute(mode=Mode.SHADOW, on_store_error=OnStoreError.DENY),  # which a shadow rule does not
                {("admitted", "store"), ("shadow_refused", "store"), ("admitted", "fail_open")},
            ),
        ],
    )
    def test_the_first_event_is_none_too_late(self, store: str, rule: Rule, expected: set[tuple[str, str]]) -> None:
        """What can be expected to happen to a rule is a series before it happens, so that rate() sees it; and nothing
        else is.
        """
        registry = CollectorRegistry()
        Metrics(registry, Policy((rule,), store=store))
        found = {
            (sample.labels["outcome"], sample.labels["source"]): sample.value
            for metric in registry.collect()
            for sample in metric.samples
            if sample.name == "ratelimiter_rule_requests_total"
        }

        assert dict.fromkeys(expected, 0.0) == found

    def test_what_is_required_is_told_before_it_lacks(self) -> None:
        """Each reason that a policy can refuse for is a series for each way to decide, and no other reason is."""
        required = (Requirement(header="X-Tenant-ID"), Requirement(match=Match(path="/admin"), org=True))
        rules = (per_minute(name="a", on_store_error=OnStoreError.ALLOW), per_minute(name="b"))
        registry = CollectorRegistry()
        Metrics(registry, Policy(rules, store="redis://h", requirements=required))
        found = {
            (sample.labels["outcome"], sample.labels["source"])
            for metric in registry.collect()
            for sample in metric.samples
            if sample.name == "ratelimiter_requests_total" and sample.labels["outcome"] in REASONS
        }

        assert found == set(
            product((*FAULTS, "org_missing", "header_missing"), ("store", "local", "fail_open", "none"))
        )

    def test_plans_show_their_limits_and_windows(self) -> None:
        """Of each plan by itself, as they may differ in both; a plan without a limit has an infinite one, and those of
        the policy before are gone.
        """
        plans = (("basic", Quota(60, 60_000)), ("professional", Quota(1000, 3_600_000)), ("enterprise", None))
        observed = Observed(per_minute(60))
        observed.metrics.loaded(Policy((per_minute(60, plans=plans),), plan=PlanChoice("basic")))

        def shown() -> list[tuple[float | None, float | None]]:
            names = ("rule_plan_limit", "rule_plan_window_seconds")
            return [
                (observed.value(names[0], rule="rule", plan=plan), observed.value(names[1], rule="rule", plan=plan))
                for plan, _ in plans
            ]

        assert [(60, 60), (1000, 3600), (inf, 0)] == shown()
        observed.metrics.loaded(Policy((per_minute(60),)))
        assert [(None, None)] * 3 == shown()

    def test_rules_make_as_many_series_as_is_said(self) -> None:
        """The reference says how many a policy begins with, and each further rule."""
        counts = [
            len(samples(Metrics(CollectorRegistry(), Policy(rules, store="redis://h")).exposition()[0]))
            for rules in [tuple(per_minute(60, name=f"r{n}") for n in range(number)) for number in (0, 2, 3)]
        ]
        said = re.search(r"begins with (\d+), and each rule\s+adds up to (\d+)", PAGE.read_text())

        assert said is not None
        assert [counts[0], counts[2] - counts[1]] == [*map(int, said.groups())]

    def test_no_more_series_than_is_said(self) -> None:
        """Whatever can happen, the number of series stays below what the reference says of a policy."""
        said = re.search(r"add\s+(\d+)\s+at\s+most\s+and\s+(\d+)\s+for\s+each\s+rule", PAGE.read_text())
        assert said is not None
        rules = (per_minute(1000, name="a"), per_minute(1000, name="b"))
        registry = CollectorRegistry()
        metrics = Metrics(registry, Policy(rules, store="redis://h"))
        before = len(samples(metrics.exposition()[0]))
        room, none = (tuple(Outcome(rule, 500, 9, wait_ms) for rule in rules) for wait_ms in (0, 9))
        half = (room[0], none[1]), (none[0], room[1])
        refusing = list(product((OVER_LIMIT, CREDIT_EXHAUSTED, SUSPENDED), (none, *half)))
        admitting = [(reason, room) for reason in (WITHIN_LIMIT, *REASONS)]
        happens: dict[str, list[tuple[str, tuple[Outcome, ...]]]] = {
            STORE: [*refusing, *admitting, *((reason, ()) for reason in REASONS)],
            REMEMBERED: [*refusing, *admitting[1:]],
            LOCAL: [*refusing, *admitting],
            FAIL_OPEN: [*admitting, (SUSPENDED, ())],
            FAIL_CLOSED: [(STORE_ERROR, ())],
        }
        for source, reasons in happens.items():
            for reason, outcomes in reasons:
                shown = (
                    tuple(each._replace(rule=replace(each.rule, mode=Mode.SHADOW)) for each in outcomes)
                    if reason == SUSPENDED
                    else outcomes
                )
                metrics.decided(Decision(False, reason, 0, shown, None, source), hits_of(*rules), 0.001)
        added = len(samples(metrics.exposition()[0])) - before

        assert added <= int(said[1]) + 2 * int(said[2])

    async def test_reloads_are_counted_by_result(self, clock: FakeClock) -> None:
        """A failed reload counts and stays visible until the file is good again."""
        observed = Observed(per_minute(), clock=clock)
        states = []
        for result in ("loaded", "failed", "unchanged"):
            observed.metrics.reloaded(result)
            states.append(observed.value("policy_last_reload_successful"))
        observed.metrics.checked()

        assert [1, 0, 1] == states
        assert {1} == {observed.value("policy_reloads_total", result=result) for result in RESULTS}
        assert clock() / 1000 == observed.value("policy_checked_timestamp_seconds")


class TestExposition:
    def test_metrics_listen_to_everything(self) -> None:
        """One object is the observer of decisions, of the store and of the policy."""
        overridden = {name for name in vars(Observer) if not name.startswith("_")} & set(vars(Metrics))

        assert {"loaded", "overridden", "checked", "reloaded"} <= overridden
        assert isinstance(Metrics(CollectorRegistry()), Observer)

    @pytest.mark.parametrize(
        ("accept", "content_type"),
        [
            ("", "text/plain; version=0.0.4"),
            ("application/openmetrics-text;version=1.0.0", "application/openmetrics-text; version=1.0.0"),
        ],
    )
    async def test_format_is_what_the_scraper_asks_for(self, accept: str, content_type: str) -> None:
        """Old and new scrapers each get a format that they name, and never a `_created` series."""
        observed = Observed(per_minute())
        await observed.ask()
        body, told = observed.metrics.exposition(accept)

        assert told.startswith(content_type)
        assert b"ratelimiter_requests_total" in body
        assert b"_created" not in body

    async def test_two_in_one_registry_are_refused(self) -> None:
        """The client library says so rather than counting twice."""
        registry = CollectorRegistry()
        Metrics(registry)

        with pytest.raises(ValueError, match="Duplicated"):
            Metrics(registry)

    async def test_process_metrics_can_be_had(self) -> None:
        """A registry of our own comes with what a process costs."""
        body, _ = Metrics(process_registry()).exposition()

        assert b"process_cpu_seconds_total" in body
        assert b"ratelimiter_requests_total" in body

    async def test_promtool_finds_nothing_to_say(self) -> None:
        """Names, units, types and help follow the conventions of Prometheus."""
        assert shutil.which("promtool"), "promtool is missing: apt-get install prometheus"
        observed = Observed(per_minute(), per_minute(name="other"))
        await observed.ask(3)
        checked = subprocess.run(  # noqa: ASYNC221 - nothing else runs here
            ["promtool", "check", "metrics"],  # noqa: S607 - wherever it is installed
            input=observed.metrics.exposition()[0],
            capture_output=True,
            check=False,
        )

        assert (0, b"", b"") == (checked.returncode, checked.stdout, checked.stderr)

    def test_documented_table_is_the_exposition(self) -> None:
        """The reference names every metric, its type and its labels; and no other."""
        assert exposed(Metrics(CollectorRegistry())) == documented("(?!proxy_|service_)")

    def test_documented_words_are_the_words_of_labels(self) -> None:
        """Each value that a label can have is in the reference."""
        section = PAGE.read_text()

        for word in (*OUTCOMES, *RULE_OUTCOMES, *SOURCES, *KINDS, *RESULTS):
            assert f"`{word}`" in section, word


WORKER = """
import asyncio, sys
from prometheus_client import CollectorRegistry
from ratelimiter.core.policy import Policy
from ratelimiter.engine.limiter import Limiter
from ratelimiter.metrics.limiter_metrics import Metrics
from ratelimiter.stores.memory import MemoryStore
from tests.requesting import per_minute, request

async def main(times, then):
    metrics = Metrics(CollectorRegistry())
    limiter = Limiter(Policy((per_minute(3),)), MemoryStore(), observer=metrics)
    for _ in range(times):
        await limiter.judge(request())
    if then == "wait":  # as a worker that goes on: within a second what it noted is there for the others
        await asyncio.sleep(1.5)
        metrics.reloaded("failed")
        print("ready", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    elif then == "scrape":
        sys.stdout.write(metrics.exposition()[0].decode())

asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
"""


class TestSeveralProcesses:
    @pytest.fixture
    def environ(self, tmp_path: Path) -> dict[str, str]:
        return os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}

    def worker(self, environ: dict[str, str], *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", WORKER, *words]
        return subprocess.Popen(command, env=environ, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def test_any_worker_answers_for_all(self, environ: dict[str, str]) -> None:
        """One scrape of one worker has the sums of those that run, of those that have ended, and its own."""
        ended, running = self.worker(environ, "10", "end"), self.worker(environ, "20", "wait")
        ended.communicate(timeout=30)
        assert running.stdout is not None
        running.stdout.readline()
        body, _ = self.worker(environ, "5", "scrape").communicate(timeout=30)
        running.communicate("", timeout=30)
        seen = samples(body.encode())

        def requests(outcome: str) -> float:
            return seen[f"ratelimiter_requests_total{[('outcome', outcome), ('source', 'store')]}"]

        assert (0, 0) == (ended.returncode, running.returncode)
        assert (3 * 3, 7 + 17 + 2) == (requests("admitted"), requests("refused"))
        assert 0 == seen["ratelimiter_policy_last_reload_successful[]"]  # one of those that live keeps its old policy
        assert 35 == seen[f"ratelimiter_decision_seconds_count{[('source', 'store')]}"]
        assert 3 == seen[f"ratelimiter_rule_limit{[('rule', 'rule')]}"]
        assert 1 == seen[f"ratelimiter_policy_info{[('hash', fingerprint(Policy((per_minute(3),))))]}"]
        assert Quota(3, 60_000).window_ms / 1000 == seen[f"ratelimiter_rule_window_seconds{[('rule', 'rule')]}"]
