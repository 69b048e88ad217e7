"""`featx show top` against brute force, captum and autograd; and as a user runs it."""

from __future__ import annotations

import csv
import json
import shutil
import zipfile

import captum.attr
import numpy as np
import pytest
import torch
from conftest import SHARED, write_photo
from torch import nn

from featx.errors import PlanMismatch, UsageError
from featx.explain.patches import boxes_of, cut
from featx.explain.subject import load_subject
from featx.explain.units import chosen_units, project, strongest

SQUEEZENET = SHARED / "squeezenet" / "squeezenet1_0.safetensors"


def table_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def subject_and_layer(name, layer, **options):
    subject = load_subject(name, layer, device="cpu", **options)
    return subject, next(one for one in subject.recipe.layers if one.name == layer)


class OneLayer(nn.Module):
    def __init__(self, network, layer):
        super().__init__()
        self.network, self.layer = network, layer

    def forward(self, images):
        return self.network(images)[self.layer].flatten(1)


@pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU")
@pytest.mark.parametrize(
    ("name", "layer"),
    [("alexnet-mini", "conv5"), ("alexnet-mini", "fc6"), ("vgg-mini", "pool3"), ("squeezenet1_0", "features.8")],
)
def test_the_projection_is_captums_deconvolution_of_one_activation(name, layer):
    weights = "default"
    if name == "squeezenet1_0":
        if not SQUEEZENET.exists():
            pytest.skip("the real weights are not on this machine")
        weights = str(SQUEEZENET)
    subject, one = subject_and_layer(name, layer, weights=weights)
    inputs = torch.randn((3, 3, subject.side, subject.side), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        values = subject.network(inputs)[layer]
    units = values.reshape(3, values.shape[1], -1).amax(2).argmax(1).numpy()
    found = project(subject, one, inputs, units)
    for place, unit in enumerate(units):
        own = values[place, unit]
        assert found.activations[place] == pytest.approx(float(own.max()), rel=1e-5)
        position = tuple(found.positions[place]) if own.ndim else (0, 0)
        assert own.reshape(-1).argmax() == np.ravel_multi_index(position, tuple(own.shape) or (1, 1))
        target = int(np.ravel_multi_index((unit, *position) if own.ndim else (unit,), tuple(values.shape[1:])))
        right = captum.attr.Deconvolution(OneLayer(subject.network, layer)).attribute(
            inputs[place : place + 1].clone().requires_grad_(), target=target
        )[0]
        right = (right * own.max()).detach().numpy()
        assert np.abs(found.projections[place] - right).max() <= 3e-6 * np.abs(right).max()
        assert np.abs(right).max() > 0


def test_without_a_relu_it_is_the_activation_times_its_gradient():
    subject, one = subject_and_layer("lenet5", "C3", weights="random:0")
    inputs = torch.randn((2, 3, 32, 32), generator=torch.Generator().manual_seed(0), requires_grad=True)
    found = project(subject, one, inputs, np.array([2, 7]))
    values = subject.network(inputs)["C3"]
    for place, unit in enumerate((2, 7)):
        best = values[place, unit].max()
        (right,) = torch.autograd.grad(best, inputs, retain_graph=True)
        right = (best.detach() * right)[place].numpy()
        assert np.abs(found.projections[place] - right).max() <= 1e-6 * np.abs(right).max()


@pytest.mark.parametrize(
    ("name", "layer"), [("alexnet-mini", "conv3"), ("resnet18", "layer1"), ("vgg-mini", "pool2")]
)
def test_the_receptive_field_is_where_the_gradient_is(name, layer):
    weights = "default" if "mini" in name else "random:0"
    subject, one = subject_and_layer(name, layer, weights=weights)
    side = subject.side
    noise = torch.randn((1, 3, side, side), generator=torch.Generator().manual_seed(0), requires_grad=True)
    maps = subject.network(noise)[layer][0].sum(0)
    for y, x in ((0, 0), (2, maps.shape[1] - 1), (maps.shape[0] // 2, 3)):
        (gradient,) = torch.autograd.grad(maps[y, x], noise, retain_graph=True)
        rows, columns = (gradient[0].abs().sum(0) > 0).nonzero(as_tuple=True)
        top, left, height, width = boxes_of(subject, one, np.array([[y, x]]))[0]
        assert top <= rows.min()
        assert rows.max() < top + height
        assert left <= columns.min()
        assert columns.max() < left + width
        inside = top >= 0 and left >= 0 and top + height <= side and left + width <= side
        if inside and name != "vgg-mini":  # max pooling lets one of its values back
            assert (rows.max() - rows.min() + 1, columns.max() - columns.min() + 1) == (height, width)


def test_beyond_the_border_is_grey():
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    found = cut(image, np.array([-1, 2, 2, 4]), 128)
    assert (found[0] == 128).all()
    assert (found[1, 1:] == 128).all()
    np.testing.assert_array_equal(found[1, 0], image[0, 2])
    assert (cut(image, np.array([5, 5, 2, 2]), 7) == 7).all()


def test_the_strongest_are_those_of_a_full_sort():
    drawn = np.random.default_rng(0).integers(-3, 6, (60, 7)).astype(np.float32)
    drawn[:, 3] = np.abs(drawn[:, 3])
    drawn[:, 4] = 0
    drawn[[4, 9]] = np.nan
    found = strongest(drawn, np.arange(7), 9)
    for unit in range(7):
        order = sorted((row for row in range(60) if row not in (4, 9)), key=lambda row: (-drawn[row, unit], row))
        if unit in (3, 4):
            order = [row for row in order if drawn[row, unit] > 0]
        right = [*order[:9], *[-1] * (9 - len(order[:9]))]
        assert found.rows[unit].tolist() == right
    assert (found.rows[4] == -1).all()
    assert np.isnan(found.activations[4]).all()


def test_units_by_name():
    assert chosen_units("7,0,3-5", 64, 0).tolist() == [0, 3, 4, 5, 7]
    drawn = chosen_units("random:5", 64, 1)
    assert len(set(drawn.tolist())) == 5
    assert drawn.tolist() == sorted(drawn.tolist())
    assert chosen_units("random:5", 64, 1).tolist() == drawn.tolist() != chosen_units("random:5", 64, 2).tolist()
    assert chosen_units("random:99", 4, 0).tolist() == chosen_units("all", 4, 0).tolist() == [0, 1, 2, 3]
    for wrong in ("64", "5-3", "first", "", "random:0", "1,,2"):
        with pytest.raises(UsageError, match="--units"):
            chosen_units(wrong, 64, 0)


@pytest.fixture
def many(tmp_path):
    folder = tmp_path / "many"
    for seed in range(14):
        write_photo(folder / f"{seed:02d}.png", seed, (80, 70))
    shutil.copy(folder / "02.png", folder / "99-copy.png")
    return folder


def test_top_of_images_and_of_a_features_file(many, tmp_path, featx):
    done = featx("show", "top", many, "-b", "alexnet-mini", "-l", "conv2,fc6", "--units", "0-17", "--k", "3", "-o",
                 tmp_path / "top")  # fmt: skip
    assert done.status == 0, done.err
    network = load_subject("alexnet-mini", "conv2,fc6", device="cpu")
    paths = sorted(many.glob("*.png"))
    pixels = network.pixels(paths)
    with torch.no_grad():
        outputs = network.network(network.normalised(pixels))
    rows = table_of(tmp_path / "top" / "top.csv")
    assert [row["path"] for row in rows if row["path"] == "99-copy.png"] == []
    for layer in ("conv2", "fc6"):
        values = outputs[layer].flatten(2).amax(2) if layer == "conv2" else outputs[layer]
        for unit in range(18):
            own = [row for row in rows if (row["layer"], row["unit"]) == (layer, str(unit))]
            right = values[:14, unit].sort(descending=True).values
            right = right[right > 0][:3].tolist()
            np.testing.assert_allclose([float(row["activation"]) for row in own], right, rtol=1e-4, atol=1e-5)
    with np.load(tmp_path / "top" / "top.conv2.1.npz") as one, np.load(tmp_path / "top" / "top.conv2.2.npz") as two:
        assert (len(one["units"]), two["units"].tolist()) == (16, [16, 17])
        place = int(np.argmax(one["rows"][:, 0] >= 0))
        box, row = one["boxes"][place, 0], one["rows"][place, 0]
        np.testing.assert_array_equal(one["patches"][place, 0], cut(pixels[row], box, 128))
        assert np.abs(one["projections"][place, 0]).max() == 1
    assert (tmp_path / "top" / "top.fc6.1.png").stat().st_size > 10_000

    file = tmp_path / "maps.h5"
    assert featx("extract", many, "-b", "alexnet-mini", "-l", "conv2", "-o", file).status == 0
    done = featx("show", "top", file, "--units", "0-17", "--k", "3", "-o", tmp_path / "again", "--format", "svg")
    assert done.status == 0, done.err
    again = table_of(tmp_path / "again" / "top.csv")
    assert again == [row for row in rows if row["layer"] == "conv2"]
    assert (tmp_path / "again" / "top.conv2.2.svg").read_text().startswith("<?xml")


def test_a_killed_one_goes_on_and_a_changed_image_is_refused(many, tmp_path, featx):
    command = ("show", "top", many, "-b", "alexnet-mini", "-l", "conv1", "--units", "0-17", "--k", "2", "-o",
               tmp_path / "top")  # fmt: skip
    assert featx(*command).status == 0
    whole = (tmp_path / "top" / "top.csv").read_bytes()
    record = tmp_path / "top" / "show.json"
    found = json.loads(record.read_text())
    kept = tmp_path / "top" / "top.conv1.1.png"
    for name in ("top.csv", "top.conv1.2.png"):
        (tmp_path / "top" / name).unlink()
    record.write_text(json.dumps({**found, "files": [], "columns": ["unfinished"], "rows": []}))
    before = kept.stat().st_mtime_ns
    assert featx(*command).status == 0
    assert (tmp_path / "top" / "top.csv").read_bytes() == whole
    assert kept.stat().st_mtime_ns == before
    assert "already" in featx(*command).err
    other = featx(*command[:-3], "3", *command[-2:])
    assert other.status == PlanMismatch.exit_status
    assert "--k 2, now 3" in other.err

    assert (
        featx("extract", many, "-b", "alexnet-mini", "-l", "conv1", "--pool", "max", "-o", tmp_path / "x.h5").status
        == 0
    )
    for path in many.glob("*.png"):
        write_photo(path, 100, (80, 70))
    done = featx("show", "top", tmp_path / "x.h5", "-o", tmp_path / "other")
    assert done.status == 2
    assert "has changed since its features were extracted" in done.err


def test_top_of_a_zip(many, tmp_path, featx):
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for path in sorted(many.glob("*.png")):
            archive.write(path, path.name)
    done = featx("show", "top", tmp_path / "many.zip", "-b", "alexnet-mini", "-l", "conv5", "--units", "3", "-o",
                 tmp_path / "top")  # fmt: skip
    assert done.status == 0, done.err


def test_what_cannot_be_shown_is_said(many, tmp_path, featx):
    def refusal(*words):
        done = featx("show", "top", *words, "-o", tmp_path / "no")
        assert done.status == 2, done.err
        return done.err

    assert "--units" in refusal(many, "-b", "alexnet-mini", "-l", "conv1", "--units", "999")
    file = tmp_path / "avg.h5"
    featx("extract", many, "-b", "alexnet-mini", "-l", "conv1", "--pool", "avg", "-o", file)
    assert "from which the largest activation cannot be told" in refusal(file)
    assert "--exif is for images" in refusal(file, "--exif")
    assert "--weights-file is for a features file" in refusal(many, "--weights-file", "x.pt")
    tokens = featx(
        "show", "top", many, "-b", "vit_b_16", "-w", "random:0", "-l", "encoder.ln", "-o", tmp_path / "vit"
    )
    assert tokens.status == 2
    assert "tokens" in tokens.err
