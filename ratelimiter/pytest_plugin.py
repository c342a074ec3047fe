"""The pytest plugin: the fixture `rate_limits`, under which a test begins with nothing counted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ratelimiter.testing import FreshLimits


@pytest.fixture
def rate_limits() -> Iterator[FreshLimits]:
    """Count every limit anew, in memory, with time that passes by `rate_limits.advance(seconds)` only."""
    from ratelimiter.testing import fresh_limits  # noqa: PLC0415  # tests without the fixture do not import it

    with fresh_limits() as limits:
        yield limits
