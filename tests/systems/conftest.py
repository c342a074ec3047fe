"""Each system runs once in each way, and all tests call it, every one as somebody else."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.systems.scene import Scene
from tests.systems.serving import WAYS
from tests.systems.system import SYSTEMS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, str], Scene]]:
    """Starts a system in a way when it is first asked for."""
    scenes: dict[tuple[str, str], Scene] = {}
    with ExitStack() as stack:

        def run(name: str, way: str) -> Scene:
            if (name, way) not in scenes:
                scene = Scene(SYSTEMS[name], way, tmp_path_factory.mktemp(f"{name}-{way}"))
                scenes[name, way] = stack.enter_context(scene)
            return scenes[name, way]

        yield run


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    """How the system is limited."""
    way: str = request.param
    return way


@pytest.fixture(params=sorted(SYSTEMS))
def scene(request: pytest.FixtureRequest, running: Callable[[str, str], Scene], way: str) -> Scene:
    """Each system; a module that is about one of them says so in `SYSTEM`, by overriding this fixture."""
    return running(request.param, way)
