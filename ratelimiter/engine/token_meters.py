"""Token rules at work: the reservation of a request before the call, and its due units from the answer.

All rules of one request that use the same preset share one reader, so an answer is read once however many limits apply.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ratelimiter.core.rule import RESPONSE_JSON, Hit
from ratelimiter.core.weights import PLAIN, Weights
from ratelimiter.tokens import presets
from ratelimiter.tokens.estimate import Estimator, reserved_units
from ratelimiter.tokens.figures import Cause
from ratelimiter.tokens.preset import Form, Mark, Member, Preset
from ratelimiter.tokens.request_reader import RequestReader, Wanted
from ratelimiter.tokens.usage_reader import UsageReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from ratelimiter.core.policy import Policy
    from ratelimiter.core.request import Request
    from ratelimiter.core.rule import Rule
    from ratelimiter.core.token_terms import TokenTerms
    from ratelimiter.core.usage import Usage

    Header = tuple[bytes, bytes]
    BodyObserver = Callable[[bytes], None]

OTHER_MODELS = "other"  # the name that metrics show for a model outside of the policy's list
UNKNOWN_BYTES = 1_048_576  # of a body whose length is not told and that is longer than what was read of it
MAY_HAVE_RUN = frozenset({408, 499, 504})  # errors after which the provider may have charged all the same


class TokenMeter:
    """One rule that counts tokens, or another figure of the answer.

    Args:
        rule: it.
        before: the meter of the same rule under the policy before, which keeps what it learnt; None for none.

    Attributes:
        name: of the rule.
        preset: where figures stand in answers.
        terms: of the rule; None if the answer says the cost itself.

    Raises:
        ConfigError: the preset cannot be used.
    """

    __slots__ = ("_estimator", "_models", "_reader", "name", "preset", "terms")

    def __init__(self, rule: Rule, before: TokenMeter | None = None) -> None:
        self.name = rule.name
        self.terms = terms = rule.tokens
        self._models = _Names(_models(terms))
        if terms is None:
            self.preset = _preset_of_member(rule.cost_from.name if rule.cost_from is not None else "")
            self._reader = None
            self._estimator = None
            return
        self.preset = presets.load(terms.preset)
        self._reader = RequestReader(self.preset)
        same = before is not None and before.terms is not None and before.terms.estimate == terms.estimate
        self._estimator = before._estimator if same and before is not None else Estimator(terms.estimate)

    def reserve(self, hit: Hit, request: RequestView) -> Reservation | None:
        """Return what a request reserves of *hit*; None if it uses no tokens."""
        terms, reader, estimator = self.terms, self._reader, self._estimator
        if terms is None or reader is None or estimator is None:
            return Reservation(self, hit.cost, Wanted(None, None), 0, PLAIN)
        if reader.free(request.method, request.path):
            return None
        wanted = reader.read(request.path, request.body)
        weights = terms.weights_of(wanted.model)
        estimate = estimator.estimate(wanted, request.size)
        units = reserved_units(estimate, weights, hit.rule.quotas[0].limit, strict=terms.estimate.strict)
        return Reservation(self, units, wanted, request.size, weights)

    def learn(self, reservation: Reservation, usage: Usage) -> None:
        """Let later estimates learn from the answer to a request."""
        if self._estimator is not None:
            self._estimator.observe(reservation.wanted, reservation.size, usage.input)

    def label(self, model: str | None) -> str:
        """Return the name of *model* in metrics."""
        return self._models.name_of(model)


class Reservation(NamedTuple):
    """The units that one rule has reserved for a request, and what they come from."""

    meter: TokenMeter
    units: int
    wanted: Wanted
    size: int  # bytes of the request's body
    weights: Weights

    def due(self, usage: Usage) -> int:
        """Return the units that *usage* costs."""
        return self.weights.units(usage)


class RequestView(NamedTuple):
    """The parts of a request that an estimate looks at."""

    method: str
    path: str
    body: bytes | None  # or its beginning
    size: int  # bytes of the whole body


class TokenMeters:
    """The meters of one policy.

    Args:
        policy: it.
        before: the meters of the policy before.

    Raises:
        ConfigError: a preset cannot be used.
    """

    def __init__(self, policy: Policy, before: TokenMeters | None = None) -> None:
        known: Mapping[str, TokenMeter] = {} if before is None else before._meters  # of the same class
        self._meters: dict[str, TokenMeter] = {
            rule.name: TokenMeter(rule, known.get(rule.name)) for rule in policy.rules if rule.metered
        }
        self._bytes_max = policy.json_bytes_max

    def __bool__(self) -> bool:
        """Return True if any rule is metered."""
        return bool(self._meters)

    def reserve(self, hits: Sequence[Hit], request: Request) -> tuple[Sequence[Hit], MeteredRequest | None]:
        """Return *hits* with what *request* reserves of them, and the request to be settled by its answer."""
        if not any(hit.rule.metered for hit in hits):
            return hits, None
        view = self._view(request)
        reservations: dict[str, Reservation | None] = {}
        charged: list[Hit] = []
        for hit in hits:
            meter = self._meters.get(hit.rule.name) if hit.rule.metered else None
            if meter is None:
                charged.append(hit)
                continue
            if meter.name not in reservations:
                reservations[meter.name] = meter.reserve(hit, view)
            reservation = reservations[meter.name]
            charged.append(hit._replace(cost=0 if reservation is None else reservation.units))
        return charged, MeteredRequest({name: each for name, each in reservations.items() if each is not None})

    def reservation(self, rule: Rule, request: Request) -> Reservation | None:
        """Return what *request* reserves by *rule*, which is metered, before anything was learnt; None if nothing."""
        return self._meters[rule.name].reserve(Hit(b"", rule.quota, rule.cost, rule), self._view(request))

    def _view(self, request: Request) -> RequestView:
        body = request.body
        told = [value for name, value in request.headers if name.lower() == b"content-length"]
        if told and told[0].isdigit():
            size = int(told[0][:20])
        else:
            size = len(body or b"") if body is None or len(body) <= self._bytes_max else UNKNOWN_BYTES
        encoded = any(name.lower() == b"content-encoding" for name, _ in request.headers)
        path = request.target.split(b"?", 1)[0].decode("latin-1")
        return RequestView(request.method, path, None if encoded else body, size)


class MeteredRequest:
    """One admitted request of token rules, from its reservations to the end of its answer.

    Args:
        reservations: by the name of the rule.

    Attributes:
        reservations: the same.
        drains: the answer is read to its end though the client has left.
    """

    __slots__ = ("_found", "_readers", "_status", "drains", "reservations")

    def __init__(self, reservations: Mapping[str, Reservation]) -> None:
        self.reservations = reservations
        self.drains = any(
            each.meter.terms is not None and each.meter.terms.on_disconnect == "drain" for each in reservations.values()
        )
        self._status = 0
        self._readers: dict[str, UsageReader] = {}
        self._found: dict[str, Usage | Cause] = {}

    def begin(self, status: int, headers: Sequence[Header]) -> BodyObserver:
        """Begin the answer, and return what is to see its body."""
        self._status = status
        presets_used = {each.meter.preset.name: each.meter.preset for each in self.reservations.values()}
        self._readers = {name: UsageReader(preset, headers) for name, preset in presets_used.items()}
        feeds = [reader.feed for reader in self._readers.values()]
        return feeds[0] if len(feeds) == 1 else _to_all(feeds)

    def end(self, *, complete: bool, disconnected: bool) -> None:
        """End the answer."""
        self._found = {
            name: reader.end(clean=complete, disconnected=disconnected) for name, reader in self._readers.items()
        }

    def found(self, name: str) -> Usage | Cause:
        """Return what the rule *name* has read out of the answer, or why it has read nothing."""
        return self._found.get(self.reservations[name].meter.preset.name, Cause.DISCONNECTED)

    @property
    def uncharged(self) -> bool:
        """True if the answer is an error before which no tokens were used."""
        return self._status >= 400 and self._status not in MAY_HAVE_RUN


def _to_all(feeds: Iterable[BodyObserver]) -> BodyObserver:
    def feed(data: bytes) -> None:
        for each in feeds:
            each(data)

    return feed


def _preset_of_member(path: str) -> Preset:
    """Return a preset whose only figure is the member at *path*."""
    member = Member(tuple(path.split(".")))
    form = Form(((),), {"input": (member,), "output": (), "cached": (), "cache_creation": (), "reasoning": ()})
    return Preset(name=f"{RESPONSE_JSON} {path}", about="", forms=(form,), ends=(Mark(text="[DONE]"),))


class _Names:
    """The closed list of models that metrics show. A name that ends in `*` stands for all that begin so."""

    __slots__ = ("_beginnings", "_exact")

    def __init__(self, names: Iterable[str]) -> None:
        names = list(names)
        self._exact = frozenset(name for name in names if not name.endswith("*"))
        self._beginnings = sorted((name for name in names if name.endswith("*")), key=len, reverse=True)

    def name_of(self, model: str | None) -> str:
        if model is None:
            return OTHER_MODELS
        if model in self._exact:
            return model
        return next((name for name in self._beginnings if model.startswith(name[:-1])), OTHER_MODELS)


def _models(terms: TokenTerms | None) -> Iterable[str]:
    if terms is None:
        return ()
    return terms.models or (() if terms.prices is None else [model for model, _ in terms.prices.models])
