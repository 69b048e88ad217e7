"""What decides, over HTTP: the maps of the library."""

from __future__ import annotations

import concurrent.futures
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from serving import form

from featx.explain.saliency import saliency
from featx.explain.subject import load_subject


@pytest.fixture(scope="module")
def photo(material):
    return sorted((material / "photos").rglob("*.jpg"))[1]


def right(photo, method, target=None):
    subject = load_subject("alexnet-mini", "pool2,conv5", device="cpu")
    inputs = subject.normalised(subject.pixels([photo]))
    label = int(subject.logits(inputs).argmax()) if target is None else target
    return subject, label, saliency(subject, inputs, torch.tensor([label]), method).maps[0].numpy()


@pytest.mark.parametrize("method", ["gradcam", "gradient", "integrated"])
def test_maps_are_those_of_the_library(server, photo, method):
    subject, label, expected = right(photo, method)
    status, headers, body = server.image(
        f"/v1/explain?method={method}", photo.read_bytes(), Accept="application/x-npy"
    )
    assert status == 200
    assert headers["X-Featx-Fingerprint"]
    found = np.load(io.BytesIO(body), allow_pickle=False)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    said = json.loads(server.image(f"/v1/explain?method={method}", photo.read_bytes())[2])
    assert said["class"] == said["taken_for"] == subject.classes[label]
    np.testing.assert_array_equal(np.array(said["map"], np.float32), found)
    status, headers, body = server.image(f"/v1/explain?method={method}", photo.read_bytes(), Accept="image/*")
    assert headers["Content-Type"] == "image/png"
    with Image.open(io.BytesIO(body)) as picture:
        assert picture.size == (64, 64)


def test_another_class_can_be_explained(server, photo):
    _, _, expected = right(photo, "gradient", 7)
    said = json.loads(server.image("/v1/explain?method=gradient&target=7", photo.read_bytes())[2])
    found = np.array(said["map"], np.float32)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    assert said["class"] != said["taken_for"]


@pytest.mark.parametrize(
    ("query", "body", "status", "reason"),
    [
        ("?method=magic", None, 422, "method is 'magic'"),
        ("?target=unicorn", None, 400, "has no class 'unicorn'"),
        ("?model=other", None, 400, "other"),
        ("", b"no image", 422, "cannot be used"),
    ],
)
def test_what_cannot_be_explained_is_said(server, photo, query, body, status, reason):
    found = server.image(f"/v1/explain{query}", body or photo.read_bytes())
    assert (found[0], reason in json.loads(found[2])["detail"]) == (status, True), found[2]


def test_one_image_at_a_time_and_what_can_be_had(server, photo):
    body, kind = form([photo.read_bytes()] * 2)
    status, _, said = server.ask("POST", "/v1/explain", body, Content_Type=kind)
    assert (status, "2 images were sent" in said.decode()) == (400, True)
    status, _, said = server.image("/v1/explain", photo.read_bytes(), Accept="text/html")
    assert (status, "none of 'text/html' can be had" in said.decode()) == (406, True)


def test_too_many_at_once_are_told_to_come_again(server, photo):
    def ask(_):
        return server.image("/v1/explain?method=smoothgrad", photo.read_bytes(), timeout=120)[0]

    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        found = list(pool.map(ask, range(24)))
    assert set(found) <= {200, 429}
    assert found.count(200) >= 8
    assert ask(0) == 200
