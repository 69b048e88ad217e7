"""A classifier of images: a head on features, or a fine-tuned network; what makes its scores and what they mean."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featx.errors import FeaturesMismatch, UsageError, WeightsMismatch
from featx.extraction.recipe import Recipe, describe_layer
from featx.heads.decision import DecisionRule, Scores
from featx.heads.linear_head import LinearHead
from featx.images.preprocess import Preprocess
from featx.networks.run_folder import Run, is_run, read_run
from featx.options.extraction import PredictConfig
from featx.options.without_effect.rule import Facts
from featx.options.without_effect.rules import notes_on
from featx.runtime.files import sha256_of_file
from featx.runtime.progress import SILENT, Reporter
from featx.store.reader import Features
from featx.store.schema import differences

if TYPE_CHECKING:
    from featx.extraction.engine import Engine
    from featx.extraction.reduction.projection import Projection
    from featx.networks.layer_names import Layer

LOGITS = "logits"


@dataclass(frozen=True)
class Model:
    """A head or a run, as something that scores images.

    Attributes:
        path: the head's file or the run's folder.
        head, run: one of them.
    """

    path: Path
    head: LinearHead | None = None
    run: Run | None = None

    @property
    def kind(self) -> str:
        """ "head" or "run"."""
        return "run" if self.head is None else "head"

    @cached_property
    def rule(self) -> DecisionRule:
        """From its scores to classes and probabilities."""
        if self.head is not None:
            return self.head.rule
        kind = {"classes": "softmax", "labels": "sigmoid", "values": "value"}[self._run.task]
        return DecisionRule(kind, self._run.classes, multilabel=kind == "sigmoid")

    @property
    def classes(self) -> list[str]:
        return list(self.rule.classes)

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of a head's file, or of a finished run's weights.

        Raises:
            FileFormatError: the run is not finished.
        """
        if self.head is not None:
            return sha256_of_file(self.path)
        self._run.refuse_unfinished()
        return sha256_of_file(self._run.weights)

    @property
    def _run(self) -> Run:
        if self.run is None:
            raise ValueError(f"{self.path} is a head, not a run")
        return self.run

    def recipe(self, *, device: str, batch_size: int | None, decode: str, weights_file: str | None = None) -> Recipe:
        """What computes the features or logits that it scores.

        Args:
            weights_file: where a head's network has its weights now, if they have moved.

        Raises:
            UsageError: `weights_file` for a run, which has its own weights.
        """
        if self.head is not None:
            return Recipe.from_dict(
                self.head.recipe, layer=self.head.layer, weights=weights_file, device=device, batch_size=batch_size,
                decode=decode, projection=self.head.projection,
            )  # fmt: skip
        notes_on(PredictConfig(weights_file=weights_file), Facts(model=self.kind))
        run = self._run
        recipe = Recipe.plan(
            backbone=str(run.folder), layers=LOGITS, device=device, batch_size=batch_size, decode=decode,
            exif=bool(run.plan["request"]["exif"]), named_by_user=False,
        )  # fmt: skip
        return replace(recipe, preprocess=Preprocess.from_values(run.preprocess))

    def engine(self, recipe: Recipe, reporter: Reporter = SILENT) -> Engine:
        """The network at work.

        Raises:
            WeightsMismatch: a head's network has other weights now.
        """
        return Models((self,)).engine(recipe, reporter)

    def refuse_other_weights(self, sha256: str, recipe: Recipe) -> None:
        """Raise WeightsMismatch if a head's network has other weights now."""
        if self.head is not None and sha256 != self.head.recipe["weights"]["sha256"]:
            raise WeightsMismatch(
                f"the head was fitted on features of weights with sha256 "
                f"{self.head.recipe['weights']['sha256'][:16]}...; {recipe.weights.name} has "
                f"{sha256[:16]}.... Say where they are now with --weights-file"
            )

    def scores(self, outputs: dict[str, npt.NDArray[Any]]) -> Scores:
        """(n, K) decision values or logits, of what the engine gives for n images."""
        return Models((self,)).scores(outputs)[0]


@dataclass(frozen=True)
class Models:
    """One model, or several heads with features of one network, which is to see each image once."""

    all: tuple[Model, ...]

    @property
    def digest(self) -> str:
        return "+".join(model.digest for model in self.all)

    def recipe(self, *, device: str, batch_size: int | None, decode: str, weights_file: str | None) -> Recipe:
        """What computes the features or logits that all of them score.

        Raises:
            UsageError: their features are made in different ways.
        """
        recipes = [
            model.recipe(device=device, batch_size=batch_size, decode=decode, weights_file=weights_file)
            for model in self.all
        ]
        first = recipes[0]
        layers: dict[str, Layer] = {}
        projections: dict[str, Projection] = {}
        for model, recipe in zip(self.all, recipes, strict=True):
            if model.head is None and len(recipes) > 1:
                raise UsageError(f"{model.path} is a whole network: predict with it alone; several heads go together")
            if other := differences(_alike(first), _alike(recipe)):
                raise UsageError(
                    f"{self.all[0].path} and {model.path} take features that are made in different ways "
                    f"({other[0].key} {other[0].stored} and {other[0].asked}): predict with one after the other"
                )
            layers |= {layer.name: layer for layer in recipe.layers}
            for name, one in (recipe.reduction.layers if recipe.reduction else {}).items():
                if projections.setdefault(name, one).digest != one.digest:
                    raise UsageError(f"{model.path} takes {name} with another projection than the heads before it")
        reduction = replace(first.reduction, layers=projections) if first.reduction else None
        size = min(recipe.batch_size for recipe in recipes)
        return replace(first, layers=tuple(layers.values()), reduction=reduction, batch_size=size)

    def engine(self, recipe: Recipe, reporter: Reporter = SILENT) -> Engine:
        """The network at work.

        Raises:
            WeightsMismatch: a head's network has other weights now.
        """
        from featx.extraction.engine import Engine

        engine = Engine(recipe, reporter.download, [model.head for model in self.all if model.head is not None])
        for model in self.all:
            model.refuse_other_weights(engine.weights_sha256, recipe)
        return engine

    def scores(self, outputs: dict[str, npt.NDArray[Any]]) -> list[Scores]:
        """Of each, (n, K) decision values or logits, of what the engine gives for n images."""
        from featx.extraction.engine import score_names

        names = [LOGITS] if self.all[0].head is None else score_names(len(self.all))
        return [np.asarray(outputs[name], np.float64) for name in names]


def _alike(recipe: Recipe) -> dict[str, Any]:
    """What must be the same of two heads that share a pass of the network."""
    described = recipe.to_dict("")
    if reduced := described.pop("reduction", None):
        described["reduction"] = {key: value for key, value in reduced.items() if key != "layers"}
    return {key: value for key, value in described.items() if key not in ("layers", "batch_size")}


def load_model(path: str | os.PathLike[str]) -> Model:
    """A head, or the folder of a fine-tuned network.

    Raises:
        FileFormatError: neither.
    """
    if is_run(str(path)):
        return Model(Path(path), run=read_run(path))
    return Model(Path(path), head=LinearHead.load(path))


def layer_for(head: LinearHead, features: Features) -> str:
    """The layer of a features file that a head takes.

    Raises:
        FeaturesMismatch: the file does not hold it, or it was made in another way.
    """
    layer = head.layer
    if layer not in features:
        raise FeaturesMismatch(
            f"the head was fitted on {head.recipe['backbone']} {layer}; {features.path} holds "
            f"{', '.join(features)}. Extract again with: {head.extract_command}"
        )
    recipe = describe_layer(features.provenance, layer, features.layers[layer].pooling)
    head.refuse_other_features(layer, recipe, str(features.path))
    return layer
