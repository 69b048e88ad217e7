"""Pictures are legible: no name covers another, titles fit, every format is what its ending says."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from featx.figures import bars, curves, layer_accuracy, sheets
from featx.figures.colours import class_colour, class_mark
from featx.figures.sheets import Tile, around_grey, draw_sheet, mosaic

LONG = [f"features.denseblock{block}.denselayer{layer}.conv2" for block in range(1, 5) for layer in range(10, 15)]


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved, laid out."""
    kept = []

    def keep(figure, _picture):
        FigureCanvasAgg(figure).draw()
        kept.append(figure)

    for module in (bars, curves, layer_accuracy, sheets):
        monkeypatch.setattr(module, "save_figure", keep)
    return kept


def texts_of(figure: Figure):
    """Every text that is drawn, and where."""
    found = [figure._suptitle] if figure._suptitle else []
    for legend in [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]:
        found += legend.get_texts()
    for axes in figure.axes:
        found += [axes.title, *axes.texts]
        if axes.axison:
            found += [axes.xaxis.label, axes.yaxis.label]
            for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
                places = zip(axis.get_majorticklocs(), axis.get_ticklabels(), strict=True)
                found += [label for place, label in places if low <= place <= high]
    return [(text.get_text(), text.get_window_extent()) for text in found if text.get_text().strip()]


def assert_legible(figure: Figure):
    whole = figure.bbox.expanded(1.001, 1.001)
    texts = texts_of(figure)
    assert len(texts) > 3
    for (one, box), (other, other_box) in itertools.combinations(texts, 2):
        apart = not box.padded(-0.5).overlaps(other_box.padded(-0.5))
        assert apart, f"{one!r} covers {other!r}"
    for text, box in texts:
        assert whole.x0 <= box.x0 and box.x1 <= whole.x1, text  # noqa: PT018  # one place
        assert whole.y0 <= box.y0 and box.y1 <= whole.y1, text  # noqa: PT018  # one place


@pytest.mark.parametrize("layers", [["conv1", "fc7"], LONG])
def test_the_picture_of_a_probe(layers, drawn, tmp_path):
    rows = [
        {"layer": layer, "head": head, "accuracy": 0.5, "deviation": 0.1}
        for layer in layers
        for head in ("svm", "softmax")
    ]
    found = {"rows": rows, "heads": ["svm", "softmax"], "chance": 0.1, "title": "a network of some length " * 3,
             "per_class": 30, "repeats": 10}  # fmt: skip
    layer_accuracy.draw_layers(found, tmp_path / "x.png")
    assert_legible(drawn[0])


@pytest.mark.parametrize("groups", [["eye", "nose", "random"], LONG])
def test_bars(groups, drawn, tmp_path):
    values = {"one": [1.0] * len(groups), "other": [2.0] * len(groups)}
    bars.draw_bars(values, values, groups, "what", tmp_path / "x.png", "how much of it there is, and for whom " * 4)
    assert_legible(drawn[0])


def test_sheets(drawn, tmp_path):
    tiles = [
        [Tile(np.zeros((8, 8, 3), np.uint8), f"unit {row * 6 + column}") for column in range(6)] for row in range(3)
    ]
    draw_sheet(tiles, tmp_path / "x.png", "a title that says data, network and layer, at length " * 4)
    assert_legible(drawn[0])


def test_formats_are_those_of_the_ending_and_repeat(tmp_path):
    begins = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    for ending, beginning in begins.items():
        contents = []
        for number in range(2):
            path = tmp_path / f"{number}.{ending}"
            draw_sheet([[Tile(np.arange(64.0).reshape(8, 8), "t", bar=True)]], path, "title")
            contents.append(path.read_bytes())
        assert contents[0].startswith(beginning)
        if ending != "svg":  # its ids are random
            assert contents[0] == contents[1]


def test_mosaics():
    pictures = [np.full((2, 3, 3), value, np.uint8) for value in (1, 2, 3)]
    found = mosaic([*pictures, None], 2, gap=1)
    assert found.shape == (5, 7, 3)
    assert (found[:2, :3] == 1).all()
    assert (found[:2, 4:] == 2).all()
    assert (found[3:, :3] == 3).all()
    assert (found[3:, 4:] == 255).all()
    assert (found[2] == 255).all()


def test_signed_values_are_around_grey():
    found = around_grey(np.array([[-2.0, 0.0, 1.0]]))
    assert found.tolist() == [[0, 128, 191]]
    assert (around_grey(np.zeros((2, 2))) == 128).all()


def test_colours_and_marks_tell_classes_apart():
    assert len({class_colour(label) for label in range(21)}) == 21
    assert len({(class_colour(label), class_mark(label)) for label in range(49)}) == 49
