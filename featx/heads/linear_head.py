"""The one type of head: weights, bias, classes, and the features they belong to."""

from __future__ import annotations

import json
import os
import re
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
from featx.heads.metrics import LabelMetrics, Metrics, measure, measure_labels
from featx.heads.normalize import Array, l2_normalized
from featx.runtime.files import is_hdf5, refuse_special_file, replacing

METADATA = "featx head 1"  # the one key of the safetensors metadata, and the format's version
_DESCRIBED = {"kind": str, "classes": list, "normalize": str, "layer": str, "recipe": dict, "report": dict}
_ROWS_AT_ONCE = 4096


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

    def scores(self, features: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """(n, K) decision values of features (n, D) or (n, C, H, W); for "softmax" the logits.

        Raises:
            FeaturesMismatch: rows of another length than the head's.
            FileFormatError: rows that hold NaN or infinite values.
        """
        rows = features.reshape(len(features), -1)
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
            found[start : start + _ROWS_AT_ONCE] = block @ self.weights.T + self.bias
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
        if self.multilabel:
            return measure_labels(self.scores(features), labels.astype(bool), self.classes)
        return measure(self.scores(features), labels.astype(np.int64), self.classes)

    def to_sklearn(self) -> Any:
        """The same classifier as a plain scikit-learn object, fitted: LinearSVC or LogisticRegression.

        If the head brings rows to length 1 first, a Pipeline of Normalizer and that. Its classes are the names.

        Raises:
            UsageError: the head gives several classes per image.
        """
        if self.multilabel:
            raise UsageError("the head gives several classes per image; scikit-learn's LinearSVC gives one")
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import Pipeline
        from sklearn.preprocessing import Normalizer
        from sklearn.svm import LinearSVC

        model = LinearSVC() if self.kind == "svm" else LogisticRegression()
        weights, bias = self.weights, self.bias
        if len(self.classes) == 2:
            factor = 1.0 if self.kind == "svm" else 2.0
            weights, bias = factor * weights[1:], factor * bias[1:]
        model.coef_, model.intercept_ = weights.copy(), bias.copy()
        model.classes_, model.n_features_in_ = np.array(self.classes), weights.shape[1]
        if self.normalize != "l2":
            return model
        normalizer = Normalizer()
        normalizer.n_features_in_ = weights.shape[1]
        return Pipeline([("normalize", normalizer), ("head", model)])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write as safetensors with JSON metadata; the name appears when the file is whole and read back."""
        path = Path(path)
        # safetensors writes Fortran-ordered arrays, which scikit-learn's coef_ is, garbled and says nothing.
        tensors = {"weights": np.ascontiguousarray(self.weights), "bias": np.ascontiguousarray(self.bias)}
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
        # One key only: safetensors writes several in whatever order its hash table has them in that day.
        with replacing(path) as partial:
            try:
                save_file(tensors, partial, {METADATA: json.dumps(described, sort_keys=True)})
                back = load_file(partial)
            except SafetensorError as error:
                raise DiskError(f"{path}: {error}") from error
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
                described = json.loads(metadata[METADATA])
                weights, bias = file.get_tensor("weights"), file.get_tensor("bias")
            _refuse_damage(described, weights, bias)
            calibration = _calibration_in(described)
        except FileNotFoundError as error:
            raise FileFormatError(f"no file {path}") from error
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise FileFormatError(f"{path} cannot be read as a head: {' '.join(str(error).split())}") from error
        kept = {name: described[name] for name in _DESCRIBED}
        kept["multilabel"] = described.get("multilabel", False)
        return cls(weights=weights, bias=bias, calibration=calibration, **kept)

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
        """The command that makes the features this head takes."""
        return str(self.recipe["command"])


def _refuse_damage(described: Any, weights: npt.NDArray[Any], bias: npt.NDArray[Any]) -> None:
    """Raise ValueError, KeyError or TypeError for what no head of featx's own could hold."""
    for name, kind in _DESCRIBED.items():
        if not isinstance(described[name], kind):
            raise ValueError(f"its {name} is no {kind.__name__}")
    classes = described["classes"]
    if not all(isinstance(name, str) for name in classes) or len(set(classes)) != len(classes) or len(classes) < 2:
        raise ValueError("its classes are not two or more different names")
    if described["kind"] not in ("svm", "softmax") or described["normalize"] not in ("none", "l2"):
        raise ValueError(f"its kind is {described['kind']!r}, its normalize {described['normalize']!r}")
    if not isinstance(described.get("multilabel", False), bool):
        raise ValueError(f"its multilabel is {described['multilabel']!r}")
    if weights.ndim != 2 or weights.shape[0] != len(classes) or bias.shape != (len(classes),):
        raise ValueError(f"{len(classes)} classes, weights {weights.shape}, bias {bias.shape}")
    if weights.dtype != np.float64 or not (np.isfinite(weights).all() and np.isfinite(bias).all()):
        raise ValueError("its weights are not finite float64 numbers")
    for key in [*_MUST_AGREE, "weights.spec", "weights.name", "precision", "command"]:
        _get(described["recipe"], key)


def _calibration_in(described: dict[str, Any]) -> Calibration | None:
    if described.get("calibration") is None:
        return None
    found = Calibration.from_json(described["calibration"])
    if len(found.slopes) != len(described["classes"]) or len(found.offsets) != len(found.slopes):
        raise ValueError("its calibration is of another number of classes")
    return found


_MUST_AGREE = {
    "backbone": "the network",
    "node": "the node",
    "pooling": "pooling",
    "weights.sha256": "weights of sha256",
    "preprocess": "preprocessing",
    "exif": "EXIF orientation applied:",
}


def _get(recipe: dict[str, Any], key: str) -> Any:
    value: Any = recipe
    for part in key.split("."):
        value = value[part]
    return value


def _brief(value: Any) -> str:
    text = json.dumps(value) if isinstance(value, dict) else str(value)
    if re.fullmatch("[0-9a-f]{64}", text):
        return text[:12] + "..."
    return text if len(text) <= 200 else text[:197] + "..."
