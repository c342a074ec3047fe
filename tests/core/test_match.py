"""Which requests a rule meets."""

from __future__ import annotations

import pytest

from ratelimiter.core.match import Match


@pytest.mark.parametrize(
    ("template", "path", "expected"),
    [
        ("/login", "/login", True),
        ("/login", "/login/", True),
        ("/login/", "/login", True),
        ("/login", "/Login", False),
        ("/login", "/logins", False),
        ("/login", "/login/x", False),
        ("/login", "/", False),
        ("/", "/", True),
        ("/", "/x", False),
        ("/users/{id}", "/users/7", True),
        ("/users/{id}", "/users", False),
        ("/users/{id}", "/users/7/posts", False),
        ("/users/*/posts", "/users/7/posts", True),
        ("/users/*/posts", "/users/7/8/posts", False),
        ("/v1/*", "/v1", True),
        ("/v1/*", "/v1/a/b/c", True),
        ("/v1/**", "/v1/a", True),
        ("/v1/*", "/v10", False),
        ("/*", "/", True),
        ("/*", "/a/b", True),
        ("/*", "*", True),
        ("/a b", "/a%20b", True),
        ("/caf\u00e9", "/caf%C3%A9", True),
        ("/a;b=c", "/a;b=c", True),
        ("/100%", "/100%25", True),
    ],
)
def test_paths(template: str, path: str, expected: bool) -> None:
    """Whole segments and wildcards; a trailing slash is of no account."""
    assert expected == Match(path=template).matches("GET", path)


@pytest.mark.parametrize(("template", "path"), [("/Login", "/login"), ("/login", "/LOGIN"), ("/a/{Id}/b", "/A/x/B")])
def test_case_can_be_ignored(template: str, path: str) -> None:
    """For an application that routes without regard to case (row 74, N09)."""
    assert Match(path=template, ignore_case=True).matches("GET", path)


@pytest.mark.parametrize(
    ("methods", "method", "expected"),
    [
        ((), "FOO", True),  # row 151: an unknown method escapes no rule without methods
        (("GET",), "GET", True),
        (("GET",), "HEAD", True),  # row 150
        (("get",), "GET", True),
        (("GET",), "get", True),  # row 57, L08: no bucket of its own
        (("GET",), "POST", False),
        (("HEAD",), "GET", False),
        (("POST", "PUT"), "PUT", True),
        (("GET",), "OPTIONS", False),
    ],
)
def test_methods(methods: tuple[str, ...], method: str, expected: bool) -> None:
    """GET includes HEAD; case is of no account."""
    assert expected == Match(methods=frozenset(methods)).matches(method, "/")


@pytest.mark.parametrize("template", ["", "login", "*", "/a*", "/{a}{b}", "/{id}.json", "/a/**/b", "/{", "/x{y"])
def test_templates_that_mean_nothing_are_refused(template: str) -> None:
    """A template without a leading slash, or with half a wildcard, is a mistake and not a literal."""
    with pytest.raises(ValueError, match="path"):
        Match(path=template)


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        (Match(), True),
        (Match(path="/*"), True),
        (Match(path="/**"), True),
        (Match(path="/"), False),
        (Match(path="/{all}"), False),
        (Match(methods=frozenset({"GET"})), False),
    ],
)
def test_everything(match: Match, expected: bool) -> None:
    """A match says whether any request escapes it."""
    assert expected == match.everything


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v1/items", True),
        ("/events", False),
        ("/events/7/x", False),
        ("/health", False),
        ("/eventsx", True),
        ("*", True),
    ],
)
def test_an_excepted_path_does_not_match(path: str, expected: bool) -> None:
    """What is excepted is left to other rules; all else matches as if nothing were."""
    match = Match(excepted=("/events/**", "/health"))

    assert expected == match.matches("GET", path)
    assert not match.everything
    assert match.looks_at_paths


def test_an_exception_narrows_a_path() -> None:
    """A path and its exceptions are spelled likewise, case and wildcards included."""
    match = Match(path="/v1/**", excepted=("/v1/{kind}/public",), ignore_case=True)

    assert match.matches("GET", "/V1/a/private")
    assert not match.matches("GET", "/v1/a/PUBLIC")


@pytest.mark.parametrize("template", ["/caf%C3%A9", "/a//b", "/a/../b", "/./a"])
def test_templates_that_no_path_fits_are_refused(template: str) -> None:
    """A rule that could never match would be a hole in the policy that nobody sees."""
    with pytest.raises(ValueError, match="path"):
        Match(path=template)


def test_case_is_ignored_beyond_ascii() -> None:
    """What an application that ignores case takes for the same is the same for the rule."""
    assert Match(path="/CAFÉ", ignore_case=True).matches("GET", "/caf%C3%A9")
    assert not Match(path="/CAFÉ").matches("GET", "/caf%C3%A9")


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (("/users/{id}",), {"id"}),
        (("/users/{id}/posts/{post}", "/posts/{post}"), {"post"}),
        (("/users/{id}", "/users/*"), set()),
        ((), set()),
    ],
)
def test_parameters_that_every_path_has(paths: tuple[str, ...], expected: set[str]) -> None:
    """A rule may be keyed by these alone: any other would be missing from some of its requests."""
    assert expected == Match(paths=paths).names


@pytest.mark.parametrize(
    ("path", "expected"),
    [("/users/7", {"id": "7"}), ("/orgs/acme/users/7", {"org": "acme", "id": "7"}), ("/other", {}), ("/users", {})],
)
def test_parameters_of_a_path(path: str, expected: dict[str, str]) -> None:
    """By the first of the rule's paths that fits; a path that none fits has no parameters."""
    assert expected == Match(paths=("/users/{id}", "/orgs/{org}/users/{id}")).captured(path)
