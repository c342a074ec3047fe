"""`python -m ratelimiter` is the command `ratelimiter`."""

import sys

from ratelimiter.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
