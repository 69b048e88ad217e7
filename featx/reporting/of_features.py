"""The sections of a page that are about a features file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featx.analysis.embedding import LEAST, principal_components, tsne
from featx.analysis.mistakes import FOLDS, CrossValidated, cross_validate
from featx.analysis.nearest import Space, mean_row
from featx.errors import FeatxError
from featx.explain.patches import patches_of
from featx.explain.sources import Pictures, subject_of_features
from featx.explain.units import chosen_units, largest_activations, projection_of, strongest, unit_axis
from featx.figures.bars import draw_bars
from featx.figures.map_page import map_page
from featx.figures.matrices import draw_confusion
from featx.figures.sheets import Tile, draw_sheet, unit_tiles
from featx.figures.thumbnails import thumbnails
from featx.heads.splits import copies_of
from featx.images.preprocess import Preprocess
from featx.images.sources.reopen import SourceImages
from featx.reporting.page import Section, frame, paragraph, photos, picture, table
from featx.runtime.progress import Reporter
from featx.runtime.text import plural, printable
from featx.status import Status
from featx.store.reader import Features, flat_rows

MOST_IMAGES = 5000  # that are mapped and measured; more are drawn at random
_VOTERS = 5
_MISTAKES, _UNITS, _K = 18, 4, 9
_MOST_CLASSES = 60
_SIDE = 128


@dataclass(frozen=True)
class FeaturesPart:
    """What a page says of a features file.

    Attributes:
        layer: that is mapped and classified; the best one by its neighbours if None.
    """

    features: Features
    layer: str | None
    seed: int
    device: str
    weights_file: str | None
    reporter: Reporter

    def sections(self) -> list[Section]:
        """All that can be said; what needs classes only where there are some."""
        found = [self._inside()]
        if len(self._labelled):
            found.append(self._layers())
        if len(self._rows) >= LEAST:
            found.append(self._map())
        if len(self._labelled):
            found += self._mistakes()
        found.append(self._units())
        return found

    @cached_property
    def _rows(self) -> npt.NDArray[np.intp]:
        done = np.flatnonzero(self.features.status == Status.DONE)
        return self._at_most(done)

    @cached_property
    def _labelled(self) -> npt.NDArray[np.intp]:
        """Rows of classes with an image for every fold; none if that leaves one class."""
        features = self.features
        rows = self._at_most(features.usable())
        counts = np.bincount(features.labels[rows], minlength=len(features.classes))
        rows = rows[counts[features.labels[rows]] >= FOLDS]
        return rows if len(np.unique(features.labels[rows])) > 1 else rows[:0]

    def _at_most(self, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        if len(rows) <= MOST_IMAGES:
            return rows
        return np.sort(np.random.default_rng(self.seed).choice(rows, MOST_IMAGES, replace=False))

    @cached_property
    def _copies(self) -> npt.NDArray[np.intp]:
        return copies_of(self.features.sha256)

    @cached_property
    def _votes(self) -> dict[str, tuple[float, float]]:
        """layer -> accuracy of the nearest image and of the vote of five."""
        features, rows = self.features, self._labelled
        labels = np.full(len(features), -1, np.int32)
        labels[rows] = features.labels[rows]
        self.reporter.begin("layers", len(rows) * len(features))
        found = {}
        for layer in features:
            space = Space(features[layer], "cosine", mean_row(features[layer], self._rows))
            votes = space.votes(rows, self._copies, labels, (1, _VOTERS), self.reporter.advance)
            found[layer] = (float((votes[0] == labels[rows]).mean()), float((votes[1] == labels[rows]).mean()))
        self.reporter.end()
        return found

    @cached_property
    def _chosen(self) -> str:
        if self.layer is not None:
            return self.features.only_layer(self.layer)
        if not len(self._labelled):
            return list(self.features)[-1]
        return max(self._votes, key=lambda layer: self._votes[layer][1])

    @cached_property
    def _source(self) -> SourceImages:
        return SourceImages(self.features.provenance["source"])

    def _content(self, row: int) -> bytes:
        return self._source.content(self.features.raw_paths[row], self.features.sha256[row].tobytes())

    def _inside(self) -> Section:
        features = self.features
        made = features.provenance
        failed = int((features.status > Status.DONE).sum())
        rows = [
            ["images", f"{len(features):,}" + (f", of which {failed:,} failed" if failed else "")],
            ["from", printable(made["source"]["path"])],
            ["network", f"{made['backbone']}, weights {made['weights']['name']}, "
                        f"sha256 {made['weights']['sha256'][:16]}"],
            ["images are prepared", Preprocess.from_values(made["preprocess"]).describe()],
            ["made by", made["command"]],
            ["with", ", ".join(f"{name} {version}" for name, version in made["versions"].items())],
            ["fingerprint", features.fingerprint],
        ]  # fmt: skip
        if features.classes:
            sizes = np.bincount(features.labels[features.labels >= 0], minlength=len(features.classes))
            rows.insert(1, ["classes", f"{len(features.classes):,}, of {sizes.min():,} to {sizes.max():,} images"])
        layers = [
            [name, " x ".join(map(str, spec.shape)), spec.pooling, spec.dtype, spec.node]
            for name, spec in features.layers.items()
        ]
        body = table(["", ""], rows) + table(["layer", "shape", "pooling", "type", "node"], layers)
        return Section("What is inside", body)

    def _layers(self) -> Section:
        votes = self._votes
        rows = [[layer, f"{one:.1%}", f"{five:.1%}"] for layer, (one, five) in votes.items()]
        drawn = picture(
            lambda path: draw_bars(
                {"nearest image": [100 * one for one, _ in votes.values()],
                 f"vote of {_VOTERS}": [100 * five for _, five in votes.values()]},
                None, list(votes), "accuracy (%)", path, "How often an image's neighbours have its class",
            ),
            "accuracy of the nearest images by layer",
        )  # fmt: skip
        text = (
            f"How often the nearest image, and the vote of the five nearest, have the image's own class: cosine of "
            f"centred features, {plural(len(self._labelled), 'image')}, each left out in turn. featx probe measures "
            f"layers by classifiers."
        )
        return Section("Layers", paragraph(text) + drawn + table(["layer", "nearest", f"vote of {_VOTERS}"], rows))

    def _map(self) -> Section:
        features, rows, layer = self.features, self._rows, self._chosen
        self.reporter.begin("map", 750)
        reduced = principal_components(np.asarray(flat_rows(features[layer])[rows], np.float32), 50, self.seed)
        points = tsne(reduced, perplexity=30, seed=self.seed, advance=self.reporter.advance)
        self.reporter.end()
        seen, missing = thumbnails(rows.tolist(), self._content, 40)
        classes = [printable(name) for name in features.classes]
        page = map_page(
            points, seen, [printable(features.raw_paths[row]) for row in rows], features.labels[rows], classes,
            title=f"{features.path.name}, {layer}", summary=f"{plural(len(rows), 'image')}, t-SNE",
        )  # fmt: skip
        text = (
            "Neighbours have similar features; how far islands lie apart means little. Scroll to zoom, drag to move"
        )
        if missing:
            text += f". {plural(len(missing), 'image')} cannot be read any more, or have changed: grey"
        return Section(f"Map of {layer}", paragraph(f"{text}.") + frame(page, f"map of the images by {layer}"))

    def _mistakes(self) -> list[Section]:
        features, layer, rows = self.features, self._chosen, self._labelled
        self.reporter.note(f"cross-validating a linear SVM on {layer}")
        values = np.asarray(flat_rows(features[layer])[rows], np.float32)
        found = cross_validate(values, rows, features.labels[rows], self._copies[rows], self.seed)
        accuracy = float((found.predicted == found.labels).mean())
        names = [printable(name) for name in features.classes]
        kept = np.unique(np.concatenate([found.labels, found.predicted]))
        counts = np.zeros((len(names), len(names)), np.int64)
        np.add.at(counts, (found.labels, found.predicted), 1)
        count = plural(len(rows), "image")
        text = f"A linear SVM on {layer}, {FOLDS}-fold cross-validation: {accuracy:.1%} of {count} are right."
        body = paragraph(text)
        if len(kept) <= _MOST_CLASSES:
            part = counts[np.ix_(kept, kept)]
            body += picture(
                lambda path: draw_confusion(part, [names[label] for label in kept], path, f"{layer}, linear SVM"),
                "confusion matrix",
            )
        body += table(["true", "taken for", "images"], _most_confused(counts, names))
        return [Section("Confusion", body), self._worst(found, names)]

    def _worst(self, found: CrossValidated, names: Sequence[str]) -> Section:
        wrong = np.flatnonzero(found.predicted != found.labels)
        if not len(wrong):
            return Section("Worst mistakes", paragraph("There are none."))
        worst = wrong[np.argsort(-found.margins[wrong], kind="stable")][:_MISTAKES]
        seen, _ = thumbnails([int(found.rows[place]) for place in worst], self._content, _SIDE)
        captions = [
            f"{names[found.labels[place]]}, taken for {names[found.predicted[place]]} "
            f"({printable(self.features.raw_paths[int(found.rows[place])])})"
            for place in worst
        ]
        text = "The images whose class lies furthest behind another one: look for wrong labels first."
        return Section("Worst mistakes", paragraph(text) + photos(list(seen), captions))

    def _units(self) -> Section:
        """The strongest images of a few units of the layer with maps that was asked for, or the last one."""
        try:
            return self._strongest_images()
        except FeatxError as error:
            return Section("Units", paragraph(f"What units look for cannot be shown: {error}"))

    def _strongest_images(self) -> Section:
        features = self.features
        of_maps = [name for name, spec in features.layers.items() if len(spec.shape) == 3 or spec.pooling != "none"]
        layer = self.layer if self.layer in of_maps else (of_maps or list(features))[-1]
        if features.provenance.get("reduction") or features.provenance.get("averaged"):
            return Section("Units", paragraph("The rows are projections or means: their values are no units."))
        subject = subject_of_features(
            features, layer, device=self.device, weights_file=self.weights_file, reporter=self.reporter
        )
        one = subject.recipe.layers[0]
        geometry = subject.recipe.backbone.geometry_of(one)
        axis = unit_axis(layer, geometry.shape, geometry.layout)
        pooling = features.layers[layer].pooling
        if pooling not in ("none", "max", "avg"):
            return Section("Units", paragraph(f"{layer} is stored with --pool {pooling}, which mixes its units."))
        units = chosen_units(f"random:{_UNITS}", geometry.shape[axis], self.seed)
        best = strongest(largest_activations(features, layer, axis), units, _K)
        arrays = patches_of(subject, one, Pictures(features, subject), units, best.rows)
        there = best.rows >= 0
        of_units = zip(units, arrays["patches"], arrays["projections"], there, strict=True)
        tiles = [
            tile for unit, p, signals, good in of_units for tile in unit_tiles(f"unit {unit}", p, signals, good, 3)
        ]
        by = "largest mean" if pooling == "avg" else "largest"
        text = (
            f"The nine images with the {by} activation of {plural(len(units), 'unit')} of {layer} that were drawn at "
            f"random: what the unit sees of them, and the projection of its largest activation through "
            f"{projection_of(subject.network)}. featx show top shows more."
        )
        title = f"{subject.recipe.backbone.name} {layer}"
        drawn = picture(lambda path: draw_sheet([tiles[:4], tiles[4:]], path, title), f"strongest images of {layer}")
        return Section("Units", paragraph(text) + drawn)


def saliency_section(paths: Sequence[Path], features: Features, part: FeaturesPart) -> Section:
    """What decides in some photographs, by the network that made the features."""
    from featx.explain.saliency import saliency
    from featx.explain.subject import LOGITS, subject_of
    from featx.extraction.recipe import Recipe, describe_layer
    from featx.figures.sheets import HEAT

    layer = next(iter(features))
    recipe = Recipe.from_dict(
        describe_layer(features.provenance, layer, "none"), layer=LOGITS, weights=part.weights_file,
        device=part.device, batch_size=None, decode="cpu", whole=True,
    )  # fmt: skip
    subject = subject_of(recipe, part.reporter.download)
    pixels = subject.pixels(list(paths))
    inputs = subject.normalised(pixels)
    scores = subject.logits(inputs)
    best = scores.argmax(1)
    probability = scores.double().softmax(1).amax(1)
    maps = [saliency(subject, inputs, best, method).maps.cpu().numpy() for method in ("gradient", "smoothgrad")]
    sheet = [
        [Tile(pixels[place], printable(path.name)), Tile(maps[0][place], "gradient", HEAT),
         Tile(maps[1][place], "SmoothGrad", HEAT)]
        for place, path in enumerate(paths)
    ]  # fmt: skip
    taken = "; ".join(
        f"{printable(path.name)} is taken for {subject.classes[int(best[place])]} ({float(probability[place]):.0%})"
        for place, path in enumerate(paths)
    )
    name = recipe.backbone.name
    drawn = picture(lambda path: draw_sheet(sheet, path, f"{name}: what decides", inches=2.4), "saliency maps")
    text = f"Which pixels decide for the class that {name} takes a photograph for: {taken}."
    return Section("Saliency", paragraph(text) + drawn)


def _most_confused(counts: npt.NDArray[np.int64], names: Sequence[str], most: int = 8) -> list[list[str]]:
    """The pairs of classes that are confused most often."""
    off = counts.copy()
    np.fill_diagonal(off, 0)
    order = np.argsort(-off, axis=None, kind="stable")[:most]
    pairs = (np.unravel_index(place, off.shape) for place in order)
    return [[names[int(true)], names[int(taken)], str(off[true, taken])] for true, taken in pairs if off[true, taken]]
