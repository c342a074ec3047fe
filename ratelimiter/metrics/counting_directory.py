"""The directory in which several processes count together."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from ratelimiter.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"  # read when the client library is imported, so set before that


@contextmanager
def counting_directory() -> Iterator[str]:
    """Yield the directory: that of the environment, or a temporary one; the environment names it meanwhile.

    Raises:
        ConfigError: the directory cannot be written.
    """
    given = os.environ.get(VARIABLE)
    with ExitStack() as stack:
        try:
            directory = given or stack.enter_context(tempfile.TemporaryDirectory(prefix="ratelimiter-"))
            with tempfile.TemporaryFile(dir=directory):
                pass
        except OSError as fault:
            what = f"{given or 'a temporary directory'} cannot be written ({fault.strerror or fault})"
            msg = f"--workers: {what}; mount a writable /tmp, or name a directory in {VARIABLE}"
            raise ConfigError(msg) from None
        os.environ[VARIABLE] = directory
        yield directory
