"""The pure half: from a request and a policy to rules, hits and a decision. No I/O, no clock, no await.

Ten invariants, cited by number in the code and in the tests:

 1. A request is charged to all the rules it matched, or to none; also across several limiters in one stack.
 2. In every half-open window (t - W, t] a key admits at most its limit.
 3. A refusal changes no tally.
 4. `retry_after_ms` is exact absent other traffic: one ms earlier is refused, at it is admitted.
 5. One decision uses one clock: the store's.
 6. Every key written carries a TTL, no longer than it is useful.
 7. Different (rule, principal) never share a key; changing a limit keeps its counters.
 8. No principal's value leaves in headers, bodies, logs, metric labels, or as a readable Redis key.
 9. Equal decisions in equal dialects are equal bytes, whatever the door.
10. The policy in force was loaded whole.

The way of a request: `planner` finds the rules that match (`match`, `path`, `json_body`) and, for each, the principal
that it charges (`principal`, `client_address`, `identity`), on the tier of its plan (`tiers`, `overrides`). That makes
hits (`policy.Hit`). A store charges them as `charge` and `algorithms` say and answers with a `receipt`, of which
`decision` makes the decision and `headers` the header fields. The final cost of a charge is a `settlement`.
"""
