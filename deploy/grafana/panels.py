"""The panels of the dashboard, row by row: what each asks Prometheus, and what to make of the answer.

Data and a few helpers that write queries, so that another tool can draw them without Grafana.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

# Kinds of panels.
LINES, STACKED, BARS = "lines", "stacked", "bars"
NUMBER, HEATMAP, LENGTHS, TABLE = "number", "heatmap", "lengths", "table"

# What a query is about: everything that the variables at the top of the dashboard let through.
SHOWN = 'job=~"$job", instance=~"$instance"'
OF_RULES = f'{SHOWN}, rule=~"$rule"'

# Outcomes and sources of requests, as conditions.
ADMITTED = 'outcome="admitted"'
REFUSED = 'outcome="refused"'
REFUSING = 'outcome=~"refused|shadow_refused"'
PASSED_ON = 'outcome=~"admitted|shadow_refused|unmatched"'
NOT_PASSED_ON = PASSED_ON.replace("=~", "!~")
LACKING = (
    'outcome=~"credentials_missing|token_expired|token_invalid|api_key_invalid|identity_unavailable|credential_kind'
    '|org_missing|email_unverified|insufficient_scope|header_missing"'
)
NOT_LACKING = LACKING.replace("=~", "!~")
IN_AND_OUT = 'kind=~"input|output"'
BY_STORE = 'source="store"'
BY_ANYBODY = 'source!="none"'
WITHOUT_STORE = 'source=~"local|fail_open|fail_closed"'


class Query(NamedTuple):
    """One line of a panel, or one for each value of a label."""

    expr: str
    legend: str = ""  # with {{label}}; of a table, the name of the column


class View(NamedTuple):
    """One panel."""

    id: int  # tens by row; given once and never to another panel, since links hold it
    title: str
    about: str  # what it shows and what to make of it
    unit: str
    queries: tuple[Query, ...]
    kind: str = LINES
    width: int = 8  # of 24
    thresholds: tuple[float, ...] = ()  # a number turns yellow at the first, red at the second

    @property
    def instant(self) -> bool:
        """Whether it shows one moment, not a course of time."""
        return self.kind in (LENGTHS, TABLE) or any("$__range" in query.expr for query in self.queries)


def _rate(metric: str, more: str = "", *, shown: str = SHOWN) -> str:
    """Events per second."""
    return f"rate(ratelimiter_{metric}{{{_and(shown, more)}}}[$__rate_interval])"


def _increase(metric: str, more: str = "", *, shown: str = SHOWN, over: str = "$__range") -> str:
    """Events in that time, in place of a rate where a single one counts."""
    return f"increase(ratelimiter_{metric}{{{_and(shown, more)}}}[{over}])"


def _gauge(metric: str, more: str = "", *, shown: str = SHOWN) -> str:
    return f"ratelimiter_{metric}{{{_and(shown, more)}}}"


def _became(outcome: str) -> str:
    return f'outcome="{outcome}"'


def _and(*conditions: str) -> str:
    return ", ".join(condition for condition in conditions if condition)


def _share(part: str, whole: str, by: str = "") -> str:
    grouping = f" by ({by})" if by else ""
    return f"sum{grouping} ({part}) / sum{grouping} ({whole})"


def _quantile(of: float, histogram: str, by: str = "") -> str:
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({of}, sum by ({labels}) ({_rate(histogram + '_bucket')}))"


def _quantiles(histogram: str) -> tuple[Query, ...]:
    return tuple(Query(_quantile(of, histogram), f"p{of * 100:g}") for of in (0.5, 0.9, 0.99))


ADMISSIONS = _rate("rule_requests_total", ADMITTED, shown=OF_RULES)
NEAR_LIMIT = _rate("rule_near_limit_total", shown=OF_RULES)
# Units per second that a principal may have. Credits and slots have no window, a plan may have no limit.
PER_SECOND = f"{_gauge('rule_limit', shown=OF_RULES)} / ({_gauge('rule_window_seconds', shown=OF_RULES)} > 0)"
PER_SECOND_ON_PLANS = (
    f"({_gauge('rule_plan_limit', shown=OF_RULES)} < +Inf) / ({_gauge('rule_plan_window_seconds', shown=OF_RULES)} > 0)"
)
UNREADABLE = _rate("token_answers_unreadable_total", shown=OF_RULES)
ORDERS = _gauge("orders")
SWITCH = _gauge("orders", 'kind="shadow"')

ROWS: tuple[tuple[int, str, tuple[View, ...]], ...] = (
    (
        1,
        "Overview",
        (
            View(
                10,
                "Requests",
                "Requests judged per second, whatever came of them.",
                "reqps",
                (Query(f"sum({_rate('requests_total')})"),),
                NUMBER,
                6,
            ),
            View(
                11,
                "Refused",
                "Share of all requests that was refused because a limit was used up. What is normal is yours to know: "
                "a jump is what counts.",
                "percentunit",
                (Query(_share(_rate("requests_total", REFUSED), _rate("requests_total"))),),
                NUMBER,
                6,
            ),
            View(
                12,
                "Decided without the store",
                "Share of the decisions that were made while the store was out. Above zero, limits are not shared "
                "between processes; see the row Degraded.",
                "percentunit",
                (
                    Query(
                        _share(
                            _rate("requests_total", WITHOUT_STORE),
                            _rate("requests_total", BY_ANYBODY),
                        )
                    ),
                ),
                NUMBER,
                6,
                (0.001, 0.01),
            ),
            View(
                13,
                "Instances",
                "Instances that answered their last scrape. Fewer than you run: look at the missing one first.",
                "short",
                (Query(f"count({_gauge('policy_loaded_timestamp_seconds')})"),),
                NUMBER,
                6,
            ),
            View(
                14,
                "Requests by outcome",
                "Every request is in one of these: admitted, refused (429), credit_exhausted (402), shadow_refused "
                "(admitted, but a rule in shadow would have refused it), blocked (by an operator), unmatched (no rule "
                "is about it), malformed (400), store_error (503), lacking (what require asks for).",
                "reqps",
                (
                    Query(f"sum by (outcome) ({_rate('requests_total', NOT_LACKING)})", "{{outcome}}"),
                    Query(f"sum({_rate('requests_total', LACKING)})", "lacking"),
                ),
                STACKED,
                12,
            ),
            View(
                15,
                "Refusals by rule",
                "Refusals by rule. A rule in shadow has shadow_refused here and refuses no request: what it shows "
                "is what enforcing it would do.",
                "reqps",
                (
                    Query(
                        f"sum by (rule, outcome) ({_rate('rule_requests_total', REFUSING, shown=OF_RULES)}) > 0",
                        "{{rule}} {{outcome}}",
                    ),
                ),
                LINES,
                12,
            ),
            View(
                16,
                "Admitted, and the limit of one principal",
                "Requests per second that a rule admits to all callers together, and dashed what it admits to one "
                "principal, on each plan if it has plans. A rule over everyone never stays above its dashed line.",
                "reqps",
                (
                    Query(
                        f"sum by (rule) ({ADMISSIONS})",
                        "{{rule}}",
                    ),
                    Query(
                        f"max by (rule) ({PER_SECOND}) unless max by (rule) ({PER_SECOND_ON_PLANS})",
                        "{{rule}} limit",
                    ),
                    Query(f"max by (rule, plan) ({PER_SECOND_ON_PLANS})", "{{rule}} {{plan}} limit"),
                ),
                LINES,
                24,
            ),
            View(
                17,
                "Limits used up",
                "Admitted requests as a number of whole limits: 3 is as much as three principals may have who use "
                "all that they may, of a rule with plans on the default one. Says what lowering a limit could save.",
                "short",
                (
                    Query(
                        f"sum by (rule) ({ADMISSIONS}) / max by (rule) ({PER_SECOND})",
                        "{{rule}}",
                    ),
                ),
                LINES,
                12,
            ),
            View(
                18,
                "Near the limit",
                "Share of the admissions that brought their principal to warn_at (80 % of the limit) or above: "
                "who is here today is refused tomorrow. Rises before refusals do.",
                "percentunit",
                (
                    Query(
                        # Where a source of decisions is new, rate() does not see its first ones, and the share is too
                        # large for a moment.
                        f"clamp_max({_share(NEAR_LIMIT, ADMISSIONS, 'rule')}, 1)",
                        "{{rule}}",
                    ),
                ),
                LINES,
                12,
            ),
        ),
    ),
    (
        9,
        "Refusals and orders",
        (
            View(
                90,
                "Kill switch",
                "Instances on which an operator has put all rules into shadow, so that no request is refused there. "
                "Zero but for an emergency; `ratelimiter shadow off` ends it.",
                "short",
                (Query(f"sum({SWITCH})"),),
                NUMBER,
                8,
                (1, 1),
            ),
            View(
                91,
                "Orders in force",
                "Of operators at run time: principals that are blocked, overrides of limits and plans, and 1 while the "
                "kill switch is on. `ratelimiter override list` says which, `ratelimiter audit` whose.",
                "short",
                (Query(f"max by (kind) ({ORDERS})", "{{kind}}"),),
            ),
            View(
                92,
                "Orders that some do not obey",
                "By how many orders the instances of one job differ, of the job where it is most. Up for a second "
                "or so after each order; what stays is an instance that cannot read them.",
                "short",
                (
                    Query(
                        f"max by (kind) (max by (job, kind) ({ORDERS}) - min by (job, kind) ({ORDERS}))",
                        "{{kind}}",
                    ),
                ),
            ),
            View(
                93,
                "Refusals by reason",
                "Requests that were not passed on, by why: refused (a limit is used up), credit_exhausted, blocked, "
                "malformed, store_error, or what they lacked.",
                "reqps",
                (Query(f"sum by (outcome) ({_rate('requests_total', NOT_PASSED_ON)}) > 0", "{{outcome}}"),),
                STACKED,
                12,
            ),
            View(
                94,
                "Credentials and requirements",
                "Requests within their limits that lacked what require asks for, by what it was. "
                "identity_unavailable is the 503 of callers who may be in the right.",
                "reqps",
                (Query(f"sum by (outcome) ({_rate('requests_total', LACKING)}) > 0", "{{outcome}}"),),
                STACKED,
                12,
            ),
            View(
                95,
                "Refusals that were not enforced",
                "Share of the requests passed on that were only because a rule is in shadow, by its mode or by the "
                "kill switch: what would be refused at once if it were enforced.",
                "percentunit",
                (
                    Query(
                        _share(
                            _rate("requests_total", _became("shadow_refused")),
                            _rate("requests_total", PASSED_ON),
                            "job",
                        ),
                        "{{job}}",
                    ),
                ),
                LINES,
                24,
            ),
        ),
    ),
    (
        2,
        "Latency",
        (
            View(
                20,
                "Time to decide",
                "From a request to its verdict, the wait for the store included: what the limiter adds to each "
                "request.",
                "s",
                _quantiles("decision_seconds"),
            ),
            View(
                21,
                "Time to decide, by source",
                "The 99th percentile by who decided. remembered and local need no store and stay below a "
                "millisecond; fail_open and fail_closed reach decision_timeout when the store hangs.",
                "s",
                (Query(_quantile(0.99, "decision_seconds", "source"), "{{source}}"),),
            ),
            View(
                22,
                "Round trip to the store",
                "From the departure of a script call to its answer. Near the time to decide when the store is "
                "what takes long; far below it when requests wait for their turn.",
                "s",
                _quantiles("store_call_seconds"),
            ),
            View(
                23,
                "How long decisions take",
                "Decisions by duration, each column a moment. Two bands are two ways: with a round trip and without.",
                "s",
                (Query(f"sum by (le) ({_increase('decision_seconds_bucket', over='$__rate_interval')})", "{{le}}"),),
                HEATMAP,
                24,
            ),
        ),
    ),
    (
        3,
        "Store health",
        (
            View(
                30,
                "Decisions by source",
                "Who decided: the store; remembered, a refusal less than a second old that needs no store; local, "
                "fail_open, fail_closed while the store is out; none where nothing was charged.",
                "reqps",
                (Query(f"sum by (source) ({_rate('requests_total')})", "{{source}}"),),
                STACKED,
            ),
            View(
                31,
                "Store errors",
                "Requests and settlements that the store failed to answer, by kind. While the store is not asked there "
                "are none, so silence here is no proof of health.",
                "reqps",
                (Query(f"sum by (kind) ({_rate('store_errors_total')}) > 0", "{{kind}}"),),
            ),
            View(
                32,
                "Round trips",
                "Calls to the store per second. Fewer than the requests it decides, because requests that wait at "
                "the same time share one.",
                "reqps",
                (Query(f"sum by (instance) ({_rate('store_call_seconds_count')})", "{{instance}}"),),
            ),
            View(
                33,
                "Requests that share a round trip",
                "Grows with load and with the store's delay; that is what keeps the limiter fast.",
                "short",
                (
                    Query(
                        f"sum({_rate('store_batch_requests_sum')}) / sum({_rate('store_batch_requests_count')})",
                        "mean",
                    ),
                    Query(_quantile(0.99, "store_batch_requests"), "p99"),
                ),
                LINES,
                12,
            ),
            View(
                34,
                "Errors of the store, share",
                "Share of the requests meant for the store that it failed to answer. Not the same as decided "
                "without the store: once it is out, it is not asked.",
                "percentunit",
                (
                    Query(
                        f"sum by (job) ({_rate('store_errors_total')}) / (sum by (job) ({_rate('store_errors_total')}) "
                        f"+ sum by (job) ({_rate('requests_total', BY_STORE)}))",
                        "{{job}}",
                    ),
                ),
                LINES,
                12,
            ),
        ),
    ),
    (
        4,
        "Degraded",
        (
            View(
                40,
                "Processes without the store",
                "Processes that do not ask the store at present, but for four probes a second. All at once: the "
                "store. One instance: its network, or its credentials.",
                "short",
                (Query(f"sum by (instance) ({_gauge('store_breaker_open')})", "{{instance}}"),),
            ),
            View(
                41,
                "Time without the store",
                "Share of the time in which the store was not asked. Of several workers behind one instance it is "
                "the sum, so two of them reach 200 %.",
                "percentunit",
                (Query(f"sum by (instance) ({_rate('degraded_seconds_total')})", "{{instance}}"),),
            ),
            View(
                42,
                "Degraded in all",
                "Seconds without the store in the time shown, of all processes together.",
                "s",
                (Query(f"sum({_increase('degraded_seconds_total')})"),),
                NUMBER,
                8,
                (1, 60),
            ),
            View(
                43,
                "Decisions without the store",
                "local: in windows of each process, so N processes admit up to N times local_share. fail_open: "
                "admitted without any limit. fail_closed: refused with 503.",
                "reqps",
                (Query(f"sum by (source) ({_rate('requests_total', WITHOUT_STORE)})", "{{source}}"),),
                STACKED,
                24,
            ),
        ),
    ),
    (
        5,
        "Sidecar",
        (
            View(
                50,
                "Responses by status",
                "Answers to clients of the sidecar, by their source: upstream, judge (the limiter) or proxy (400, "
                "502, 504 and the like). 5xx of upstream is the service's own; 5xx of proxy means that it gave no "
                "answer.",
                "reqps",
                (Query(f"sum by (status, source) ({_rate('proxy_responses_total')}) > 0", "{{status}} {{source}}"),),
                STACKED,
            ),
            View(
                51,
                "Time of the upstream",
                "From a request's leaving to the head of its answer. The service's own time: the limiter has no "
                "part in it.",
                "s",
                _quantiles("proxy_upstream_seconds"),
            ),
            View(
                52,
                "Time of the upstream, by status",
                "The 99th percentile by class of the answer: are errors quick or slow?",
                "s",
                (Query(_quantile(0.99, "proxy_upstream_seconds", "status"), "{{status}}"),),
            ),
            View(
                53,
                "Connections",
                "Client connections open. Flat at a round number is a bound that is reached.",
                "short",
                (Query(f"sum by (instance) ({_gauge('proxy_connections')})", "{{instance}}"),),
            ),
            View(
                54,
                "Connections turned away",
                "Closed at once because there were too many, of one address or in all. Zero on a good day.",
                "cps",
                (
                    Query(
                        f"sum by (instance) ({_rate('proxy_connections_turned_away_total')})",
                        "{{instance}}",
                    ),
                ),
            ),
            View(
                55,
                "Bytes",
                "Bodies only: received from clients, sent to clients.",
                "Bps",
                (
                    Query(f"sum({_rate('proxy_received_bytes_total')})", "received"),
                    Query(f"sum({_rate('proxy_sent_bytes_total')})", "sent"),
                ),
            ),
        ),
    ),
    (
        6,
        "Policy and reloads",
        (
            View(
                60,
                "Reloads",
                "Looks at a changed policy file: loaded, unchanged (it says what is in force), failed (the last good "
                "policy stays).",
                "short",
                (
                    Query(
                        f"sum by (result) ({_increase('policy_reloads_total', over='$__rate_interval')})",
                        "{{result}}",
                    ),
                ),
                BARS,
            ),
            View(
                61,
                "Last reload",
                "1 if the file is the policy in force, 0 if it was bad and the last good policy stays. The log "
                "says which line is bad.",
                "short",
                (Query(f"min by (instance) ({_gauge('policy_last_reload_successful')})", "{{instance}}"),),
                LINES,
            ),
            View(
                62,
                "Age of the policy",
                "How long the policy in force has been so. Instances that got the same change drop to zero together.",
                "s",
                (Query(f"time() - max by (instance) ({_gauge('policy_loaded_timestamp_seconds')})", "{{instance}}"),),
            ),
            View(
                63,
                "Since the file was looked at",
                "A second or two while a policy file is watched. What grows is a watcher that has stopped. "
                "Instances that watch no file are not shown.",
                "s",
                (
                    Query(
                        f"time() - max by (instance) ({_gauge('policy_checked_timestamp_seconds')} > 0)",
                        "{{instance}}",
                    ),
                ),
                LINES,
                12,
            ),
            View(
                64,
                "Policies in force",
                "Instances by the hash of their policy: one colour, and two for a moment during a rollout. Two "
                "that stay are replicas that do not agree.",
                "short",
                (Query(f"count by (hash) ({_gauge('policy_info')} == 1)", "{{hash}}"),),
                STACKED,
                12,
            ),
        ),
    ),
    (
        7,
        "Top rules",
        (
            View(
                70,
                "Most refusals",
                "The ten rules that refused most in the time shown. Who it was: `ratelimiter top`.",
                "short",
                (
                    Query(
                        f"topk(10, sum by (rule) ({_increase('rule_requests_total', REFUSED, shown=OF_RULES)}))",
                        "{{rule}}",
                    ),
                ),
                LENGTHS,
            ),
            View(
                71,
                "Most requests",
                "The ten rules that the most requests matched in the time shown.",
                "short",
                (
                    Query(
                        f"topk(10, sum by (rule) ({_increase('rule_requests_total', shown=OF_RULES)}))",
                        "{{rule}}",
                    ),
                ),
                LENGTHS,
            ),
            View(
                72,
                "Most often near the limit",
                "The ten rules with the most admissions that brought a principal to warn_at of the limit or above.",
                "short",
                (
                    Query(
                        f"topk(10, sum by (rule) ({_increase('rule_near_limit_total', shown=OF_RULES)}))",
                        "{{rule}}",
                    ),
                ),
                LENGTHS,
            ),
            View(
                73,
                "Rules",
                "Every rule: its limit and window in seconds, and what came of the requests that it matched in "
                "the time shown. spared had room when another rule refused.",
                "short",
                (
                    Query(f"max by (rule) ({_gauge('rule_limit', shown=OF_RULES)})", "limit"),
                    Query(f"max by (rule) ({_gauge('rule_window_seconds', shown=OF_RULES)})", "window"),
                    *(
                        Query(
                            f"sum by (rule) ({_increase('rule_requests_total', _became(outcome), shown=OF_RULES)})",
                            outcome,
                        )
                        for outcome in ("admitted", "refused", "shadow_refused", "spared")
                    ),
                ),
                TABLE,
                24,
            ),
        ),
    ),
    (
        8,
        "Process",
        (
            View(
                80,
                "CPU",
                "Cores that a process keeps busy. At 1 a worker is at its end: add workers. Not shown where several "
                "workers answer one scrape.",
                "short",
                (
                    Query(
                        f"sum by (instance) (rate(process_cpu_seconds_total{{{SHOWN}}}[$__rate_interval]))",
                        "{{instance}}",
                    ),
                ),
            ),
            View(
                81,
                "Memory",
                "Resident memory. Levels off: tables of principals are bounded.",
                "bytes",
                (Query(f"sum by (instance) (process_resident_memory_bytes{{{SHOWN}}})", "{{instance}}"),),
            ),
            View(
                82,
                "Open files",
                "Sockets included, so it follows the connections. What only grows is a leak.",
                "short",
                (Query(f"sum by (instance) (process_open_fds{{{SHOWN}}})", "{{instance}}"),),
            ),
        ),
    ),
    (
        100,  # ten would be the id of a panel
        "Tokens",
        (
            View(
                1000,
                "Tokens by kind",
                "Tokens per second that answers of language models used. cached and cache_creation are parts of the "
                "input, reasoning is a part of the output.",
                "short",
                (Query(f"sum by (kind) ({_rate('tokens_total', shown=OF_RULES)})", "{{kind}}"),),
            ),
            View(
                1001,
                "Tokens by model",
                "Input and output per second by model, of those that the policy lists; all others are other.",
                "short",
                (Query(f"sum by (model) ({_rate('tokens_total', IN_AND_OUT, shown=OF_RULES)})", "{{model}}"),),
                STACKED,
            ),
            View(
                1002,
                "Estimate and truth",
                "Units per second that were reserved for answers which told their usage, and what these came to. "
                "A reservation far above the truth refuses too early.",
                "short",
                (
                    Query(f"sum ({_rate('token_units_reserved_total', shown=OF_RULES)})", "reserved"),
                    Query(f"sum ({_rate('token_units_used_total', shown=OF_RULES)})", "used"),
                ),
            ),
            View(
                1003,
                "Answers without usage",
                "Answers per second whose usage could not be read, by cause. Their reservations stand, so nothing is "
                "overspent, and callers pay too much.",
                "short",
                (
                    Query(
                        f"sum by (cause) ({_rate('token_answers_unreadable_total', shown=OF_RULES)}) > 0", "{{cause}}"
                    ),
                ),
                LINES,
                12,
            ),
            View(
                1004,
                "Beyond the reservation",
                "Units per second that answers used beyond their reservations. What is spent so is missing in the next "
                "window: raise the estimate.",
                "short",
                (Query(f"sum by (rule) ({_rate('token_units_overdrawn_total', shown=OF_RULES)})", "{{rule}}"),),
                LINES,
                12,
            ),
        ),
    ),
)

# Shown across all panels while it lasts: name, colour, query.
ANNOTATIONS = (("Kill switch", "red", f"max by (job) ({SWITCH}) > 0"),)

VARIABLES = (  # name, label, query, what All stands for: empty is every value that the query finds
    # Metrics of processes are exposed by others, too, so All is not any job.
    ("job", "Job", "label_values(ratelimiter_requests_total, job)", ""),
    # Instances and rules that are gone have a past that may be looked at.
    ("instance", "Instance", 'label_values(ratelimiter_requests_total{job=~"$job"}, instance)', ".*"),
    ("rule", "Rule", 'label_values(ratelimiter_rule_limit{job=~"$job", instance=~"$instance"}, rule)', ".*"),
)


def views() -> Iterator[View]:
    """Every panel, from top to bottom."""
    for _, _, row in ROWS:
        yield from row
