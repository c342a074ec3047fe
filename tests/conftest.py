"""What all tests share: time that stands still, and how hard hypothesis tries."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

from ratelimiter.testing import FakeClock

# A busy machine must not fail a property for being slow. `--hypothesis-profile=thorough` before a release.
settings.register_profile("default", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", parent=settings.get_profile("default"), max_examples=3000)
# What decides whether a change may land tries the same examples each time; everybody else's runs try others.
settings.register_profile("ci", parent=settings.get_profile("default"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()
