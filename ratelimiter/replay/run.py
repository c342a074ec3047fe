"""A replay from logs to judges: formats found, lines read, records ordered, each judged once."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC
from functools import partial
from typing import TYPE_CHECKING

from ratelimiter.replay.format import Stamp
from ratelimiter.replay.formats import SAMPLE_LINES, format_of
from ratelimiter.replay.judge import Judge
from ratelimiter.replay.needs import judgeable
from ratelimiter.replay.ordering import REORDER_MS, Disorder, Stream, in_order, merged
from ratelimiter.replay.record import TOO_LONG, Unread
from ratelimiter.replay.sources import expanded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import tzinfo

    from ratelimiter.core.policy import Policy
    from ratelimiter.replay.format import Format
    from ratelimiter.replay.needs import Judgeable
    from ratelimiter.replay.parts import Part
    from ratelimiter.replay.record import Record
    from ratelimiter.replay.sources import Source

MINUTE_MS = 60_000
POINTS_MAX = 4096  # of the timeline; beyond it two become one
TEXT_MAX = 100  # characters of an unread line that are shown
BOUND_MS = 999  # how far a stamp of whole seconds may be off

_QUERY = re.compile(r"\?[^ \"]*")


@dataclass(slots=True)
class Unreadable:
    """The unread lines of one kind."""

    lines: int
    place: str  # of the first one: file and line
    text: str  # of the first one, without queries, which may hold credentials
    order: tuple[int, int]  # of the first one: number of the log, and of the line


@dataclass(slots=True)
class Log:
    """One log during a replay."""

    source: Source
    format: Format
    head: list[list[str] | None]
    chunks: Iterator[list[str] | None]
    lines: int = 0
    read: int = 0
    omitted: int = 0
    disorder: Disorder = field(default_factory=Disorder)


class Timeline:
    """Requests and refusals over time, in steps that widen as it grows."""

    def __init__(self) -> None:
        self.step_ms = MINUTE_MS
        self.points: dict[int, list[int]] = {}
        self.first_ms = self.last_ms = 0

    def count(self, at_ms: int, *, admitted: bool) -> None:
        """Count a request."""
        if not self.points:
            self.first_ms = at_ms
        self.last_ms = at_ms
        point = self.points.get(at_ms // self.step_ms)
        if point is None:
            if len(self.points) >= POINTS_MAX:
                self._widen()
            point = self.points.setdefault(at_ms // self.step_ms, [0, 0])
        point[0] += 1
        if not admitted:
            point[1] += 1

    def add(self, other: Timeline) -> None:
        """Add what *other* has counted."""
        if not other.points:
            return
        self.first_ms = min(self.first_ms, other.first_ms) if self.points else other.first_ms
        self.last_ms = max(self.last_ms, other.last_ms)
        while self.step_ms < other.step_ms:
            self._widen()
        while other.step_ms < self.step_ms:
            other._widen()
        for number, (requests, refused) in other.points.items():
            point = self.points.setdefault(number, [0, 0])
            point[0] += requests
            point[1] += refused
        while len(self.points) > POINTS_MAX:
            self._widen()

    def _widen(self) -> None:
        self.step_ms *= 2
        points: dict[int, list[int]] = {}
        for number, (requests, refused) in self.points.items():
            point = points.setdefault(number // 2, [0, 0])
            point[0] += requests
            point[1] += refused
        self.points = points


class Replay:
    """Logs against a policy, or two.

    Args:
        policy: judges.
        places: of the logs.
        wanted: the format; see `formats.format_of`.
        principal: field of a line that names the caller.
        against: another policy, for the same requests.
        zone: of times that do not say theirs.
        names: keep the callers' names.
        compare: other algorithms.
        reorder_ms: how far lines may be out of order.
        part: of the callers that are judged; None for all.

    Attributes:
        judge, other: of *policy*, and of *against* if there is one.
        told: the part of *policy* that is judged.
        logs: in the order in which they were named.
        unread: by kind.

    Raises:
        ConfigError: a log cannot be read, or its format is not known.
    """

    def __init__(
        self,
        policy: Policy,
        places: Sequence[str],
        *,
        wanted: str = "auto",
        principal: str = "",
        against: Policy | None = None,
        zone: tzinfo = UTC,
        names: bool = False,
        compare: Sequence[str] = (),
        reorder_ms: int = REORDER_MS,
        part: Part | None = None,
    ) -> None:
        self.logs = [_log(source, wanted, zone, principal) for source in expanded(places)]
        formats = [log.format for log in self.logs]
        self.policy = policy
        self.told: Judgeable = judgeable(policy, formats)
        self.coarse = any(form.resolution_ms > 1 for form in formats)
        # Starts that were told from the end are no whole seconds: windows may be shorter as well as longer then.
        shifted = any(form.stamp is Stamp.END and form.starts_known for form in formats)
        self.bounds_ms = ((-BOUND_MS, BOUND_MS) if shifted else (BOUND_MS,)) if self.coarse else ()
        named = any("principal" in form.tells for form in formats)
        self.judge = Judge(
            self.told.policy, named=named, names=names, bounds_ms=self.bounds_ms, compare=compare
        )  # fmt: skip
        self.against = against
        self.other_told = judgeable(against, formats) if against is not None else None
        self.other = Judge(self.other_told.policy, named=named, names=names) if self.other_told else None
        self.timeline = Timeline()
        self.unread: dict[str, Unreadable] = {}
        self.changes: Counter[tuple[bool, bool]] = Counter()  # requests by admitted by the policy, and by the other
        self._reorder_ms = reorder_ms
        self._part = part

    @property
    def size(self) -> int:
        """Bytes of all logs; 0 if one has no known size."""
        sizes = [log.source.size for log in self.logs]
        return sum(sizes) if all(sizes) else 0

    @property
    def done(self) -> int:
        """Bytes that were read."""
        return sum(log.source.done for log in self.logs)

    def run(self, progress: Callable[[Replay], None] | None = None) -> None:
        """Read and judge everything; *progress* is told now and then."""
        judge, other, count = self.judge, self.other, self.timeline.count
        for records in self._records():
            for record in records:
                admitted, caller = judge.judge(record)
                count(record[0], admitted=admitted)
                if other is not None:
                    also, _ = other.judge(record)
                    self.changes[admitted, also] += 1
                    if not also and caller is not None:
                        caller.other_refused += 1
            if progress is not None:
                progress(self)
        judge.flush()

    def _records(self) -> Iterator[list[Record]]:
        streams = [Stream(self._first_ms(log), partial(self._ordered, log)) for log in self.logs]
        return merged(streams, bound_ms=self._reorder_ms)

    def _first_ms(self, log: Log) -> int:
        read = log.format.open()
        for chunk in log.head:
            for line in chunk or ():
                try:
                    record = read(line.rstrip("\r"))
                except Unread:
                    continue
                if record is not None:
                    return record.start_ms
        return 0

    def _ordered(self, log: Log) -> Iterator[list[Record]]:
        return in_order(self._read(log), log.disorder, bound_ms=self._reorder_ms)

    def _read(self, log: Log) -> Iterator[list[Record]]:
        """Yield the records of *log* in batches, as they stand there."""
        read = log.format.open()
        head, log.head = log.head, []
        part = self._part
        # Where lines begin with the client those of other parts are not even read.
        first, later = part is not None and log.format.client_first, part is not None and not log.format.client_first
        for chunks in (head, log.chunks):
            for lines in chunks:
                if lines is None:
                    log.lines += 1
                    if part is None or part.number == 0:
                        self._note_unread(log, TOO_LONG, "", log.lines)
                    continue
                records: list[Record] = []
                for number, line in enumerate(lines, log.lines + 1):
                    if first and not part.has(line[: line.find(" ")]):  # type: ignore[union-attr]
                        continue
                    try:
                        record = read(line)
                    except Unread as fault:
                        bare = line.strip()
                        if later and not part.has(line):  # type: ignore[union-attr]
                            continue
                        if bare and not (line.endswith("\r") and self._reread(read, line, records)):
                            self._note_unread(log, fault.kind, bare, number)
                        continue
                    if record is not None:
                        if later and not part.has(record[4] or ""):  # type: ignore[union-attr]
                            continue
                        records.append(record)
                        log.omitted += record[15]
                log.lines += len(lines)
                log.read += len(records)
                yield records

    @staticmethod
    def _reread(read: Callable[[str], Record | None], line: str, records: list[Record]) -> bool:
        """Return True if *line* can be read without its carriage return."""
        try:
            record = read(line.rstrip("\r"))
        except Unread:
            return False
        if record is not None:
            records.append(record)
        return True

    def _note_unread(self, log: Log, kind: str, line: str, number: int) -> None:
        found = self.unread.get(kind)
        if found is not None:
            found.lines += 1
            return
        text = _QUERY.sub("?...", line[: 4 * TEXT_MAX])[:TEXT_MAX]
        shown = "".join(each if each.isprintable() else f"\\x{ord(each):02x}" for each in text)
        self.unread[kind] = Unreadable(1, f"{log.source.place}:{number}", shown, (self.logs.index(log), number))


def _log(source: Source, wanted: str, zone: tzinfo, principal: str) -> Log:
    """Open *source* as far as is needed to tell its format."""
    chunks = source.chunks()
    head: list[list[str] | None] = []
    for chunk in chunks:
        head.append(chunk)
        if any(chunk or ()):
            break
    sample = [line.rstrip("\r") for chunk in head for line in (chunk or ())[:SAMPLE_LINES]]
    form = format_of(wanted, sample, place=source.place, zone=zone, principal=principal)
    return Log(source, form, head, chunks)
