"""What all tests share: time that stands still, and how hard hypothesis tries."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

from ratelimiter.testing import FakeClock

# A busy machine must not fail a property for being slow. `--hypothesis-profile=thorough` before a release.
settings.register_profile("default", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", parent=settings.get_profile("default"), max_examples=3000)
settings.load_profile("default")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()
