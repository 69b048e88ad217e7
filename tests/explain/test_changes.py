"""Invariance, class images and correspondence against direct computations; the commands as a user runs them."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from conftest import SHARED, write_photo
from PIL import Image
from scipy import ndimage

from featx.errors import UsageError
from featx.explain.class_image import Climb, before_last_relu, class_images
from featx.explain.correspondence import Box, hidden, random_box, read_parts, seen_of, sign_distances
from featx.explain.invariance import curves, places_of, transformed
from featx.explain.subject import LOGITS, load_subject
from featx.images.preprocess import Preprocess
from featx.networks.build import construct

SQUEEZENET = SHARED / "squeezenet" / "squeezenet1_0.safetensors"


def test_transformations_are_scipys():
    """Away from the border, where scipy and torch agree on what comes in."""
    image = torch.rand((1, 3, 41, 41), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inner = slice(13, 28)
    down = transformed(image, "translation", 3.0, "edge")
    np.testing.assert_allclose(down[0, :, 3:].numpy(), image[0, :, :-3].numpy(), atol=1e-12)
    np.testing.assert_allclose(down[0, :, 0].numpy(), image[0, :, 0].numpy(), atol=1e-12)  # the edge comes in
    assert (transformed(image, "translation", 3.0, "mean")[0, :, :2] == 0).all()
    turned = transformed(image, "rotation", 30.0, "edge")[0, 0].numpy()
    right = ndimage.rotate(image[0, 0].numpy(), 30, reshape=False, order=1)
    np.testing.assert_allclose(turned[inner, inner], right[inner, inner], atol=1e-9)
    quarter = transformed(image, "rotation", 90.0, "edge")[0, 0].numpy()
    np.testing.assert_allclose(quarter, np.rot90(image[0, 0].numpy()), atol=1e-9)
    larger = transformed(image, "scale", 1.5, "edge")[0, 0].numpy()
    places = (np.arange(41) - 20) / 1.5 + 20
    right = ndimage.map_coordinates(image[0, 0].numpy(), np.meshgrid(places, places, indexing="ij"), order=1)
    np.testing.assert_allclose(larger, right, atol=1e-9)
    for kind, same in (("translation", 0.0), ("scale", 1.0), ("rotation", 0.0)):
        assert torch.equal(transformed(image, kind, same, "mean"), image)


def test_places_are_those_of_the_paper():
    assert places_of("translation", 224)[[0, -1]].tolist() == [-60, 60]
    assert 0 in places_of("translation", 64)
    assert places_of("scale", 64)[[0, -1]].tolist() == [1, 1.8]
    assert len(places_of("rotation", 64)) == 36


def test_curves_are_distances_computed_one_by_one():
    subject = load_subject("alexnet-mini", "conv1,fc7", device="cpu")
    image = torch.randn((3, 64, 64), generator=torch.Generator().manual_seed(0))
    found = curves(subject, image, 5, ["conv1", "fc7"], "rotation")
    with torch.no_grad():
        start = subject.network(image[None])
        for place in (0, 3, 20):
            moved = subject.network(transformed(image[None], "rotation", float(found.places[place]), "edge"))
            for layer in ("conv1", "fc7"):
                right = float((moved[layer] - start[layer]).norm())
                assert found.distances[layer][place] == pytest.approx(right, rel=1e-4, abs=1e-4)
            assert found.probability[place] == pytest.approx(float(moved[LOGITS].softmax(1)[0, 5]), rel=1e-4)
    assert found.distances["fc7"][0] == pytest.approx(0, abs=1e-4)
    assert found.distances["fc7"].max() > 1


def table_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def photos_with_parts(tmp_path):
    lines = ["path,part,left,top,width,height"]
    for seed in range(3):
        write_photo(tmp_path / f"{seed}.png", seed, (90, 80))
        lines += [f"{seed}.png,eye,{20 + seed},30,14,10", f"{seed}.png,nose,{40 + seed},40,12,16"]
    (tmp_path / "parts.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_show_invariance(photos_with_parts, featx, tmp_path):
    done = featx("show", "invariance", tmp_path / "0.png", tmp_path / "1.png", "-b", "alexnet-mini", "-o",
                 tmp_path / "out", "--format", "pdf")  # fmt: skip
    assert done.status == 0, done.err
    with np.load(tmp_path / "out" / "invariance.npz") as numbers:
        assert numbers["rotation conv1"].shape == numbers["rotation fc7"].shape == (2, 36)
        assert numbers["scale fc7"][:, 0].max() < 1e-3
    assert (tmp_path / "out" / "invariance.pdf").read_bytes().startswith(b"%PDF")


def climb(**changes):
    plain = {"parameters": "pixels", "steps": 3, "rate": 0.1, "l2": 0.0, "jitter": 0, "turn": False, "blur": 0.0}
    return Climb(**{**plain, "seed": 0, **changes})


def test_a_step_is_adams_on_the_penalised_score():
    subject = load_subject("vgg-mini", device="cpu")
    found = class_images(subject, [7], climb(steps=2, l2=0.01))
    image = torch.zeros((1, 3, 64, 64), requires_grad=True)
    first, second = torch.zeros_like(image), torch.zeros_like(image)
    low, high = (subject.normalised(np.full((1, 64, 64, 3), value, np.uint8)) for value in (0, 255))
    scores = []
    for step in range(1, 4):
        score = subject.network(image)[LOGITS][0, 7]
        scores.append(float(score.detach()))
        if step == 3:
            break
        loss = 0.01 * (image**2).sum() - score
        (gradient,) = torch.autograd.grad(loss, image)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        moved = first / (1 - 0.9**step) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        image = (image - 0.1 * moved).clamp(low, high).detach().requires_grad_()
    np.testing.assert_allclose(found.scores[:, 0], scores, rtol=1e-3, atol=1e-3)
    assert scores[2] > scores[0]
    pixels = (255 * ((image.detach() - low) / (high - low))).round()[0].permute(1, 2, 0).numpy()
    assert np.abs(pixels - found.pixels[0]).max() <= 1


def test_class_images_climb_and_do_not_depend_on_each_other():
    subject = load_subject("alexnet-mini", device="cpu")
    options = climb(parameters="fourier", steps=40, rate=0.05, jitter=4, turn=True)
    both = class_images(subject, [3, 90], options)
    alone = class_images(subject, [90], options)
    assert (both.scores[-1] > both.scores[0] + 5).all()
    assert (both.probability > 0.5).all()
    assert np.abs(both.pixels[1].astype(int) - alone.pixels[0]).mean() < 3
    again = class_images(subject, [90], options)
    np.testing.assert_array_equal(again.pixels, alone.pixels)
    shown = subject.logits(subject.normalised(both.pixels)).softmax(1)
    np.testing.assert_allclose([float(shown[0, 3]), float(shown[1, 90])], both.probability, rtol=1e-4)


def test_squeezenets_score_is_taken_before_its_last_relu():
    subject = load_subject("squeezenet1_0", weights="random:0", device="cpu", crop=64)
    network = construct("squeezenet1_0", 0).eval()
    inputs = torch.randn((1, 3, 64, 64))
    with torch.no_grad():
        right = network.classifier[1](network.features(inputs)).mean((2, 3))
        found = before_last_relu(subject.network)(inputs)[LOGITS]
        assert (right < 0).any()
        torch.testing.assert_close(found, right)
        torch.testing.assert_close(subject.logits(inputs), network(inputs))
    plain = load_subject("alexnet-mini", device="cpu")
    assert before_last_relu(plain.network) is plain.network


def test_show_class_image_goes_on(tmp_path, featx):
    command = ("show", "class-image", "vgg-mini", "--target", "1,2,3,4,5", "--steps", "2", "-o", tmp_path / "out")
    assert featx(*command).status == 0
    first = (tmp_path / "out" / "images.1.npz").stat().st_mtime_ns
    record = tmp_path / "out" / "show.json"
    kept = json.loads(record.read_text())
    assert [row[0] for row in kept["rows"]] == [row[0] for row in kept["rows"]]
    record.write_text(json.dumps({**kept, "files": [], "columns": ["unfinished"], "rows": []}))
    (tmp_path / "out" / "images.2.npz").unlink()
    assert featx(*command).status == 0
    assert json.loads(record.read_text())["rows"] == kept["rows"]
    assert (tmp_path / "out" / "images.1.npz").stat().st_mtime_ns == first
    assert "no class 'unicorn'" in featx("show", "class-image", "vgg-mini", "--target", "unicorn", "-o", tmp_path).err


@pytest.mark.slow
def test_class_images_of_a_trained_network_show_the_class():
    if not SQUEEZENET.exists():
        pytest.skip("the real weights are not on this machine")
    subject = load_subject("squeezenet1_0", weights=str(SQUEEZENET), device="cpu")
    zebra = subject.class_index("zebra")
    found = class_images(subject, [zebra], climb(parameters="fourier", steps=100, rate=0.05, jitter=14, turn=True))
    assert found.probability[0] > 0.9


def test_sign_distances_are_counted():
    changes = np.random.default_rng(0).integers(-1, 2, (4, 3, 5))
    right = []
    for one in range(4):
        for other in range(4):
            if one < other:
                pairs = zip(changes[one].ravel(), changes[other].ravel(), strict=True)
                right.append(sum(np.sign(a) != np.sign(b) for a, b in pairs) / 15)
    np.testing.assert_allclose(sign_distances(changes), right)
    assert sign_distances(np.zeros((2, 5))).tolist() == [0]


def test_what_is_hidden_and_what_is_seen():
    image = Image.fromarray(np.full((40, 60, 3), 255, np.uint8))
    covered = np.asarray(hidden(image, Box(10, 5, 20, 8), (1, 2, 3)))
    right = np.full((40, 60, 3), 255)
    right[5:13, 10:30] = (1, 2, 3)
    np.testing.assert_array_equal(covered, right)
    plain = Preprocess(32, 28, "bilinear", (0.5, 0.5, 0.5), (1, 1, 1))
    seen = seen_of((60, 40), plain)
    assert (seen.top, seen.height) == pytest.approx((2.5, 35))
    assert (seen.left, seen.width) == pytest.approx((12.5, 35))
    generator = np.random.default_rng(0)
    for _ in range(50):
        box = random_box(Box(0, 0, 9, 50), seen, generator)
        assert box.left >= seen.left
        assert box.left + box.width <= seen.left + seen.width
        assert (box.top, box.height) == (seen.top, seen.height)


def test_show_correspondence(photos_with_parts, featx, tmp_path):
    done = featx("show", "correspondence", tmp_path / "parts.csv", "-b", "alexnet-mini", "-l", "conv5,fc7",
                 "--repeats", "2", "-o", tmp_path / "out")  # fmt: skip
    assert done.status == 0, done.err
    subject = load_subject("alexnet-mini", "conv5,fc7", device="cpu")
    grey = tuple(round(255 * value) for value in subject.recipe.preprocess.mean)
    whole, covered = [], []
    for seed in range(3):
        with Image.open(tmp_path / f"{seed}.png") as opened:
            image = opened.convert("RGB")
        masked = np.array(image)
        masked[30:40, 20 + seed : 34 + seed] = grey
        whole.append(image)
        covered.append(Image.fromarray(masked))
    with torch.no_grad():
        both = [subject.network(subject.normalised(subject.pixels(one)))["conv5"].numpy() for one in (whole, covered)]
    right = sign_distances(both[0] - both[1])
    with np.load(tmp_path / "out" / "correspondence.npz") as numbers:
        np.testing.assert_allclose(numbers["conv5 eye"], right, atol=2e-4)  # a sign in the rounding
        assert numbers["fc7 random"].shape == (2, 3)
    rows = table_of(tmp_path / "out" / "correspondence.csv")
    assert [(row["part"], row["layer"]) for row in rows] == [
        (part, layer) for part in ("eye", "nose", "random") for layer in ("conv5", "fc7")
    ]
    assert float(rows[0]["difference"]) == pytest.approx(right.mean(), abs=2e-4)
    assert (rows[0]["between sets"], rows[-1]["between sets"] != "") == ("", True)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("path,part\n", "it needs path, part, left"),
        (
            "path,part,left,top,width,height\na.png,eye,1,2,3,x\n",
            "line 2: left, top, width and height must be numbers",
        ),
        ("path,part,left,top,width,height\na.png,eye,1,2,0,5\n", "hides nothing"),
        ("path,part,left,top,width,height\na.png,eye,1,2,3,5\n", "has 1 image; two or more"),
        ("path,part,left,top,width,height\na,eye,1,2,3,5\na,eye,1,2,3,5\n", "has a box already"),
        ("path,part,left,top,width,height\na,random,1,2,3,5\n", "random is the name of the control"),
        ("path,part,left,top,width,height\na,eye,1,2,3,5\nb,nose,1,2,3,5\n", "not every image has eye, nose"),
    ],
)
def test_wrong_lists_of_parts_are_refused(tmp_path, text, reason):
    (tmp_path / "parts.csv").write_text(text)
    with pytest.raises(UsageError, match=reason):
        read_parts(tmp_path / "parts.csv")


def test_a_part_that_the_network_does_not_see_is_refused(photos_with_parts, featx, tmp_path):
    file = tmp_path / "parts.csv"
    file.write_text(file.read_text().replace("20,30,14,10", "0,0,3,3"))
    done = featx("show", "correspondence", file, "-b", "alexnet-mini", "-o", tmp_path / "out")
    assert done.status == 2
    assert "eye of 0.png lies outside of what the network is given" in done.err
