"""Videos as sources: frames are those of the decoder, flow is what moved, and a clip is one thing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import featx
from featx.errors import PlanMismatch, SourceError, UsageError
from featx.images.contents import copies_in
from featx.images.sources.scan import scan
from featx.networks.load import load_network
from featx.networks.weights import weights_of
from featx.runtime.progress import Reporter
from featx.status import Status

av = pytest.importorskip("av", reason="pip install 'featx[video]'")
cv2 = pytest.importorskip("cv2", reason="pip install 'featx[video]'")

NET, SIDE, FRAMES = "alexnet-mini", 64, 14
STEPS = {"left": (-3, 0), "down": (0, 3)}


def write_clip(path, texture, step, frames=FRAMES):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)  # without loss
        stream.width = stream.height = SIDE
        stream.pix_fmt = "bgr0"
        for number in range(frames):
            moved = np.roll(texture, (step[1] * number, step[0] * number), (0, 1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(moved), format="rgb24")))
        container.mux(stream.encode())


def texture(seed):
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Two textures that move left and down, a clip of five frames, and a file that is no video."""
    folder = tmp_path_factory.mktemp("videos") / "clips"
    for label, step in STEPS.items():
        for seed in (0, 1):
            write_clip(folder / label / f"{seed}.mkv", texture(seed), step)
    write_clip(folder / "left" / "short.mkv", texture(2), STEPS["left"], frames=5)
    (folder / "down" / "broken.mp4").write_bytes(b"no video" * 50)
    return folder


def config(net=NET, layers="fc7", **options):
    return featx.ExtractConfig(backbone=net, layers=layers, device="cpu", max_bad=1.0, **options)


@pytest.fixture(scope="module")
def frames(clips, tmp_path_factory):
    path = tmp_path_factory.mktemp("frames") / "f.h5"
    featx.extract_features(f"frames:3:{clips}", path, config())
    return featx.open_features(path)


def test_frames_are_the_evenly_spaced_ones_and_their_rows_those_of_pictures_of_them(clips, frames, tmp_path):
    assert frames.paths[:4] == [f"down/0.mkv#frame={number}/3" for number in range(3)] + ["down/1.mkv#frame=0/3"]
    assert [frames.classes[label] for label in frames.labels[[0, -1]]] == ["down", "left"]
    for number, place in enumerate([2, 7, 11]):  # the middles of three parts of 14
        moved = np.roll(texture(0), (3 * place, 0), (0, 1))
        (tmp_path / "pictures").mkdir(exist_ok=True)
        Image.fromarray(moved).save(tmp_path / "pictures" / f"{number}.png")
    featx.extract_features(tmp_path / "pictures", tmp_path / "p.h5", config())
    np.testing.assert_array_equal(frames["fc7"][:3], featx.open_features(tmp_path / "p.h5")["fc7"])
    assert featx.verify_file(frames.path, featx.VerifyConfig(all=True)).passed
    broken = [row for row, path in enumerate(frames.paths) if "broken" in path]
    assert (frames.status[broken] == Status.DAMAGED).all()
    assert "cannot be decoded" in frames.failures()[0].reason
    before = frames.path.stat().st_mtime_ns
    featx.extract_features(clips, frames.path, config(frames=3))  # the same by the option
    with pytest.raises(UsageError, match="says already how many frames"):
        featx.extract_features(f"frames:3:{clips}", frames.path, config(frames=3))
    assert frames.path.stat().st_mtime_ns == before


def test_a_stack_of_flow_says_what_moved(clips):
    manifest = scan(f"flow:2x{SIDE}:{clips}")
    from featx.images.sources.containers import open_container

    container = open_container(manifest.kind, manifest.root)
    for label, (dx, dy) in STEPS.items():
        content = container.read(f"{label}/0.mkv#flow=1/2x{SIDE}".encode())
        mosaic = np.frombuffer(content.split(b"\n", 3)[3], np.uint8).reshape(3 * SIDE, 3 * SIDE, 3)
        for channel in range(20):
            tile, colour = divmod(channel, 3)
            top, left = SIDE * (tile // 3), SIDE * (tile % 3)
            levels = mosaic[top + 12 : top + SIDE - 12, left + 12 : left + SIDE - 12, colour].astype(float)
            moved = (np.median(levels) - 128) / 127 * 20
            assert moved == pytest.approx((dx, dy)[channel % 2], abs=0.4), (label, channel)
        rest = mosaic[2 * SIDE :, SIDE:]  # two tiles and a colour are left over
        assert (rest == 128).all()
    container.close()


def test_the_first_convolution_of_flow_is_the_mean_of_the_pretrained_one(clips, tmp_path):
    source = f"flow:2x{SIDE}:{clips}"
    featx.extract_features(source, tmp_path / "f.h5", config(f"{NET}-flow", "features.0,fc7"))
    made = featx.open_features(tmp_path / "f.h5")
    assert featx.verify_file(made.path, featx.VerifyConfig(rows=3)).passed
    short = [failure for failure in made.failures() if "short" in failure.path]
    assert short[0].reason == "the clip has 5 frames; a stack of flow needs 11"
    plain = load_network(NET, weights_of(NET, "default")).network
    first = next(module for module in plain.modules() if isinstance(module, torch.nn.Conv2d))
    from featx.images.sources.containers import open_container

    manifest = scan(source)
    content = open_container(manifest.kind, manifest.root).read(manifest.paths[0])
    mosaic = np.frombuffer(content.split(b"\n", 3)[3], np.uint8).reshape(3, SIDE, 3, SIDE, 3).astype(np.float64)
    channels = (mosaic.transpose(0, 2, 4, 1, 3).reshape(27, SIDE, SIDE)[:20] - 128) / 255 / 0.25
    kernel = np.repeat(first.weight.detach().double().numpy().mean(1, keepdims=True), 20, axis=1)
    expected = torch.nn.functional.conv2d(
        torch.from_numpy(channels)[None], torch.from_numpy(kernel), None, first.stride, first.padding
    )[0].detach().numpy()  # fmt: skip
    found = made["features.0"][0]
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_flow_and_colours_are_not_mixed_up(clips, tmp_path):
    for source, net, said in (
        (f"flow:2:{clips}", NET, f"{NET} takes colours; {NET}-flow takes optical flow"),
        (f"frames:2:{clips}", f"{NET}-flow", "takes stacks of optical flow of 64 pixels: flow:25x64:CLIPS"),
        (f"flow:2x32:{clips}", f"{NET}-flow", "takes stacks of optical flow of 64 pixels: flow:25x64:CLIPS"),
    ):
        with pytest.raises(UsageError, match=said):
            featx.extract_features(source, tmp_path / "f.h5", config(net))
    with pytest.raises(UsageError, match="takes optical flow as it is"):
        featx.extract_features(f"flow:2x64:{clips}", tmp_path / "f.h5", config(f"{NET}-flow", mirror=True))
    with pytest.raises(UsageError, match="it would mix the channels of flow"):
        featx.finetune_network(
            f"flow:2x64:{clips}", tmp_path / "run", featx.FinetuneConfig(backbone=f"{NET}-flow", augment="flip")
        )
    with pytest.raises(UsageError, match="does not begin with a convolution"):
        featx.list_layers("convnet-mnist-flow")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("frames:0:clips", "of each clip 1 to 10,000 frames can be taken"),
        ("frames:2x64:clips", "only flow has a size"),
        ("flow:2x4:clips", "has 8 to 1,024 pixels a side"),
        ("frames:2:nowhere", "no such folder or file"),
        ("clips/left/0.mkv", r"is a video; say how many of its frames: frames:25:clips/left/0\.mkv"),
    ],
)
def test_sources_that_cannot_be(clips, monkeypatch, source, said):
    monkeypatch.chdir(clips.parent)
    with pytest.raises((UsageError, SourceError), match=said):
        scan(source)


def test_frames_of_a_clip_stay_on_one_side(clips, frames):
    manifest = scan(f"frames:3:{clips}")
    assert copies_in(manifest).tolist() == [row - row % 3 for row in range(len(manifest))]
    report = featx.fit_svm(frames.path, None, featx.FitConfig(c=1.0, test=0.4, seed=1))
    # of three clips of a class, three frames each, one or none is held out whole
    assert report.test % 3 == 0
    assert report.train % 3 == 0
    assert report.test > 0


def test_the_mean_of_each_clip_is_a_features_file(frames, tmp_path):
    report = featx.average_features(frames.path, tmp_path / "c.h5")
    made = featx.open_features(tmp_path / "c.h5")
    assert (report.groups, report.failed) == (6, 1)
    assert made.paths == ["down/0.mkv", "down/1.mkv", "down/broken.mp4", "left/0.mkv", "left/1.mkv", "left/short.mkv"]
    expected = frames["fc7"].reshape(6, 3, -1).astype(np.float64).mean(1).astype(np.float32)
    np.testing.assert_array_equal(made["fc7"], expected)
    assert featx.verify_file(made.path).passed
    before = made.path.stat().st_mtime_ns
    featx.average_features(frames.path, tmp_path / "c.h5")
    assert made.path.stat().st_mtime_ns == before
    featx.average_features(frames.path, tmp_path / "d.h5", featx.AverageConfig(by=r"^\w+/"))
    assert featx.open_features(tmp_path / "d.h5").paths == ["down/", "left/"]
    with pytest.raises(UsageError, match="has rows of several labels"):
        featx.average_features(frames.path, tmp_path / "e.h5", featx.AverageConfig(by=r"\d\.mkv|broken|short"))
    with pytest.raises(UsageError, match="finds nothing in down/broken"):
        featx.average_features(frames.path, tmp_path / "e.h5", featx.AverageConfig(by=r"(\d)\.mkv"))


def test_heads_decide_together(tmp_path, featx_heads):
    first, second, features, _labels = featx_heads
    report = featx.fuse_heads(
        [(first, features[0]), (second, features[1])], tmp_path / "d.csv", featx.FuseConfig(test=0.25, c=10.0)
    )
    assert (report.train, report.test) == (88, 32)
    for alone in report.alone.values():
        assert alone.accuracy < 0.7
    assert report.average.accuracy > 0.85
    assert report.svm.accuracy > 0.9
    # the mean, by hand
    rows = [line.split(",") for line in (tmp_path / "d.csv").read_text().splitlines()]
    assert rows[0][:5] == ["path", "label", "part", "average", "svm"]
    opened = [featx.open_features(path) for path in features]
    heads = [featx.LinearHead.load(path) for path in (first, second)]
    mean = sum(head.outputs(one["fc7"]) for head, one in zip(heads, opened, strict=True)) / 2
    by_path = {path: heads[0].classes[k] for path, k in zip(opened[0].paths, mean.argmax(1), strict=True)}
    assert all(by_path[row[0]] == row[3] for row in rows[1:])
    assert sum(row[2] == "test" for row in rows[1:]) == 32
    with pytest.raises(UsageError, match="fuse takes several heads"):
        featx.fuse_heads([(first, features[0])])
    (tmp_path / "mine.csv").write_text("a,b\n")
    with pytest.raises(UsageError, match="is not a table of featx fuse"):
        featx.fuse_heads([(first, features[0]), (second, features[1])], tmp_path / "mine.csv")


@pytest.fixture
def featx_heads(tmp_path):
    """Four classes, of which one stream tells the first bit and the other the second."""
    from conftest import write_features

    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 30)
    paths = []
    for number, bit in enumerate((labels // 2, labels % 2)):
        values = generator.normal(0, 0.1, (120, 6)).astype(np.float32)
        values[np.arange(120), bit] += 1
        path = tmp_path / f"{number}.h5"
        write_features(path, values, labels, ("a", "b", "c", "d"))
        featx.fit_softmax(path, tmp_path / f"{number}.safetensors", featx.FitConfig(c=10.0, test=0.25))
        paths.append(path)
    return tmp_path / "0.safetensors", tmp_path / "1.safetensors", paths, labels


# --- what an attack found


def test_a_name_with_a_colon_is_a_name(clips, tmp_path, monkeypatch):
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "a.mkv").write_bytes((clips / "left" / "0.mkv").read_bytes())
    (tmp_path / "v" / "file:a.mkv").write_bytes((clips / "left" / "1.mkv").read_bytes())
    monkeypatch.chdir(tmp_path / "v")
    featx.extract_features("frames:1:.", tmp_path / "f.h5", config())
    found = featx.open_features(tmp_path / "f.h5")
    assert found.paths == ["a.mkv#frame=0/1", "file:a.mkv#frame=0/1"]
    assert np.abs(found["fc7"][0] - found["fc7"][1]).max() > 0.1


def test_a_turned_clip_is_read_as_it_is_shown(tmp_path):
    path = tmp_path / "t.mp4"
    upright = texture(5)[:48]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = SIDE, 48, "yuv420p", 4_000_000
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(upright), format="rgb24")))
        container.mux(stream.encode())
    content = bytearray(path.read_bytes())
    place = content.find(b"tkhd") + 4 + 4 + 36  # of version 0: version and flags, then nine words to the matrix
    assert content[place : place + 4] == b"\x00\x01\x00\x00"
    turned = [0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000]  # a quarter clockwise
    content[place : place + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in turned)
    path.write_bytes(content)
    capture = cv2.VideoCapture(str(path))
    expected = cv2.cvtColor(capture.read()[1], cv2.COLOR_BGR2RGB)
    assert expected.shape == (SIDE, 48, 3)
    from featx.images.sources.video.decode import frames as frames_of

    asked = []
    found = frames_of(path, 40, asked.append)
    pixels = np.frombuffer(found[0].split(b"\n", 3)[3], np.uint8).reshape(SIDE, 48, 3)
    assert np.abs(pixels.astype(int) - expected).mean() < 3
    assert len({id(one) for one in found}) == 3  # a short clip is kept once, however many frames are asked for


def test_copies_of_a_clip_stay_together_and_videos_are_not_joined_into_lists(clips, frames, tmp_path):
    folder = tmp_path / "d"
    for name in ("x", "y"):
        (folder / name).mkdir(parents=True)
        (folder / name / "1.mkv").write_bytes((clips / "left" / "0.mkv").read_bytes())
    (folder / "x" / "2.mkv").write_bytes((clips / "left" / "1.mkv").read_bytes())
    manifest = scan(f"frames:2:{folder}")
    assert [path.decode()[:7] for path in manifest.paths] == ["x/1.mkv"] * 2 + ["x/2.mkv"] * 2 + ["y/1.mkv"] * 2
    assert copies_in(manifest).tolist() == [0, 0, 2, 2, 0, 0]
    featx.extract_features(f"frames:2:{folder}", tmp_path / "f.h5", config())
    from featx.artifacts.head_rows import kept_together

    assert kept_together(featx.open_features(tmp_path / "f.h5"), np.arange(6)).tolist() == [0, 0, 2, 2, 0, 0]
    with pytest.raises((UsageError, PlanMismatch)):
        featx.concat_features([frames.path, tmp_path / "f.h5"], tmp_path / "all.h5")


def test_fuse_works_beside_failed_rows_and_says_what_was_trained_on(featx_heads, tmp_path, capsys):
    from conftest import write_features

    _first, _second, features, labels = featx_heads
    opened = [featx.open_features(path) for path in features]
    hashes = np.random.default_rng(1).integers(1, 256, (120, 32), np.uint8)
    made = []
    for number, one in enumerate(opened):
        path = tmp_path / f"again{number}.h5"
        write_features(path, np.array(one["fc7"]), labels, tuple(one.classes), sha256=hashes, failed=(3, 70))
        featx.fit_softmax(
            path, tmp_path / f"again{number}.safetensors", featx.FitConfig(c=10.0, test=0.25, seed=number)
        )
        made.append((tmp_path / f"again{number}.safetensors", path))
    notes = []

    class Kept(Reporter):
        def note(self, line):
            notes.append(line)

    report = featx.fuse_heads(made, None, featx.FuseConfig(test=0.25, c=10.0), reporter=Kept())
    assert report.train + report.test == 118
    assert len(notes) == 1  # the second was fitted with another seed
    assert "have the bytes of images that" in notes[0]
    with pytest.raises(UsageError, match="each head is named once"):
        featx.fuse_heads([made[0], made[0]])
