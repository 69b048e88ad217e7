"""A features file, or images that become one: where the commands that look at many images begin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featx.errors import UsageError, WeightsMismatch
from featx.explain.subject import Subject, subject_of
from featx.extraction.recipe import Recipe, describe_layer
from featx.images.bad_image import BadImage
from featx.images.sources.reopen import SourceImages
from featx.options.option import Config, flag_of
from featx.runtime.progress import Reporter
from featx.runtime.text import printable
from featx.store.reader import Features


def refuse_options_of_images(config: Config, names: Sequence[str], source: Path) -> None:
    """Raise UsageError if an option about images is given for a features file, which is made already."""
    for spec in fields(config):
        if spec.name in names and getattr(config, spec.name) != spec.default:
            raise UsageError(f"{flag_of(spec)} is for images; {source} holds features that were made already")


def subject_of_features(
    features: Features, layer: str, *, device: str, weights_file: str | None, reporter: Reporter
) -> Subject:
    """The network that made one layer of a features file, to be asked about it.

    Raises:
        WeightsMismatch: it has other weights now.
    """
    for made, what in (("reduction", "made with --reduce: its values are no units"), ("averaged", "means of others")):
        if features.provenance.get(made):
            raise UsageError(f"{features.path}: its rows are {what}; use the features they were made from")
    described = describe_layer(features.provenance, layer, "none")
    recipe = Recipe.from_dict(
        described, layer=layer, weights=weights_file, device=device, batch_size=None, decode="cpu", whole=True
    )
    subject = subject_of(recipe, reporter.download)
    made_with = features.provenance["weights"]["sha256"]
    if subject.weights_sha256 != made_with:
        raise WeightsMismatch(
            f"{features.path} was made with weights of sha256 {made_with[:16]}...; {recipe.weights.name} has "
            f"{subject.weights_sha256[:16]}.... Say where they are now with --weights-file"
        )
    return subject


class Pictures:
    """What a network was given of the images of a features file, read again when they are asked for.

    Attributes:
        subject: whose resize and crop are meant.
    """

    def __init__(self, features: Features, subject: Subject) -> None:
        self._features, self.subject = features, subject
        self._source = SourceImages(features.provenance["source"])

    def pixels(self, rows: Sequence[int]) -> npt.NDArray[np.uint8]:
        """(N, S, S, 3) of some rows.

        Raises:
            UsageError: one is not there any more, or has changed.
        """
        return self.subject.pixels([self.content(row) for row in rows])

    def content(self, row: int) -> bytes:
        """The file of one image, as it was when its features were extracted."""
        features = self._features
        try:
            return self._source.content(features.raw_paths[row], features.sha256[row].tobytes())
        except BadImage as bad:
            raise UsageError(
                f"{printable(features.raw_paths[row])} (row {row}) of {features.path} cannot be shown: {bad}"
            ) from None
