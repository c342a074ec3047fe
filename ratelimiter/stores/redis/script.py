"""The charge script as values: requests become its arguments, its reply becomes receipts. Sends nothing."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import TYPE_CHECKING, Any, TypeAlias

from ratelimiter.clock import unix_ms
from ratelimiter.core.algorithms.calendar import around
from ratelimiter.core.quota import AnyQuota, Balance, Bucket, Period, Quota, Slots
from ratelimiter.core.receipt import STORE, Receipt, Tally, new
from ratelimiter.core.settlement import Settlement
from ratelimiter.errors import Kind, StoreFault

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ratelimiter.core.rule import Hit

# The parts of the script, in order. Those of MIXED are the body of one function, which runs only in a batch that meets
# another kind than windows: creating a function costs Redis 0.1 us, so most batches must create few.
HOT = ("batch", "window")
MIXED = ("kinds", "window_kind", "bucket", "account", "mixed")
PROGRAM = "charge"


def joined() -> bytes:
    """Return the text of the charge script."""
    folder = files("ratelimiter.stores.redis").joinpath("lua")
    texts = {name: folder.joinpath(f"{name}.lua").read_text(encoding="utf-8") for name in (*HOT, *MIXED, PROGRAM)}
    hot, mixed = ("\n".join(texts[name] for name in names) for names in (HOT, MIXED))
    return f"{hot}\nlocal function mixed(reply)\n{mixed}end\n\n{texts[PROGRAM]}".encode()


TEXT = joined()
SHA = hashlib.sha1(TEXT, usedforsecurity=False).hexdigest().encode()  # what EVALSHA calls it by

REQUESTS_MAX = 255  # of one batch: each may have a form of its own, and a form's number is one byte

FOREIGN = -1  # the script's verdict on a request with a key that holds a foreign value


class Settling(tuple[Settlement, ...]):
    """A request of its own: settlements, each for itself, in the place of hits."""

    __slots__ = ()


Requests: TypeAlias = "Sequence[Sequence[Hit] | Settling]"

_KINDS = {
    kind: number for number, kind in enumerate((Quota.kind, Bucket.kind, Period.kind, Slots.kind, Balance.kind), 1)
}


def arguments(requests: Requests, nonce: bytes, now_ms: int | None = None) -> tuple[list[bytes], list[bytes]]:
    """Return the KEYS and the ARGV of one call; lua/batch.lua says what they mean.

    Args:
        requests: at most `REQUESTS_MAX`, each with at least one hit and no key twice.
        nonce: what the reply must begin with.
        now_ms: Unix time; the server's own when None. The periods that it chooses among are those around ours then.
    """
    keys: list[bytes] = []
    numbers: dict[object, int] = {}  # of the forms
    forms: list[bytes] = []
    spelled = bytearray()
    hits: Any
    for hits in requests:
        # Quotas and rules outlive this call, so that their identity will do: their hashes cost more than all the rest.
        form: object
        if hits.__class__ is Settling:
            keys += [settlement.key for settlement in hits]
            form = id(hits)
        elif len(hits) == 1:
            key, quota, cost, rule, lease = hits[0]
            keys.append(key)
            form = (id(quota), cost, rule.shadow, lease)
        else:
            keys += [hit.key for hit in hits]
            form = tuple([(id(hit.quota), hit.cost, id(hit.rule) if hit.rule.shadow else 0, hit.lease) for hit in hits])
        number = numbers.get(form)
        if number is None:
            forms.append(_form(hits, now_ms))
            number = numbers[form] = len(forms)
        spelled.append(number)
    return keys, [nonce, b"" if now_ms is None else b"%d" % now_ms, bytes(spelled), *forms]


def _form(hits: Sequence[Any], now_ms: int | None) -> bytes:
    if hits.__class__ is Settling:
        return b"s" + b" ".join([_settlement(settlement, now_ms) for settlement in hits])
    shadows = {name: number for number, name in enumerate(dict.fromkeys(h.rule.name for h in hits if h.rule.shadow), 1)}
    if all(hit.quota.kind == Quota.kind for hit in hits):
        return b" ".join(
            [
                b"%d %d %d %d %d"
                % (quota.limit, quota.window_ms, quota.resolution_ms, cost, shadows[rule.name] if rule.shadow else 0)
                for _, quota, cost, rule, _ in hits
            ]
        )
    return b"m" + b" ".join(
        [
            b"%d %d %d %d %d 0 %b"
            % (
                _KINDS[quota.kind],
                quota.limit,
                cost,
                shadows[rule.name] if rule.shadow else 0,
                lease,
                _terms(quota, now_ms),
            )
            for _, quota, cost, rule, lease in hits
        ]
    )


def _settlement(settlement: Settlement, now_ms: int | None) -> bytes:
    _, quota, charged, due, _, lease, charged_at_ms = settlement
    numbers = (_KINDS[quota.kind], quota.limit, charged, due, lease, charged_at_ms, _terms(quota, now_ms))
    return b"%d %d %d %d %d %d %b" % numbers


def _terms(quota: AnyQuota, now_ms: int | None) -> bytes:
    """Return the numbers that only quotas of this kind have."""
    match quota:
        case Quota():
            return b"%d %d" % (quota.window_ms, quota.resolution_ms)
        case Bucket():
            return b"%d %d %d" % (quota.weight, quota.drain, quota.debt_max)
        case Period():
            return b"%d %d %d %d %d %d" % (quota.lease_ttl_ms, *around(quota, unix_ms() if now_ms is None else now_ms))
        case _:
            return b"%d" % quota.lease_ttl_ms


def packed(keys: Sequence[bytes], argv: Sequence[bytes], *, text: bool = False) -> bytes:
    """Return one EVALSHA, or one EVAL with the script's *text*, in RESP2."""
    start = b"*%d\r\n$4\r\nEVAL\r\n%b" % (3 + len(keys) + len(argv), _BULK_TEXT)
    if not text:
        start = b"*%d\r\n$7\r\nEVALSHA\r\n%b" % (3 + len(keys) + len(argv), _BULK_SHA)
    return b"".join(
        [start, _bulk(b"%d" % len(keys)), *[b"$%d\r\n%b\r\n" % (len(word), word) for word in (*keys, *argv)]]
    )


def receipts(requests: Requests, nonce: bytes, reply: object) -> list[Receipt | StoreFault]:
    """Return the answer of the script to each of *requests*.

    Raises:
        StoreFault: this is not the answer to the call with this *nonce*.
    """
    if not isinstance(reply, list) or not reply or reply[0] != nonce:
        msg = f"asked for the reply to call {nonce!r}, got {_shortened(reply)}"
        raise StoreFault(msg, Kind.MISMATCH)
    if len(reply) != 2 + sum([1 + 3 * len(hits) for hits in requests]):
        msg = f"a reply of {len(reply)} elements does not answer {len(requests)} requests"
        raise StoreFault(msg, Kind.PROTOCOL)
    now_ms = reply[1]
    at = 2
    answers: list[Receipt | StoreFault] = []
    hits: Any
    for hits in requests:
        verdict = reply[at]
        at += 1
        if verdict == FOREIGN:
            resets = reply[at + 1 : at + 3 * len(hits) : 3]
            rules = sorted({hit.rule.name for hit, reset_ms in zip(hits, resets, strict=True) if reset_ms == FOREIGN})
            answers.append(
                StoreFault(f"a key of {', '.join(rules)} holds a value that is not ours", Kind.FOREIGN_VALUE)
            )
        elif len(hits) == 1:
            tallies: tuple[Tally, ...] = (new(Tally, reply[at : at + 3]),)
            answers.append(new(Receipt, (now_ms, verdict == 1, tallies, STORE)))
        else:
            tallies = tuple([new(Tally, reply[i : i + 3]) for i in range(at, at + 3 * len(hits), 3)])
            answers.append(new(Receipt, (now_ms, verdict == 1, tallies, STORE)))
        at += 3 * len(hits)
    return answers


def _bulk(word: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(word), word)


def _shortened(reply: object) -> str:
    text = repr(reply[:2] if isinstance(reply, list) else reply)
    return text if len(text) <= 100 else text[:100] + "..."


_BULK_SHA = _bulk(SHA)
_BULK_TEXT = _bulk(TEXT)
