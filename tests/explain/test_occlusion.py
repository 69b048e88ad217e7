"""Occlusion against a loop over positions; filters against the weights; the commands as a user runs them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import write_photo
from PIL import Image
from safetensors.torch import save_file

import featx
from featx.errors import PlanMismatch, UsageError
from featx.explain.filters import filters_of
from featx.explain.occlusion import occlude, positions
from featx.explain.subject import LOGITS, load_subject
from featx.networks.build import construct


@pytest.fixture
def photo(tmp_path):
    write_photo(tmp_path / "a.jpg", 3, (90, 80))
    return tmp_path / "a.jpg"


def test_occlusion_is_a_loop_over_positions(photo):
    subject = load_subject("alexnet-mini", "conv5", device="cpu")
    image = subject.normalised(subject.pixels([photo]))[0]
    found = occlude(subject, image, 7, "conv5", square=20, stride=9)
    assert found.tops == positions(64, 20, 9) == [0, 9, 18, 27, 36, 44]
    with torch.no_grad():
        unit = int(subject.network(image[None])["conv5"][0].sum((1, 2)).argmax())
        assert found.unit == unit
        for row, top in enumerate(found.tops):
            for column, left in enumerate(found.lefts):
                pixels = image.clone()
                pixels[:, top : top + 20, left : left + 20] = 0
                outputs = subject.network(pixels[None])
                p = outputs[LOGITS].double().softmax(1)[0]
                assert float(found.probability[row, column]) == pytest.approx(float(p[7]), rel=1e-4)
                odds = float(torch.log(p[7] / (1 - p[7])))
                assert float(found.log_odds[row, column]) == pytest.approx(odds, abs=1e-3)
                assert int(found.predicted[row, column]) == int(p.argmax())
                strength = float(outputs["conv5"][0, unit].sum())
                assert float(found.activation[row, column]) == pytest.approx(strength, rel=1e-3)


def test_filters_are_the_weights():
    network = construct("alexnet", 0)
    first = filters_of(network, None)
    weights = network.features[0].weight.detach().numpy()
    assert first.name == "features.0"
    np.testing.assert_array_equal(first.weights, weights)
    for one, picture in zip(weights[:5], first.pictures, strict=False):
        right = np.rint(127.5 + 127.5 * one / np.abs(one).max()).transpose(1, 2, 0)
        np.testing.assert_array_equal(picture, right)
    together = filters_of(network, None, scale="all")
    right = np.rint(127.5 + 127.5 * weights / np.abs(weights).max()).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(together.pictures, right)
    deep = filters_of(network, "features.3", slices=2)
    strength = np.square(deep.weights.astype(float)).sum(axis=(2, 3))
    assert deep.slices[4].tolist() == np.argsort(-strength[4])[:2].tolist()
    with pytest.raises(UsageError, match=r"there is no convolution 'fc6'; there is features\.0"):
        filters_of(network, "fc6")


def test_the_strongest_maps_come_first(photo, tmp_path):
    config = featx.MapsConfig(backbone="alexnet-mini", layers="conv5", strongest=6, device="cpu")
    featx.show_maps([photo], tmp_path / "out", config)
    with featx.Extractor("alexnet-mini", "conv5", device="cpu") as extractor:
        maps = extractor(photo)["conv5"][0]
    right = np.argsort(-maps.astype(float).sum(axis=(1, 2)), kind="stable")[:6]
    with np.load(tmp_path / "out" / "maps.npz") as found:
        assert found["conv5 units"][0].tolist() == right.tolist()
        np.testing.assert_allclose(found["conv5"][0], maps[right], rtol=1e-4, atol=1e-5)


COMMANDS = {
    "saliency": (["-b", "alexnet-mini", "--method", "all", "--samples", "3", "--steps", "4"], "saliency.npz"),
    "occlusion": (["-b", "alexnet-mini", "--square", "24", "--stride", "20"], "occlusion.npz"),
    "maps": (["-b", "alexnet-mini", "-l", "conv1,conv5", "--strongest", "4"], "maps.npz"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_draws_a_picture_for_each_image_and_keeps_the_numbers(featx_command, tmp_path, name):
    write_photo(tmp_path / "one" / "a.jpg", 1)
    write_photo(tmp_path / "two" / "a.jpg", 2)
    words, numbers = COMMANDS[name]
    images = [tmp_path / "one" / "a.jpg", tmp_path / "two" / "a.jpg"]
    out = tmp_path / "out"
    outcome = featx_command("show", name, *images, *words, "--device", "cpu", "-o", out, "--json")
    assert outcome.status == 0, outcome.err
    made = outcome.json["files"]
    pictures = [file for file in made if file.endswith(".png")]
    assert len(pictures) == (4 if name == "maps" else 2)
    assert {file.split(".")[0] for file in pictures} == {"a", "a-2"}
    for file in pictures:
        with Image.open(out / file) as picture:
            assert len(np.unique(np.asarray(picture.convert("L")))) > 30
    with np.load(out / numbers) as found:
        assert [str(path) for path in found["paths"]] == [str(path) for path in images]
        assert all(np.isfinite(found[key]).all() for key in found.files if found[key].dtype.kind == "f")
    before = {file: (out / file).read_bytes() for file in made}
    again = featx_command("show", name, *images, *words, "--device", "cpu", "-o", out)
    assert "nothing to do" in again.out + again.err
    assert before == {file: (out / file).read_bytes() for file in made}
    other = featx_command("show", name, images[0], *words, "--device", "cpu", "-o", out)
    assert other.status == 4
    assert "made with different settings" in other.err


@pytest.fixture(name="featx_command")
def command(featx):  # the fixture, not the package
    return featx


def test_filters_of_the_shipped_network(featx_command, tmp_path):
    outcome = featx_command("show", "filters", "alexnet-mini", "-o", tmp_path / "f")
    assert outcome.status == 0, outcome.err
    assert "features.0" in outcome.out
    outcome = featx_command("show", "filters", "alexnet-mini", "-l", "features.4", "-o", tmp_path / "g")
    assert outcome.status == 0, outcome.err


def test_what_is_somebody_elses_is_left_alone(photo, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").write_text("mine")
    with pytest.raises(UsageError, match=r"holds a\.png, which featx show saliency would overwrite"):
        featx.show_saliency([photo], tmp_path / "out", featx.SaliencyConfig(backbone="alexnet-mini", device="cpu"))
    assert (tmp_path / "out" / "a.png").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["missing.jpg"], "missing.jpg cannot be used: no such file"),
        (["PHOTO", "--method", "magic"], "--method is 'magic'"),
        (["PHOTO", "--target", "unicorn"], "alexnet-mini has no class 'unicorn'; it has 200, from 0"),
        (["PHOTO", "-l", "fc7"], "fc7 of alexnet-mini is no layer of maps"),
        (["PHOTO", "--method", "gradient", "--steps", "9", "--samples", "3"], "--samples, --steps: no effect with"),
    ],
)
def test_bad_input_is_one_line(featx_command, photo, tmp_path, words, said):
    given = [str(photo) if word == "PHOTO" else word for word in words]
    outcome = featx_command(
        "show", "saliency", *given, "-b", "alexnet-mini", "--device", "cpu", "-o", tmp_path / "out"
    )
    assert outcome.status == 2, outcome.err
    assert said in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_pictures_of_weights_that_have_changed_since_are_not_taken_for_these(photo, tmp_path):
    for command, words in ((featx.show_saliency, {"method": "gradient"}), (featx.show_filters, {})):
        weights = tmp_path / "w.safetensors"
        state = {name: t.contiguous() for name, t in construct("alexnet-mini", 0).state_dict().items()}
        save_file(state, weights)
        given = {"weights": str(weights), **words}
        if command is featx.show_saliency:
            config, subject = featx.SaliencyConfig(backbone="alexnet-mini", device="cpu", **given), [photo]
        else:
            config, subject = featx.FiltersConfig(**given), "alexnet-mini"
        out = tmp_path / command.__name__
        command(subject, out, config)
        command(subject, out, config)
        save_file({name: t * 2 if t.is_floating_point() else t for name, t in state.items()}, weights)
        with pytest.raises(PlanMismatch, match="weights"):
            command(subject, out, config)


def test_a_folder_that_was_not_finished_is_made_again(photo, tmp_path):
    config = featx.FiltersConfig()
    featx.show_filters("alexnet-mini", tmp_path / "f", config)
    before = (tmp_path / "f" / "filters.png").read_bytes()
    (tmp_path / "f" / "filters.png").unlink()
    featx.show_filters("alexnet-mini", tmp_path / "f", config)
    assert (tmp_path / "f" / "filters.png").read_bytes() == before
    with pytest.raises(PlanMismatch):
        featx.show_filters("vgg-mini", tmp_path / "f", config)
    assert json.loads((tmp_path / "f" / "show.json").read_text())["files"] == ["filters.png", "filters.npz"]
