"""The errors of this package, as a tree.

RateLimiterError
 |- ConfigError             a policy, a dialect or an argument cannot be used; says every problem, and what would do
 |- StoreError              the store gave no answer
     |- StoreUnavailable    availability: it cannot be reached, or says that it cannot serve now
     |   |- StoreTimeout    it did not answer in time
     |- StoreOverloaded     our own overload: more is waiting than we let wait; says nothing about the store
     |- StoreFault          logic: it gave an answer that makes no sense
     |- StoreMisconfigured  configuration: it does not let us in, or not do what we must
"""

from __future__ import annotations

from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class RateLimiterError(Exception):
    """The base of every error that this package raises on purpose."""


class ConfigError(RateLimiterError):
    """A policy, a dialect or an argument cannot be used.

    Attributes:
        problems: one line each: place, value, and what would do.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Problems:
    """Problems of several checks, to be raised as one error: the user mends all of them in one go.

    Example:
        >>> problems = Problems()
        >>> with problems.noted():
        ...     raise ConfigError("--listen: 'x' is not HOST:PORT")
        >>> problems.found
        ["--listen: 'x' is not HOST:PORT"]
    """

    def __init__(self) -> None:
        self.found: list[str] = []

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note the problems of a ConfigError that is raised within, and go on."""
        try:
            yield
        except ConfigError as fault:
            self.found += fault.problems

    def raise_any(self) -> None:
        """Raise a ConfigError of all that was noted, if anything was."""
        if self.found:
            raise ConfigError(*self.found)


class Kind(StrEnum):
    """The exact fault of a store. A closed set: it becomes a metric label."""

    # availability
    UNREACHABLE = "unreachable"  # no connection can be made
    DISCONNECTED = "disconnected"  # the connection broke while an answer was awaited
    TIMEOUT = "timeout"  # no answer within the deadline
    LOADING = "loading"  # the server reads its data set from disk
    BUSY = "busy"  # the server runs a script that does not end
    OUT_OF_MEMORY = "out_of_memory"  # maxmemory is reached and nothing may be evicted
    READ_ONLY = "read_only"  # we speak to a replica
    NO_MASTER = "no_master"  # a replica without its master, or no Sentinel that knows one
    NO_REPLICAS = "no_replicas"  # min-replicas-to-write is not met
    NOT_PERSISTED = "not_persisted"  # the server could not save, and refuses writes for that
    CLUSTER_DOWN = "cluster_down"  # a slot is not served
    FULL = "full"  # maxclients is reached
    # our own overload
    OVERLOADED = "overloaded"
    # logic
    FOREIGN_VALUE = "foreign_value"  # a key of ours holds a value of another program or a newer version
    MISMATCH = "mismatch"  # the answer to another call
    PROTOCOL = "protocol"  # not what a Redis server says
    REFUSED = "refused"  # any other error reply: an error in the script, for example
    # configuration
    AUTHENTICATION = "authentication"  # user or password
    PERMISSION = "permission"  # what the user may do, or the database that it may select
    TLS = "tls"  # we do not trust the server, or it does not trust us, or one of us does not speak TLS
    MOVED = "moved"  # another node of a cluster serves some key: this is no single server


class StoreError(RateLimiterError):
    """The store gave no answer; it may have charged.

    Attributes:
        kind: the exact fault, for a metric.
    """

    default_kind = Kind.UNREACHABLE

    def __init__(self, message: str = "", kind: Kind | None = None) -> None:
        super().__init__(message)
        self.kind = kind or self.default_kind


class StoreUnavailable(StoreError):  # noqa: N818 - reads as what the store is
    """Availability: the store cannot be reached, or says that it cannot serve now. Opens the circuit breaker."""


class StoreTimeout(StoreUnavailable):
    """The store did not answer within the deadline; it may still charge."""

    default_kind = Kind.TIMEOUT


class StoreOverloaded(StoreError):  # noqa: N818 - reads as what the store is
    """More requests wait than may wait: our own overload, which says nothing about the store. Nothing was charged."""

    default_kind = Kind.OVERLOADED


class StoreFault(StoreError):  # noqa: N818 - a fault is an error
    """Logic: an answer that makes no sense, by a mistake or an attack. Deserves an alert."""

    default_kind = Kind.REFUSED


class StoreMisconfigured(StoreError):  # noqa: N818 - reads as what the store is
    """Configuration: the store does not let us in, or not do what we must. No waiting helps."""

    default_kind = Kind.AUTHENTICATION
