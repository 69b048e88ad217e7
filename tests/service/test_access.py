"""Who may ask, how often, and what every answer carries."""

from __future__ import annotations

import hashlib
import json
import time

import pytest
from serving import form, serving

from featx.service.access import Keys

KEY, OTHER = "a key of twenty letters", "another"


@pytest.fixture(scope="module")
def guarded(material, tmp_path_factory):
    folder = tmp_path_factory.mktemp("guarded")
    lines = [f"{name} {hashlib.sha256(key.encode()).hexdigest()}" for name, key in (("one", KEY), ("two", OTHER))]
    (folder / "keys").write_text("# who may ask\n\n" + "\n".join(lines) + "\n")
    words = ["--api-key-file", str(folder / "keys"), "--rate-limit", "20", "--allow-origin", "https://example.org"]
    words += ["--head", f"svm={material / 'svm.safetensors'}"]
    with serving(folder / "log.txt", *words) as served:
        yield served


@pytest.fixture(scope="module")
def photo(material):
    return next((material / "photos").rglob("*.jpg")).read_bytes()


def test_no_route_but_the_open_ones_answers_without_a_key(guarded):
    described = json.loads(guarded.ask("GET", "/openapi.json")[2])
    routes = [(method.upper(), path) for path, methods in described["paths"].items() for method in methods]
    assert len(routes) >= 12
    opened = {("GET", "/v2/health/live"), ("GET", "/v2/health/ready")}
    for method, path in [*routes, ("GET", "/metrics"), ("GET", "/nowhere"), ("POST", "/"), ("DELETE", "/v1/models")]:
        if (method, path) in opened or path == "/":
            continue
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEY}"}, {"X_API_Key": "wrong"},
                        {"Authorization": "Bearer "}, {"Authorization": KEY}):  # fmt: skip
            status, answered, body = guarded.ask(method, path, b"" if method == "POST" else None, **headers)
            assert status == 401, (method, path, headers)
            assert answered["WWW-Authenticate"] == "Bearer"
            assert json.loads(body)["detail"].startswith("the API key is")
    for path in ("/", "/docs", "/page/app.js", "/page/style.css", "/v2/health/live", "/v2/health/ready"):
        assert guarded.ask("GET", path)[0] == 200, path


def test_a_path_that_only_begins_like_an_open_one_is_closed(guarded):
    for path in (
        "/v2/health/live/",
        "//v1/models",
        "/docs/x",
        "/page/../v1/models",
        "/page/%2e%2e/v1/models",
        "/v1/models/",
    ):
        assert guarded.ask("GET", path)[0] in (401, 404), path


@pytest.mark.parametrize(
    "headers", [{"Authorization": f"Bearer {KEY}"}, {"authorization": f"bearer {OTHER}"}, {"X_API_Key": KEY}]
)
def test_a_key_lets_in(guarded, headers):
    assert guarded.ask("GET", "/v1/models", **headers)[0] == 200


def test_images_are_counted_by_key(guarded, photo):
    statuses = [guarded.image("/v1/features", photo, Authorization=f"Bearer {KEY}")[0] for _ in range(24)]
    assert statuses[:20] == [200] * 20
    status, headers, body = guarded.image("/v1/features", photo, Authorization=f"Bearer {KEY}")
    assert status == 429
    assert 1 <= int(headers["Retry-After"]) <= 3
    assert json.loads(body)["detail"] == "more than 20 images in a minute"
    assert guarded.image("/v1/features", photo, Authorization=f"Bearer {OTHER}")[0] == 200
    assert guarded.ask("GET", "/v1/models", Authorization=f"Bearer {KEY}")[0] == 200


def test_what_was_not_computed_is_not_counted(material, tmp_path, photo):
    (tmp_path / "keys").write_text(f"one {hashlib.sha256(KEY.encode()).hexdigest()}\n")
    words = ["--api-key-file", str(tmp_path / "keys"), "--rate-limit", "20", "--queue", "4"]
    with serving(tmp_path / "log.txt", *words) as served:
        body, kind = form([photo] * 5)
        for _ in range(5):
            headers = {"Content_Type": kind, "Authorization": f"Bearer {KEY}"}
            assert served.ask("POST", "/v1/features", body, **headers)[0] == 413
        assert served.image("/v1/features", photo, Authorization=f"Bearer {KEY}")[0] == 200


def test_a_name_may_have_two_keys_and_a_key_any_letters():
    words = ["schl\u00fcssel", "second"]
    found = Keys([("shop", hashlib.sha256(word.encode()).hexdigest()) for word in words], None)
    for word in words:
        assert found.name_of(word.encode().decode("latin-1")) == "shop"  # as HTTP hands a header over
    assert found.name_of("third") is None


def test_the_log_names_the_key_and_never_holds_it(guarded, photo):
    guarded.ask("GET", "/v1/models", Authorization=f"Bearer {KEY}", X_Request_Id="named")
    guarded.ask("GET", "/v1/models", X_Request_Id="x" * 65 + "\t")
    keys: set[str | None] = set()
    deadline = time.monotonic() + 10
    while not {"one", None} <= keys:  # a line is written when its answer is on its way
        assert time.monotonic() < deadline, keys
        text = guarded.log.read_text()
        keys = {json.loads(line)["key"] for line in text.splitlines() if line.startswith("{") and line.endswith("}")}
    assert KEY not in text
    assert "x" * 65 not in text


def test_every_answer_has_the_headers(server, photo):
    for method, path, body in (
        ("GET", "/", None), ("GET", "/nowhere", None), ("POST", "/v1/features", photo), ("GET", "/metrics", None)
    ):  # fmt: skip
        _, headers, _ = server.ask(method, path, body)
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'self'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert len(headers["X-Featx-Fingerprint"]) == 64
        assert len(headers["X-Request-Id"]) == 16
        assert headers["Server"] is None


def test_other_pages_may_ask_only_where_that_is_allowed(guarded, server, photo):
    for served, allowed in ((guarded, "https://example.org"), (server, None)):
        _, headers, _ = served.ask(
            "OPTIONS", "/v1/features", Origin="https://example.org", Access_Control_Request_Method="POST",
            Access_Control_Request_Headers="content-type",
        )  # fmt: skip
        assert headers["Access-Control-Allow-Origin"] == allowed
    _, headers, _ = guarded.ask("GET", "/v2/health/live", Origin="https://evil.example")
    assert headers["Access-Control-Allow-Origin"] is None


@pytest.mark.parametrize(
    ("content", "said"),
    [("", "holds no key"), ("one two\n", "line 1: not NAME SHA256"), (None, "cannot be read")],
)
def test_a_file_of_keys_that_is_none_is_refused(featx, tmp_path, content, said):
    if content is not None:
        (tmp_path / "keys").write_text(content)
    outcome = featx("serve", "-b", "alexnet-mini", "--port", "0", "--api-key-file", tmp_path / "keys")
    assert outcome.status == 2
    assert said in outcome.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--head", "x"], "'x' is not NAME=PATH"),
        (["--head", "a b=x"], "is not NAME=PATH"),
        (["--head", "a=x", "--head", "a=y"], "the name 'a' is given twice"),
        (["--head", "a=nothing.safetensors"], "nothing.safetensors"),
        (["--rate-limit", "5"], "--rate-limit"),
        (["-l", "fc99"], "no layer 'fc99'"),
        (["--host", "no.such.host.invalid"], "--host no.such.host.invalid"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(featx, words, said):
    outcome = featx("serve", "-b", "alexnet-mini", "--port", "0", *words)
    assert outcome.status == 2, outcome.err
    assert said in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1


def test_a_head_of_other_weights_and_names_given_twice_are_refused(featx, material):
    head = material / "svm.safetensors"
    assert featx("serve", "-b", "alexnet-mini", "--port", "0", "--run", f"a={head}").status == 2
    twice = featx(
        "serve", "-b", "alexnet-mini", "--port", "0", "--head", f"a={head}", "--index", f"a={material / 'f.h5'}"
    )
    assert "'a' is the name of several heads, runs or indexes" in twice.err
