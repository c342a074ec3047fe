"""How many connections a process has file descriptors for: with none left, those whom it serves already would fail."""

from __future__ import annotations

import logging
import resource
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ratelimiter.proxy.settings import Bounds

log = logging.getLogger(__name__)

RESERVED = 32  # for listeners, the store, the admin listener and its clients, files that are loaded anew


def make_room(bounds: Bounds) -> Bounds:
    """Raise this process's soft limit as far as *bounds* want and the hard limit allows; and *bounds* with no more
    connections of clients than there is room for then.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    upstream_max = bounds.upstream_connections_max
    wanted = RESERVED + bounds.connections_max + min(bounds.connections_max, upstream_max)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return bounds
    room = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, room), hard))
    left = room - RESERVED
    connections_max = max(1, left // 2, left - upstream_max)
    if connections_max >= bounds.connections_max:
        return bounds
    log.warning(
        "no more than %d clients at a time are taken in, not %d (proxy: connections_max): this process may have %d "
        "file descriptors (ulimit -n)",
        connections_max,
        bounds.connections_max,
        room,
    )
    return replace(bounds, connections_max=connections_max)
