"""Whatever is sent: a 4xx with one sentence, never a 500, and the service as well as before."""

from __future__ import annotations

import base64
import contextlib
import io
import json

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from PIL import Image
from schemathesis import GenerationMode
from serving import form


def picture(size: tuple[int, int], kind: str = "PNG", mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    Image.new(mode, size).save(out, kind)
    return out.getvalue()


def bomb() -> bytes:
    """A PNG of a hundred million pixels in a few hundred kilobytes."""
    return picture((10_000, 10_001), mode="1")


CASES = {
    "empty": (b"", 422, "empty"),
    "one byte": (b"x", 422, "not an image"),
    "text": (b"hello" * 1000, 422, "not an image"),
    "cut off": (picture((64, 64), "JPEG")[:-300], 422, "damaged"),
    "hundred megapixels": (bomb(), 422, "too large"),
    "elongated": (picture((1, 20_000)), 422, "too large"),
    "a PDF": (b"%PDF-1.7\n", 422, "not an image"),
    "a zip": (b"PK\x03\x04" + bytes(60), 422, "not an image"),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("path", ["/v1/features", "/v1/predict?head=svm", "/v1/neighbors?index=photos"])
def test_images_that_cannot_be_used(server, name, path):
    content, status, said = CASES[name]
    found, headers, body = server.image(path, content)
    assert found == status, body
    assert headers["Content-Type"] == "application/problem+json"
    assert json.loads(body)["detail"].startswith(said)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 1)])
def test_tiny_images_are_images(server, size):
    assert server.image("/v1/features?layers=fc7", picture(size))[0] == 200
    assert server.ask("GET", "/v2/health/ready")[0] == 200


@pytest.mark.parametrize("kind", ["", "text/plain", "application/xml", "image", ";", "multipart/mixed; boundary=x"])
def test_other_content_types_are_415(server, kind):
    status, _, body = server.ask("POST", "/v1/features", picture((9, 9)), Content_Type=kind)
    assert status == 415
    assert "send image/jpeg" in json.loads(body)["detail"]


@pytest.mark.parametrize(
    "value",
    [None, 1, "x", [], {}, [[]], {"images": {}}, {"images": []}, {"images": [None]}, {"images": [{"data": 1}]}, {"image": []},
     {"images": ["%%%"]}, {"images": ["data:image/png;base64"]}, {"images": ["http://127.0.0.1/x"]}, {"images": ["file:///etc/passwd"]},
     {"images": ["é"]}],
)  # fmt: skip
@pytest.mark.parametrize(
    "path", ["/v1/features", "/v1/predict?head=svm", "/v1/neighbors?index=photos", "/v1/embeddings"]
)
def test_json_of_another_shape_is_400(server, value, path):
    status, _, body = server.ask("POST", path, json.dumps(value).encode(), Content_Type="application/json")
    assert status == 400, body
    assert len(json.loads(body)["detail"]) > 10


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", "multipart/form-data"), (b"", "multipart/form-data; boundary="), (b"x", "multipart/form-data; boundary=y"),
        (b"--y\r\n\r\n", "multipart/form-data; boundary=y"), (b"--y--\r\n", "multipart/form-data; boundary=y"),
        (b"--y\r\nContent-Disposition: form-data\r\n\r\nz\r\n--y--\r\n", "multipart/form-data; boundary=y"),
        (b"--y\r\nContent-Disposition: form-data; name=a\r\n\r\nz\r\n--y--\r\n", "multipart/form-data; boundary=y"),
        (b"{", "application/json"), (b"\xff", "application/json"), (b"[" * 100_000, "application/json"),
    ],
)  # fmt: skip
def test_bodies_that_do_not_follow_their_type_are_400(server, body, kind):
    status, _, answer = server.ask("POST", "/v1/features", body, Content_Type=kind)
    assert status == 400, answer
    assert "detail" in json.loads(answer)


@pytest.mark.parametrize("encoding", ["unicode_escape", "utf-7", "rot13", "hex"])
@pytest.mark.parametrize("name", ["\\ud800", "a+2AA-", "x"])
def test_a_form_that_names_an_odd_encoding(server, encoding, name):
    body, _ = form([picture((9, 9))], [name])
    boundary = body[2 : body.index(b"\r\n")].decode()
    kind = f"multipart/form-data; boundary={boundary}; charset={encoding}"
    for accept in ("application/json", "application/x-npz", "application/vnd.apache.arrow.stream"):
        assert server.ask("POST", "/v1/features?layers=fc7", body, Content_Type=kind, Accept=accept)[0] in (200, 400)


def test_too_many_images_are_413(server):
    body, kind = form([b"x"] * 1025)
    status, _, answer = server.ask("POST", "/v1/features", body, Content_Type=kind)
    assert status in (400, 413), answer


def test_a_bad_image_changes_nothing_of_its_neighbours(server, material):
    photos = [path.read_bytes() for path in sorted((material / "photos").rglob("*.jpg"))]
    alone = [
        server.image("/v1/features?layers=fc7", photo, Accept="application/x-npy")[2][-384 * 4 :] for photo in photos
    ]
    mixed = [part for photo in photos for part in (photo, *(content for content, *_ in list(CASES.values())[:4]))]
    body, kind = form(mixed)
    answer = server.ask("POST", "/v1/features?layers=fc7", body, Content_Type=kind, Accept="application/x-npy")[2]
    described = json.loads(server.ask("POST", "/v1/features?layers=fc7", body, Content_Type=kind)[2])["images"]
    assert [one["reason"] for one in described[::5]] == [None] * len(photos)
    assert all(one["reason"] for place, one in enumerate(described) if place % 5)
    rows = [answer[-len(mixed) * 384 * 4 :][i * 384 * 4 : (i + 1) * 384 * 4] for i in range(len(mixed))]
    assert rows[::5] == alone


def test_paths_of_this_machine_cannot_be_asked_for(server):
    for path in ("/page/../app.py", "/page/..%2fapp.py", "/page/%2e%2e/%2e%2e/cli.py", "/v1/indexes/../images/0"):
        assert server.ask("GET", path)[0] == 404, path
    value = {"images": [base64.b64encode(b"/etc/passwd").decode(), "/etc/passwd"]}
    assert server.ask("POST", "/v1/features", json.dumps(value).encode(), Content_Type="application/json")[0] == 400


_IMAGES = st.one_of(st.binary(max_size=64), st.just(picture((9, 7))), st.just(picture((5, 5), "JPEG")))


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_what_the_document_allows_and_what_it_does_not(server, mode):
    """Every route with parameters and bodies made up from the document, by schemathesis."""
    schemathesis.openapi.media_type("image/*", _IMAGES)
    schemathesis.serializer("image/*")(lambda _context, value: value)
    operations = [
        found.ok() for found in schemathesis.openapi.from_url(f"{server.url}/openapi.json").get_all_operations()
    ]
    assert len(operations) >= 12
    statuses = set()
    for operation in operations:

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
        def ask(case):
            answer = case.call()
            statuses.add(answer.status_code)
            assert answer.status_code < 500, (answer.status_code, answer.text, case.as_curl_command())
            if answer.status_code >= 400:
                problem = answer.json()
                assert problem["status"] == answer.status_code
                assert problem["detail"]

        with contextlib.suppress(Unsatisfiable):  # nothing of a route without parameters can be wrong
            ask()
    assert statuses >= ({200, 400} if mode is GenerationMode.POSITIVE else {400, 422})


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/v1/features?layer=fc6", "/v1/features has no parameter 'layer'; it takes layers, pool, model, on_error"),
        ("/v1/features?layers=fc7&pooling=avg", "no parameter 'pooling'"),
        ("/v1/predict?head=svm&network=zzz", "no parameter 'network'"),
        ("/v1/neighbors?index=photos&K=5", "no parameter 'K'"),
    ],
)
def test_a_misspelt_parameter_is_not_taken_for_a_default(server, path, said):
    status, _, body = server.image(path, picture((40, 40)))
    assert status == 400
    assert said in json.loads(body)["detail"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"layers": "conv5"}, "unknown field 'layers'; layers, head and the like are parameters of the address"),
        ({"image": "x"}, "unknown field 'images'"),
        ({"images": [{"data": "", "label": "a"}]}, "unknown field 'label'; an image has name and data"),
    ],
)
def test_a_field_that_means_nothing_is_not_left_aside(server, more, said):
    encoded = base64.b64encode(picture((40, 40))).decode()
    body = json.dumps({"images": [encoded], **more}).encode()
    status, _, answer = server.ask("POST", "/v1/features", body, Content_Type="application/json")
    assert status == 400
    assert said in json.loads(answer)["detail"]
