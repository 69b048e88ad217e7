"""An ONNX model of a head or a run decides as featx does, given pixels prepared as its metadata say."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import write_photo
from PIL import Image
from torchvision import transforms as T

import featx
from featx.errors import UsageError


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number in range(30):
        write_photo(folder / "abc"[number % 3] / f"{number:02d}.jpg", number, (90, 80))
    return folder


def decided(model, photos):
    """Probabilities or scores by onnxruntime, of photographs prepared by torchvision as the metadata say."""
    about = {entry.key: json.loads(entry.value) for entry in onnx.load(model).metadata_props}
    how = about["preprocess"]
    cut = T.Compose([T.Resize(how["resize"]), T.CenterCrop(how["crop"])])
    pixels = []
    for path in sorted(photos.rglob("*.jpg")):
        with Image.open(path) as image:
            pixels.append(np.asarray(cut(image.convert("RGB"))))
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    found = session.run(None, {"pixels": np.stack(pixels)})  # another number of images than it was exported with
    return about["classes"], dict(zip([output.name for output in session.get_outputs()], found, strict=True))


def expected(model, photos, tmp_path):
    featx.predict_images(model, photos, tmp_path / "p.csv")
    rows = [line.split(",") for line in (tmp_path / "p.csv").read_text().splitlines()]
    return [name.removeprefix("score:") for name in rows[0][2:-1]], np.array([row[2:-1] for row in rows[1:]], float)


@pytest.mark.parametrize(
    ("layer", "extraction", "fit", "kind"),
    [
        ("fc7", {}, {"calibrate": "platt", "normalize": "l2"}, "svm"),
        pytest.param("conv4", {"pool": "spp:1,2"}, {"normalize": "standard"}, "softmax", marks=pytest.mark.slow),
        pytest.param("fc6", {"mean": "0.2", "std": "0.4"}, {}, "svm", marks=pytest.mark.slow),
    ],
)
def test_a_head_decides_the_same_in_onnxruntime(photos, tmp_path, layer, extraction, fit, kind):
    config = featx.ExtractConfig(backbone="alexnet-mini", layers=layer, device="cpu", **extraction)
    featx.extract_features(photos, tmp_path / "f.h5", config)
    fitting = featx.fit_svm if kind == "svm" else featx.fit_softmax
    fitting(tmp_path / "f.h5", tmp_path / "h.safetensors", featx.FitConfig(c=0.1, test=0.0, **fit))
    report = featx.export_onnx(tmp_path / "h.safetensors", tmp_path / "m.onnx")
    assert report.difference < 1e-5
    classes, found = decided(tmp_path / "m.onnx", photos)
    names, values = expected(tmp_path / "h.safetensors", photos, tmp_path)
    assert classes == names
    has_chances = kind == "softmax" or "calibrate" in fit
    assert list(found) == ["scores", *(["probabilities"] if has_chances else [])] == report.outputs
    np.testing.assert_allclose(found[report.outputs[-1]], values, atol=2e-5 if has_chances else 2e-4)
    with pytest.raises(UsageError, match="is there already; --overwrite"):
        featx.export_onnx(tmp_path / "h.safetensors", tmp_path / "m.onnx")


@pytest.mark.slow
def test_a_fine_tuned_network_decides_the_same_in_onnxruntime(photos, tmp_path):
    config = featx.FinetuneConfig(backbone="alexnet-mini", lr="fc", epochs=1, val=0.0, device="cpu")
    featx.finetune_network(photos, tmp_path / "run", config)
    report = featx.export_onnx(tmp_path / "run", tmp_path / "m.onnx")
    classes, found = decided(tmp_path / "m.onnx", photos)
    names, values = expected(tmp_path / "run", photos, tmp_path)
    assert (classes, report.outputs) == (names, ["scores", "probabilities"])
    np.testing.assert_allclose(found["probabilities"], values, atol=2e-5)


def test_heads_of_several_views_have_no_onnx_model(photos, tmp_path):
    config = featx.ExtractConfig(backbone="alexnet-mini", layers="fc7", device="cpu", views="corners", resize=80)
    featx.extract_features(photos, tmp_path / "f.h5", config)
    featx.fit_softmax(tmp_path / "f.h5", tmp_path / "h.safetensors", featx.FitConfig(c=1.0, test=0.0))
    with pytest.raises(UsageError, match="takes 5 views of each image"):
        featx.export_onnx(tmp_path / "h.safetensors", tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()
