"""The one type of head: weights, bias, classes, and the features they belong to."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from featx.errors import DiskError, FeaturesMismatch, FileFormatError, UsageError
from featx.heads.calibration import Calibration
from featx.heads.decision import DecisionRule
from featx.heads.labels import Labels
from featx.heads.normalize import Array, l2_normalized
from featx.heads.quality.metrics import LabelMetrics, Metrics, measure, measure_labels
from featx.options.extraction import ExtractConfig
from featx.options.option import known_command
from featx.runtime.files import is_hdf5, refuse_special_file, replacing
from featx.runtime.stored import Head, convert, parse_json
from featx.runtime.text import printable

METADATA = "featx head 1"  # the one key of the safetensors metadata, and the format's version
_ROWS_AT_ONCE = 4096
_KEPT = ("weights", "bias", "trained_on")
_PROJECTION = "projection."  # before the names of its arrays


@dataclass(frozen=True)
class LinearHead:
    """A linear classifier of one layer's features.

    Attributes:
        kind: "svm" or "softmax".
        weights, bias: (K, D) and (K,) float64; a standardisation of the features is folded in.
        classes: K names; the class of a row is the one with the highest score.
        normalize: "l2" if rows are to be brought to length 1 first, else "none".
        layer: its name in the features file.
        recipe: what makes those features: backbone, weights, preprocessing, pooling, node.
        report: how the head was fitted and how good it was.
        calibration: makes probabilities of an SVM's scores; None without one.
        multilabel: images can be of several classes, those whose score is above 0.
        projection: the arrays by which the layer was reduced (`extraction.reduction`); empty if it was not.
        trained_on: (n, 8) the beginnings of the SHA-256 of the training images; None if they are not known.
    """

    kind: str
    weights: npt.NDArray[np.float64]
    bias: npt.NDArray[np.float64]
    classes: list[str]
    normalize: str
    layer: str
    recipe: dict[str, Any]
    report: dict[str, Any] = field(default_factory=dict)
    calibration: Calibration | None = None
    multilabel: bool = False
    trained_on: npt.NDArray[np.uint8] | None = None
    projection: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)

    def scores(self, features: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """(n, K) decision values of features (n, D) or (n, C, H, W); for "softmax" the logits.

        Raises:
            FeaturesMismatch: rows of another length than the head's.
            FileFormatError: rows that hold NaN or infinite values.
        """
        rows = features.reshape(len(features), math.prod(features.shape[1:]))
        if rows.shape[1] != self.weights.shape[1]:
            raise FeaturesMismatch(
                f"the head was fitted on rows of {self.weights.shape[1]} values ({self.layer}), got {rows.shape[1]}"
            )
        found = np.empty((len(rows), len(self.classes)))
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            block: Array = np.asarray(rows[start : start + _ROWS_AT_ONCE], np.float64)
            if not np.isfinite(block).all():
                row = start + int((~np.isfinite(block).all(axis=1)).argmax())
                raise FileFormatError(f"row {row} of the features given to the head holds NaN or infinite values")
            block = l2_normalized(block) if self.normalize == "l2" else block
            with np.errstate(over="ignore", invalid="ignore"):  # looked at below
                found[start : start + _ROWS_AT_ONCE] = block @ self.weights.T + self.bias
        if not np.isfinite(found).all():
            raise FileFormatError("the head's weights are so large that its scores are infinite; fit it again")
        return found

    def outputs(self, features: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """(n, K): probabilities for "softmax" and a calibrated "svm", else decision values."""
        return self.rule.outputs(self.scores(features))

    @property
    def rule(self) -> DecisionRule:
        """From scores to classes and probabilities."""
        return DecisionRule(self.kind, self.classes, self.calibration, self.multilabel)

    def measure(self, features: npt.NDArray[Any], labels: Labels) -> Metrics | LabelMetrics:
        """How well the head does on features (n, D), n > 0, with labels (n,) or membership (n, K) of its classes."""
        return self.measure_scores(self.scores(features), labels)

    def measure_scores(self, scores: npt.NDArray[Any], labels: Labels) -> Metrics | LabelMetrics:
        """As `measure`, of the head's scores (n, K)."""
        if self.multilabel:
            return measure_labels(scores, labels.astype(bool), self.classes)
        return measure(scores, labels.astype(np.int64), self.classes)

    def to_sklearn(self) -> Any:
        """The same classifier as a plain scikit-learn object, fitted: LinearSVC or LogisticRegression.

        If the head brings rows to length 1 first, a Pipeline of Normalizer and that. Its classes are the names, its C
        that of the fit. A calibrated head becomes a `featx.heads.estimators.CalibratedSVM`, an estimator with
        `predict_proba` and the head's own decisions.

        Raises:
            UsageError: the head gives several classes per image.
        """
        if self.multilabel:
            raise UsageError("the head gives several classes per image; scikit-learn's LinearSVC gives one")
        from sklearn.linear_model import LogisticRegression
        from sklearn.svm import LinearSVC

        c = self.report.get("c")
        c = float(c) if isinstance(c, int | float) and c > 0 else 1.0
        weights, bias = self.weights, self.bias
        if self.calibration is not None:
            from featx.heads.estimators import CalibratedSVM

            calibrated = CalibratedSVM(c)
            calibrated.coef_, calibrated.intercept_ = weights.copy(), bias.copy()
            calibrated.classes_, calibrated.n_features_in_ = np.array(self.classes), weights.shape[1]
            calibrated.calibration_ = self.calibration
            return self._after_normalizer(calibrated)
        model = LinearSVC(C=c) if self.kind == "svm" else LogisticRegression(C=c)
        if len(self.classes) == 2:
            factor = 1.0 if self.kind == "svm" else 2.0
            weights, bias = factor * weights[1:], factor * bias[1:]
        model.coef_, model.intercept_ = weights.copy(), bias.copy()
        model.classes_, model.n_features_in_ = np.array(self.classes), weights.shape[1]
        return self._after_normalizer(model)

    def _after_normalizer(self, model: Any) -> Any:
        """The model, behind what brings rows to length 1 if the head does."""
        if self.normalize != "l2":
            return model
        from sklearn.pipeline import Pipeline
        from sklearn.preprocessing import Normalizer

        normalizer = Normalizer()
        normalizer.n_features_in_ = self.weights.shape[1]
        return Pipeline([("normalize", normalizer), ("head", model)])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write as safetensors with JSON metadata; the name appears when the file is whole and read back."""
        path = Path(path)
        # safetensors writes Fortran-ordered arrays, which scikit-learn's coef_ is, garbled and says nothing.
        tensors: dict[str, npt.NDArray[Any]] = {
            "weights": np.ascontiguousarray(self.weights),
            "bias": np.ascontiguousarray(self.bias),
        }
        if self.trained_on is not None:
            tensors["trained_on"] = self.trained_on
        tensors |= {f"{_PROJECTION}{name}": np.ascontiguousarray(array) for name, array in self.projection.items()}
        described = {
            "kind": self.kind,
            "classes": self.classes,
            "normalize": self.normalize,
            "layer": self.layer,
            "recipe": self.recipe,
            "report": self.report,
            "calibration": None if self.calibration is None else asdict(self.calibration),
            "multilabel": self.multilabel,
        }
        described["sha256"] = _digest(described, tensors)
        # One key only: safetensors writes several in whatever order its hash table has them in that day.
        with replacing(path) as partial:
            save_file(tensors, partial, {METADATA: json.dumps(described, sort_keys=True)})
            back = load_file(partial)
            if not all(np.array_equal(back[name], tensor) for name, tensor in tensors.items()):
                raise DiskError(f"{path}: the file does not hold what was written")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LinearHead:
        """Read a head; nothing in the file can run.

        Raises:
            FileFormatError: not there, or not a head.
        """
        refuse_special_file(Path(path))
        if is_hdf5(Path(path)):
            raise FileFormatError(f"{path} is a features file and no head; the head comes first: HEAD {path}")
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                if METADATA not in metadata:
                    raise FileFormatError(f"{path} is a safetensors file but not a head of featx")
                described: dict[str, Any] = parse_json(metadata[METADATA], f"{path}, its metadata")
                declared = convert(described, Head, f"{path}, its metadata")
                kept = [name for name in [*file.keys()] if name in _KEPT or name.startswith(_PROJECTION)]
                tensors = {name: file.get_tensor(name) for name in kept}
            _refuse_damage(declared, tensors)
            if declared.sha256 and declared.sha256 != _digest(described, tensors):
                raise ValueError("it was damaged or changed: its contents do not match their hash")
        except FileNotFoundError as error:
            raise FileFormatError(f"no file {path}") from error
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"{path} cannot be read as a head: {' '.join(str(error).split())}") from error
        learnt = declared.calibration
        return cls(
            kind=declared.kind, weights=tensors["weights"], bias=tensors["bias"], classes=declared.classes,
            normalize=declared.normalize, layer=declared.layer, recipe=described["recipe"], report=declared.report,
            calibration=None if learnt is None else Calibration(learnt.kind, learnt.slopes, learnt.offsets),
            multilabel=declared.multilabel, trained_on=tensors.get("trained_on"),
            projection={n.removeprefix(_PROJECTION): a for n, a in tensors.items() if n.startswith(_PROJECTION)},
        )  # fmt: skip

    def refuse_other_features(self, layer: str, recipe: dict[str, Any], where: str) -> None:
        """Raise FeaturesMismatch unless `recipe` makes the same features as the head was fitted on.

        Args:
            where: the features' file, for the message.
        """
        for key, words in _MUST_AGREE.items():
            mine, theirs = _get(self.recipe, key), _get(recipe, key)
            if mine != theirs:
                raise FeaturesMismatch(
                    f"the head was fitted on {self.recipe['backbone']} {self.layer} with {words} {_brief(mine)}; "
                    f"{where} holds {recipe['backbone']} {layer} with {_brief(theirs)}. "
                    f"Extract again with: {self.extract_command}"
                )

    @property
    def extract_command(self) -> str:
        """The command that makes the features this head takes.

        What the file says is taken apart and put together again: only options of `featx extract` are shown.
        """
        return f"{printable(known_command(str(self.recipe['command']), ExtractConfig))} -o NEW.h5"


def _digest(described: dict[str, Any], tensors: dict[str, npt.NDArray[Any]]) -> str:
    """SHA-256 over all that a head holds, hexadecimal."""
    found = hashlib.sha256()
    plain = {key: value for key, value in described.items() if key != "sha256"}
    found.update(json.dumps(plain, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name])
        found.update(f"{name} {tensor.dtype.str} {tensor.shape}\n".encode())
        found.update(tensor.tobytes())
    return found.hexdigest()


def _refuse_damage(described: Head, tensors: dict[str, npt.NDArray[Any]]) -> None:
    """Raise ValueError for what no head of featx's own could hold."""
    classes, weights, bias = described.classes, tensors["weights"], tensors["bias"]
    if len(set(classes)) != len(classes):
        raise ValueError("two of its classes have one name")
    if weights.ndim != 2 or weights.shape[0] != len(classes) or bias.shape != (len(classes),):
        raise ValueError(f"{len(classes)} classes, weights {weights.shape}, bias {bias.shape}")
    if weights.dtype != np.float64 or bias.dtype != np.float64:
        raise ValueError(f"its weights are {weights.dtype} and {bias.dtype}, not float64")
    if not (np.isfinite(weights).all() and np.isfinite(bias).all()):
        raise ValueError("its weights are not finite numbers")
    hashes = tensors.get("trained_on")
    if hashes is not None and (hashes.dtype != np.uint8 or hashes.shape[1:] != (8,)):
        raise ValueError(f"its trained_on is {hashes.dtype} {hashes.shape}")
    learnt = described.calibration
    if learnt is not None and not len(learnt.slopes) == len(learnt.offsets) == len(classes):
        raise ValueError("its calibration is of another number of classes")


_MUST_AGREE = {
    "backbone": "the network",
    "node": "the node",
    "pooling": "pooling",
    "weights.sha256": "weights of sha256",
    "preprocess": "preprocessing",
    "exif": "EXIF orientation applied:",
    "reduction": "--reduce",
}


def _get(recipe: dict[str, Any], key: str) -> Any:
    value: Any = recipe
    for part in key.split("."):
        value = value.get(part) if part == "reduction" else value[part]
    return value


def _brief(value: Any) -> str:
    text = json.dumps(value) if isinstance(value, dict) else str(value)
    if re.fullmatch("[0-9a-f]{64}", text):
        return text[:12] + "..."
    return text if len(text) <= 200 else text[:197] + "..."
