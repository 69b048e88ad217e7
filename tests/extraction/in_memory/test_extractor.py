"""`featx.Extractor`: images in memory give the rows of `featx extract`, whatever they are held as and beside."""

from __future__ import annotations

import io
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import write_photo
from PIL import Image, ImageFile
from sklearn.base import clone
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from torchvision import tv_tensors

import featx
from featx.errors import FeatxError, ImageError, UnknownBackbone, UnknownLayer, UsageError
from featx.status import Status

NET, LAYERS = "alexnet-mini", ["conv3", "fc7"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """37 photos, more than a block of 32, the last of them a PNG with transparency."""
    path = tmp_path_factory.mktemp("photos")
    for index in range(36):
        write_photo(path / "abc"[index % 3] / f"{index:02d}.jpg", index, (70 + index, 64))
    pixels = np.random.default_rng(0).integers(0, 256, (60, 50, 4), np.uint8)
    Image.fromarray(pixels).save(path / "c" / "36.png")
    return path


@pytest.fixture(scope="module")
def extracted(folder, tmp_path_factory):
    """The features file that the command makes of them."""
    path = tmp_path_factory.mktemp("features") / "f.h5"
    featx.extract_features(folder, path, featx.ExtractConfig(backbone=NET, layers=LAYERS))
    return featx.open_features(path)


@pytest.fixture(scope="module")
def extractor():
    with featx.Extractor(NET, LAYERS) as made:
        yield made


def same(found, features, rows=slice(None)) -> bool:
    return all(np.array_equal(found[layer], features[layer][rows]) for layer in LAYERS)


@pytest.mark.parametrize(
    "options",
    [{"views": "ten"}, {"views": "corners", "aggregate": "stack"}, {"crop_mode": "pad", "pad_color": "1,2,3"},
     {"mean": (0.5, 0.4, 0.3), "std": 0.25, "interpolation": "bicubic", "grey": True}],
)  # fmt: skip
def test_images_prepared_by_hand_are_those_of_the_command(folder, tmp_path, options):
    asked = {"fit" if name == "crop_mode" else name: value for name, value in options.items()}
    featx.extract_features(folder, tmp_path / "f.h5", featx.ExtractConfig(backbone=NET, layers=LAYERS, **asked))
    features = featx.open_features(tmp_path / "f.h5")
    with featx.Extractor(NET, LAYERS, **options) as made:
        assert same(made([folder / path for path in features.paths[:3]]), features, slice(3))


def test_rows_are_those_of_the_command_bit_for_bit(folder, extracted, extractor):
    paths = [folder / path for path in extracted.paths]
    found = extractor(paths)
    assert list(found) == LAYERS
    assert found["conv3"].shape == (37, 256, 8, 8)
    assert found["fc7"].dtype == np.float32
    assert same(found, extracted)
    assert found.failures == extractor.failures == []


def test_a_row_does_not_depend_on_how_many_images_are_beside_it(folder, extracted, extractor):
    paths = [folder / path for path in extracted.paths]
    for rows in ([0], [36], [5, 4], [7, 7, 7], list(range(19)), list(range(36, -1, -1)), list(range(37)) * 2):
        assert same(extractor([paths[row] for row in rows]), extracted, rows), rows
    alone = featx.Extractor(NET, LAYERS, workers=1)
    assert same(alone(paths), extracted)


def test_blocks_are_filled_up_where_a_network_rounds_otherwise_in_small_ones(folder, extracted, monkeypatch):
    from featx.extraction.cpu_kernels import packing

    usual = packing._product

    def product(*layer):
        whole = usual(*layer)
        return lambda values: whole(values) * (1 if len(values) >= 4 else 1 + 2**-20)

    monkeypatch.setattr(packing, "_product", product)
    careful = featx.Extractor(NET, LAYERS)
    paths = [folder / path for path in extracted.paths]
    assert not careful.load()._ready()._may_be_partial
    assert same(careful(paths[3]), extracted, [3])


def held_as(how: str, path):
    if how == "path":
        return str(path)
    if how == "bytes":
        return path.read_bytes()
    if how == "bytearray":
        return bytearray(path.read_bytes())
    if how == "file":
        return io.BytesIO(path.read_bytes())
    with Image.open(path) as image:
        image.load()
    if how == "pillow":
        return image
    if how == "array":
        return np.asarray(image)
    assert how == "tensor"
    return torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1)


@pytest.mark.parametrize("how", ["path", "bytes", "bytearray", "file", "pillow", "array", "tensor"])
def test_whatever_an_image_is_held_as_its_values_are_the_same(how, folder, extracted, extractor):
    rows = [1, 20, 36] if how != "tensor" else [1, 20]
    images = [held_as(how, folder / extracted.paths[row]) for row in rows]
    assert same(extractor(images), extracted, rows)
    again = [held_as(how, folder / extracted.paths[row]) for row in rows]
    assert same(extractor(iter(again)), extracted, rows)
    assert same(extractor(held_as(how, folder / extracted.paths[rows[0]])), extracted, rows[:1])


def test_one_array_or_tensor_holds_several_images_of_one_size(extractor):
    pixels = np.random.default_rng(1).integers(0, 256, (5, 40, 50, 3), np.uint8)
    expected = extractor(list(pixels))["fc7"]
    assert np.array_equal(extractor(pixels)["fc7"], expected)
    assert np.array_equal(extractor(torch.from_numpy(pixels).permute(0, 3, 1, 2))["fc7"], expected)


def test_numbers_of_other_types_mean_the_same_levels(extractor):
    levels = np.random.default_rng(2).integers(0, 256, (50, 60, 3), np.uint8)
    expected = extractor(levels)["fc7"]
    assert np.array_equal(extractor(levels.astype(np.uint16) * 257)["fc7"], expected)
    for dtype in (np.float32, np.float64):
        assert np.array_equal(extractor((levels / 255).astype(dtype))["fc7"], expected)
    assert np.array_equal(extractor(torch.from_numpy(levels / 255).permute(2, 0, 1))["fc7"], expected)
    grey = levels[..., 0]
    assert np.array_equal(extractor(grey)["fc7"], extractor(np.repeat(grey[..., None], 3, 2))["fc7"])
    clear = np.concatenate([levels, np.zeros((50, 60, 1), np.uint8)], 2)  # transparent: white shows
    assert np.array_equal(extractor(clear)["fc7"], extractor(np.full((50, 60, 3), 255, np.uint8))["fc7"])


def test_images_that_cannot_be_used_are_named_or_become_nan(folder, extracted):
    good = folder / extracted.paths[0]
    images = [good, b"", b"not an image", folder / "none.jpg", np.zeros((4, 4, 7)), np.full((4, 4), 300.0), 3, good]
    strict = featx.Extractor(NET, LAYERS)
    with pytest.raises(ImageError, match=r"6 images of 8 cannot be used: image 1: empty: .*on_error='nan'") as raised:
        strict(images)
    assert [failure.row for failure in raised.value.failures] == [1, 2, 3, 4, 5, 6]
    found = strict.set_params(on_error="nan")(images)
    assert [(f.row, f.status) for f in found.failures] == [
        (1, Status.EMPTY), (2, Status.NOT_AN_IMAGE), (3, Status.MISSING),
        (4, Status.UNSUPPORTED), (5, Status.UNSUPPORTED), (6, Status.NOT_AN_IMAGE),
    ]  # fmt: skip
    assert found.failures[2].path.endswith("none.jpg")
    assert "from 300 to 300; they must be from 0 to 1" in found.failures[4].reason
    assert np.isnan(found["fc7"][1:7]).all()
    assert same({layer: values[[0, 7]] for layer, values in found.items()}, extracted, [0, 0])


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"backbone": "alexnett"}, UnknownBackbone, "Nearest: 'alexnet'"),
        ({"backbone": NET, "layers": "fc9"}, UnknownLayer, "Nearest: "),
        ({"backbone": NET, "on_error": "skip"}, UsageError, "on_error is 'skip'; it can be 'raise' or 'nan'"),
        ({"backbone": NET, "precision": "fp16"}, UsageError, "needs a GPU"),
    ],
)
def test_bad_parameters_are_refused_when_it_is_loaded(options, error, text):
    with pytest.raises(error, match=text):
        featx.Extractor(**options).load()


def test_what_is_neither_one_image_nor_several_is_refused(extractor):
    with pytest.raises(UsageError, match=r"an array of shape \(5, 40, 50\) is neither one image"):
        extractor(np.zeros((5, 40, 50), np.uint8))
    with pytest.raises(UsageError, match="int is not an image; an image is a path"):
        extractor(7)
    assert extractor([])["fc7"].shape == (0, 384)


def test_an_iterator_is_read_in_portions(folder, extracted, monkeypatch):
    monkeypatch.setattr("featx.extraction.in_memory.threads._BLOCKS_AT_ONCE", 1)
    held, most = 0, 0

    class Held:
        """Counts itself among the images that are held."""

        def __init__(self, content: bytes) -> None:
            nonlocal held, most
            self.content, held = content, held + 1
            most = max(most, held)

        def __del__(self) -> None:
            nonlocal held
            held -= 1

        def read(self) -> bytes:
            return self.content

    small = featx.Extractor(NET, LAYERS, batch_size=2, workers=2)
    contents = ((folder / path).read_bytes() for path in extracted.paths)
    found = small(Held(content) for content in contents)
    assert len(found["fc7"]) == 37
    assert most <= 9


def test_several_threads_may_call_it_at_once(folder, extracted, extractor):
    paths = [folder / path for path in extracted.paths]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda row: extractor(paths[row])["fc7"], range(37)))
    assert np.array_equal(np.concatenate(found), extracted["fc7"])


def test_a_host_programs_settings_stay_as_they_were(folder, extracted, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        own = featx.Extractor(NET, LAYERS, on_error="nan")
        path = folder / extracted.paths[1]
        assert same(own(path), extracted, [1]), "the host's limit of 1,000 pixels is not ours"
        cut = own(path.read_bytes()[:-400])
        assert [f.status for f in cut.failures] == [Status.DAMAGED], "half a picture is not accepted"
        started = []
        thread = threading.Thread(target=lambda: started.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert (torch.get_num_threads(), started) == (2, [2])
    finally:
        torch.set_num_threads(before)
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES) == (1000, True)


def test_specs_say_what_each_layer_is(extractor):
    conv3 = extractor.specs["conv3"]
    assert (conv3.node, conv3.relu, conv3.shape, conv3.dtype) == ("features.10", "after", (256, 8, 8), "float32")
    # 5 (stride 2), pool 3 (2), 5, pool 3 (2), 3: 5 + 2*2 + 4*4 + 2*4 + 2*8 pixels, by hand.
    assert (conv3.receptive_field, conv3.stride) == ((49, 49), (8, 8))
    assert extractor.specs["fc7"].receptive_field is None


def test_the_fingerprint_changes_with_what_values_depend_on_and_with_nothing_else(extractor):
    prints = {
        name: featx.Extractor(NET, LAYERS, **options).fingerprint
        for name, options in {
            "same": {"workers": 1, "on_error": "nan"}, "weights": {"weights": "random:0"}, "mirror": {"mirror": True},
        }.items()
    }  # fmt: skip
    assert prints["same"] == extractor.fingerprint
    assert len(set(prints.values())) == 3


def test_it_is_a_scikit_learn_transformer(folder, extracted, extractor):
    paths = [str(folder / path) for path in extracted.paths]
    found = extractor.fit_transform(paths)
    assert np.array_equal(found, np.concatenate([extracted["conv3"].reshape(37, -1), extracted["fc7"]], 1))
    names = extractor.get_feature_names_out()
    assert (len(names), names[0], names[-1]) == (found.shape[1], "conv3_0", "fc7_383")
    for other in (clone(extractor), pickle.loads(pickle.dumps(extractor))):
        assert other.get_params() == extractor.get_params()
        assert np.array_equal(other(paths[0])["fc7"], extracted["fc7"][:1])
    frame = featx.Extractor(NET, "fc7").set_output(transform="pandas").fit_transform(paths[:2])
    assert frame.shape == (2, 384)
    assert frame.columns[1] == "fc7_1"
    labels = [path.split("/")[-2] for path in paths]
    pipeline = make_pipeline(featx.Extractor(NET, layers="fc7"), featx.LinearSVM(C=0.1))
    whole = cross_val_score(featx.LinearSVM(C=0.1), extracted["fc7"], labels, cv=3)
    assert np.array_equal(cross_val_score(pipeline, paths, labels, cv=3), whole)


def test_a_changed_parameter_takes_effect(folder, extracted):
    path = folder / extracted.paths[2]
    own = featx.Extractor(NET, "fc7")
    before = own(path)["fc7"]
    own.mirror = True
    assert not np.array_equal(own(path)["fc7"], before)
    assert np.array_equal(own.set_params(mirror=False)(path)["fc7"], before)


def test_after_a_fork_it_says_what_to_do(folder, extracted, extractor):
    extractor.load()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            extractor(folder / extracted.paths[0])
            text = "no error"
        except FeatxError as error:
            text = str(error)
        os.write(writing, text.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        assert "before this process was forked" in answer.read()
    os.waitpid(child, 0)


def test_a_closed_network_is_loaded_again_when_it_is_used(folder, extracted):
    with featx.Extractor(NET, LAYERS) as own:
        network = own._ready()
    with pytest.raises(FeatxError, match="it was closed"):
        network(folder / extracted.paths[0])
    assert same(own(folder / extracted.paths[0]), extracted, [0])


def test_the_default_layer_is_fc7_or_the_penultimate():
    assert list(featx.Extractor(NET, weights="random:0").specs) == ["fc7"]
    other = featx.Extractor("resnet18", weights="random:0", crop=64)
    assert {name: spec.shape for name, spec in other.specs.items()} == {"penultimate": (512,)}


@pytest.mark.parametrize(("images", "message"), [
    (np.zeros(600, np.uint8), "not flattened"),
    (np.zeros((3, 40, 50), np.uint8), r"colours first\? They belong last"),
    (np.zeros((40, 50, 1), np.uint8), r"array\[\.\.\., 0\]"),
    (torch.zeros(40, 50), r"a tensor of shape \(40, 50\) is neither"),
])  # fmt: skip
def test_an_array_that_is_no_image_says_what_to_do(images, message):
    with pytest.raises(UsageError, match=message):
        featx.Extractor("alexnet-mini", weights="random:0", device="cpu")(images)


@pytest.mark.parametrize(("low", "high", "hint"), [(0, 255, "divide by 255"), (-2, 2.5, "already normalised")])
def test_floats_out_of_range_say_what_they_look_like(low, high, hint):
    image = np.linspace(low, high, 40 * 50 * 3).reshape(40, 50, 3)
    with pytest.raises(ImageError, match=hint):
        featx.Extractor("alexnet-mini", weights="random:0", device="cpu")(image)


def test_no_layers_are_not_the_default_layer():
    with pytest.raises(UnknownLayer, match="has no layer ''"):
        featx.Extractor("alexnet-mini", layers=[], weights="random:0", device="cpu").load()


def test_a_batch_of_columns_comes_back_with_the_layers(folder, extracted):
    contents = [(folder / path).read_bytes() for path in extracted.paths[:3]] + [b"no image"]
    with featx.Extractor(NET, LAYERS, on_error="nan") as made:
        for name, column in (
            ("bytes", contents),
            ("image", [{"bytes": content, "path": None} for content in contents]),
            (
                "image",
                [{"bytes": None, "path": str(folder / path)} for path in extracted.paths[:3]]
                + [{"bytes": b"no image", "path": "x"}],
            ),
        ):
            batch = {name: np.array(column, dtype=object), "path": np.array(["a", "b", "c", "d"])}
            found = made(batch)
            assert list(found) == ["path", *LAYERS, "status", "reason"]
            assert all(np.array_equal(found[layer][:3], extracted[layer][:3]) for layer in LAYERS)
            assert np.isnan(found["fc7"][3]).all()
            assert found["status"].tolist() == ["done"] * 3 + ["not_an_image"]
            assert found["path"].tolist() == ["a", "b", "c", "d"]
            assert found["reason"][3]
        with pytest.raises(UsageError, match="with the columns x, path holds no images"):
            made({"x": [1], "path": ["a"]})
        with pytest.raises(UsageError, match="has a column fc7 already"):
            made({"bytes": contents, "fc7": [0] * 4})


TURNED = (6, 8, 3)


def on_its_side(path, orientation: int) -> Image.Image:
    """A lazily opened JPEG whose EXIF says that it lies on its side."""
    pixels = np.random.default_rng(orientation).integers(0, 256, (40, 70, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, quality=95, exif=exif)
    return Image.open(io.BytesIO(path.read_bytes()))


@pytest.mark.parametrize("exif", [False, True])
def test_pil_images_are_turned_as_their_files_are(tmp_path, exif):
    extractor = featx.Extractor(NET, LAYERS, exif=exif)
    paths = [tmp_path / f"{orientation}.jpg" for orientation in TURNED]
    images = [on_its_side(path, orientation) for path, orientation in zip(paths, TURNED, strict=True)]
    expected = extractor(paths)
    assert same(extractor(images), expected)
    assert same(extractor([image.convert("RGB") for image in images]), expected)
    if exif:
        with Image.open(paths[0]) as image:
            assert same(extractor(np.asarray(image.transpose(Image.Transpose.ROTATE_270))), expected, [0])


def test_a_lazily_opened_image_may_be_listed_many_times(tmp_path):
    extractor = featx.Extractor(NET, LAYERS, workers=8)
    path = tmp_path / "a.webp"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)).save(path, lossless=True)
    expected = extractor(path)
    for _ in range(10):
        with Image.open(path) as image:
            assert same(extractor([image] * 64), {n: v[[0] * 64] for n, v in expected.items()})


class Broken(io.BytesIO):
    def read(self, size=-1):
        raise ConnectionResetError("gone")


def cut_off(path) -> Image.Image:
    write_photo(path, 0, (300, 300))
    return Image.open(io.BytesIO(path.read_bytes()[:2000]))


def closed(path) -> Image.Image:
    write_photo(path, 0, (30, 30))
    image = Image.open(io.BytesIO(path.read_bytes()))
    image.close()
    return image


@pytest.mark.parametrize(
    ("make", "status", "reason"),
    [
        (cut_off, Status.DAMAGED, "truncated"),
        (closed, Status.DAMAGED, "ValueError"),
        (lambda _: Broken(), Status.UNREADABLE, "ConnectionResetError: gone"),
        (lambda path: f"{path}\0", Status.MISSING, "no name of a file"),
        (lambda path: f"{path}\ud800", Status.MISSING, "no name of a file"),
        (lambda _: Image.new("RGB", (0, 0)), Status.EMPTY, "0 x 0"),
        (lambda _: torch.zeros(3, 8, 8).to_sparse(), Status.UNSUPPORTED, "without plain pixels"),
        (lambda _: torch.zeros(3, 8, 8, device="meta"), Status.UNSUPPORTED, "without plain pixels"),
        (lambda _: np.ma.masked_array(np.zeros((8, 8)), np.eye(8)), Status.UNSUPPORTED, "array.filled"),
    ],
)
def test_no_image_ends_the_others(tmp_path, folder, extracted, make, status, reason):
    good = folder / extracted.paths[0]
    found = featx.Extractor(NET, LAYERS, on_error="nan")([good, make(tmp_path / "a.jpg"), good])
    assert [(f.row, f.status) for f in found.failures] == [(1, status)]
    assert reason in found.failures[0].reason
    assert same({layer: values[[0, 2]] for layer, values in found.items()}, extracted, [0, 0])


def test_tensors_of_torchvision_and_either_order_of_bytes(extractor):
    levels = np.random.default_rng(2).integers(0, 256, (3, 50, 60), np.uint8)
    expected = extractor(levels.transpose(1, 2, 0))["fc7"]
    assert np.array_equal(extractor(tv_tensors.Image(torch.from_numpy(levels)))["fc7"], expected)
    sixteen = levels.transpose(1, 2, 0).astype(">u2") * 257
    assert np.array_equal(extractor(sixteen)["fc7"], expected)


def test_a_set_has_no_order(extractor, folder):
    with pytest.raises(UsageError, match="a set has no order"):
        extractor({str(folder / "a" / "00.jpg")})
