"""Cost of authenticating a request with a bad credential, in CPU time: before and after its client is over its budget.

Run it with `python -m tests.benchmarks.bad_credentials`; the table in docs/reference/capacity.md is from it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ratelimiter.core.identity import ApiKeys, IdentityPolicy
from ratelimiter.core.policy import Policy
from ratelimiter.core.principal import Source
from ratelimiter.identity.authenticator import Authenticator
from ratelimiter.identity.failure_budget import FAILURES_MAX
from tests.identity.provider import jwk, key_set, kind_for, policy, token
from tests.requesting import per_minute, request

if TYPE_CHECKING:
    from ratelimiter.core.request import Request

ROUNDS = 2000


def cpu_us(authenticator: Authenticator, requests: list[Request]) -> float:
    """Return the CPU time of one request, in microseconds."""
    began = time.process_time_ns()
    for each in requests:
        authenticator.identify(each)
    return (time.process_time_ns() - began) / len(requests) / 1000


def main() -> None:
    """Print a line for each kind of credential."""
    print(f"{'credential':<28}{'verified, us':>14}{'over budget, us':>18}")
    for algorithm in ("RS256", "ES256", "ES512"):
        kind = kind_for(algorithm)
        several = key_set(*(jwk(kind, number) for number in range(2)))
        tokens = policy(algorithms=(algorithm,), key_set=several)
        for named in (True, False):
            header = None if named else {"kid": None}
            good = token(algorithm, header=header).decode()
            bad = [f"{good[:-8]}{number:08d}" for number in range(ROUNDS)]
            made = Authenticator(Policy((per_minute(),), identity=IdentityPolicy(tokens)))
            one = [request(headers=[("Authorization", f"Bearer {each}")]) for each in bad]
            each_from_its_own = [
                request(headers=[("Authorization", f"Bearer {value}")], peer=f"10.1.{number // 250}.{number % 250}")
                for number, value in enumerate(bad[:300])
            ]
            verified = cpu_us(made, each_from_its_own)
            for spent in one[: FAILURES_MAX + 1]:
                made.identify(spent)
            label = f"{algorithm}, {'key id' if named else 'no key id, 2 keys'}"
            print(f"{label:<28}{verified:>14.0f}{cpu_us(made, one):>18.0f}")
    keys = ApiKeys(Source("header", "X-API-Key"), "k", {})
    made = Authenticator(Policy((per_minute(),), identity=IdentityPolicy(None, keys)))
    unknown = [request(headers=[("X-API-Key", f"rl_{number:043d}")]) for number in range(ROUNDS)]
    print(f"{'API key, unknown':<28}{cpu_us(made, unknown):>14.0f}{'':>18}")


if __name__ == "__main__":
    main()
