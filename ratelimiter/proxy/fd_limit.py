"""The limit on file descriptors: a process takes no more connections than it has descriptors for.

With none left, the requests in flight would fail, too.
"""

from __future__ import annotations

import logging
import resource
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ratelimiter.proxy.settings import ProxySettings

log = logging.getLogger(__name__)

RESERVED = 32  # for listeners, the store, the admin listener and its clients, files that are loaded anew


def make_room(settings: ProxySettings) -> ProxySettings:
    """Raise this process's soft limit as far as *settings* want and the hard limit allows; and *settings* with no more
    connections of clients than there is room for then.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    upstream_max = settings.upstream_connections_max
    wanted = RESERVED + settings.connections_max + min(settings.connections_max, upstream_max)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return settings
    room = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, room), hard))
    left = room - RESERVED
    connections_max = max(1, left // 2, left - upstream_max)
    if connections_max >= settings.connections_max:
        return settings
    log.warning(
        "no more than %d clients at a time are taken in, not %d (proxy: connections_max): this process may have %d "
        "file descriptors (ulimit -n)",
        connections_max,
        settings.connections_max,
        room,
    )
    return replace(settings, connections_max=connections_max)
