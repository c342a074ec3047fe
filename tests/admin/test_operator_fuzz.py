"""Goal: whatever operators send, the listener answers as its own description says. Method: schemathesis reads that
description and makes requests of it, right ones and wrong ones.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import ignored_auth, positive_data_acceptance

from tests.admin.test_operator_http import TOKEN, application

with tempfile.TemporaryDirectory() as folder:
    app, limiter = application(Path(folder))
HEADERS = {"authorization": f"Bearer {TOKEN}"}
schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers=HEADERS)


@schema.parametrize()
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_answers_are_as_described(case: schemathesis.Case[Any]) -> None:
    """Nothing but the statuses and the bodies that it names; no mistake of ours, and none let through."""
    # What a principal or a limit may be is the policy's to say; and it asks without a token, but sends it all the same.
    case.call_and_validate(headers=HEADERS, excluded_checks=[ignored_auth, positive_data_acceptance])
