"""Requests made up from the served OpenAPI document: no 5xx, and no answer that the document does not know."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import CHECKS, load_all_checks

from pagoda.server.app import routers

from .conftest import Running

load_all_checks()
NAMES = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance",
    "unsupported_method",
)  # fmt: skip

SLOW_TO_MAKE = {"/v1/chat/completions": 5, "/v1/responses": 5}  # seconds for each body, spent in schemathesis


@pytest.fixture(scope="module")
def document(server: Running) -> Any:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def operations() -> list[tuple[str, str]]:
    """(method, path) of every route."""
    return [
        (method, route.path)
        for router in routers()
        for route in router.routes
        if getattr(route, "include_in_schema", False)
        for method in sorted(route.methods)
    ]


@pytest.mark.parametrize(("method", "path"), operations())
def test_made_up_requests(document: Any, method: str, path: str) -> None:
    @given(case=document[path.replace(":path", "")][method].as_strategy())
    @settings(
        max_examples=SLOW_TO_MAKE.get(path, 15), deadline=None, phases=[Phase.explicit, Phase.generate],
        derandomize=True, database=None, suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    def check(case: Any) -> None:
        if isinstance(case.body, dict):  # what is accepted shall not take long
            for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
                if isinstance(case.body.get(name), int) and case.body[name] > 2:
                    case.body[name] = 2
        case.call_and_validate(checks=[CHECKS.get_one(name) for name in NAMES], timeout=60)

    check()


def test_the_document_lists_every_endpoint(server: Running) -> None:
    paths = server.http.get("/openapi.json").json()["paths"]
    named = (
        "/v1/models", "/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/v1/messages",
        "/tokenize", "/detokenize", "/health", "/ready", "/version",
    )  # fmt: skip
    assert set(named) <= paths.keys()
    for path in paths.values():
        for operation in path.values():
            assert "422" not in operation["responses"]
