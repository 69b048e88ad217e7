"""`featx export HEAD_OR_RUN -o model.onnx`: a classifier for other runtimes, from pixels to probabilities."""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from featx import __version__
from featx.errors import FeatxError, UsageError
from featx.extraction.engine import SCORES
from featx.extraction.model import LOGITS, Model, load_model
from featx.extraction.recipe import Recipe
from featx.networks.load import load_network
from featx.runtime.files import replacing
from featx.runtime.progress import SILENT, Reporter
from featx.runtime.report import Report
from featx.runtime.text import format_bytes

_COMPARED = 4  # images of random pixels
_ALLOWED = 1e-3  # of the largest score: what float32 in another order may differ by; more is another network
_OPSET = 18


@dataclass(frozen=True)
class OnnxReport(Report):
    """What was written, and how far it is from featx.

    Attributes:
        side: of the images it takes: uint8 (N, side, side, 3), red, green, blue, resized and cropped.
        outputs: scores, and probabilities where there are any, (N, K) each.
        difference: largest difference of a score from featx's own, as a share of the largest score.
    """

    output: Path
    side: int
    classes: int
    outputs: list[str]
    difference: float
    bytes: int

    def lines(self) -> list[str]:
        return [
            f"{self.output}: pixels (N, {self.side}, {self.side}, 3) uint8 to {' and '.join(self.outputs)} (N, "
            f"{self.classes}), {format_bytes(self.bytes)}",
            f"by onnxruntime its scores differ from featx's by {self.difference:.1e} of the largest at most",
        ]


class _Classifier(nn.Module):
    """(N, S, S, 3) uint8 -> scores, and probabilities where there are any."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: Model, recipe: Recipe, network: nn.Module) -> None:
        super().__init__()
        self.network, self.layer = network, recipe.layers[0].name
        self.pooling, self.layout = recipe.pooling, recipe.backbone.geometry_of(recipe.layers[0]).layout
        self.register_buffer("mean", torch.tensor(recipe.preprocess.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(recipe.preprocess.std).view(1, 3, 1, 1))
        self.rule, self.head = model.rule, model.head
        reduced = recipe.reduction.layers[self.layer] if recipe.reduction else None
        self.project = reduced.on(torch.device("cpu")) if reduced else None
        if model.head is not None:
            self.weights = nn.Parameter(torch.from_numpy(model.head.weights).float(), requires_grad=False)
            self.bias = nn.Parameter(torch.from_numpy(model.head.bias).float(), requires_grad=False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        images = (pixels.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        values = self.pooling(self.network(images)[self.layer], self.layout).flatten(1)
        values = values if self.project is None else self.project(values)
        scores = values if self.head is None else self._scores(values)
        chances = self._probabilities(scores)
        return (scores,) if chances is None else (scores, chances)

    def _scores(self, values: Tensor) -> Tensor:
        assert self.head is not None
        if self.head.normalize == "l2":
            lengths = torch.linalg.vector_norm(values, dim=1, keepdim=True)
            values = values / torch.where(lengths == 0, torch.ones_like(lengths), lengths)
        return nn.functional.linear(values, self.weights, self.bias)

    def _probabilities(self, scores: Tensor) -> Tensor | None:
        calibration = self.rule.calibration
        if calibration is None:
            if self.rule.kind == "sigmoid":
                return torch.sigmoid(scores)
            return torch.softmax(scores, 1) if self.rule.kind == "softmax" else None
        logits = scores * torch.tensor(calibration.slopes) + torch.tensor(calibration.offsets)
        if calibration.kind == "temperature":
            return torch.softmax(logits, 1)
        chances = torch.sigmoid(logits)
        return chances / chances.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)


def export_onnx(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    weights_file: str | None = None,
    overwrite: bool = False,
    reporter: Reporter = SILENT,
) -> OnnxReport:
    """Write a head with its network, or a fine-tuned network, as an ONNX model, and compare it with featx.

    The model takes pixels (N, S, S, 3) uint8, red, green, blue, which are resized and cropped already as its metadata
    "preprocess" says; their normalisation is inside. It gives "scores" and, where featx has any, "probabilities". Its
    metadata hold the classes, the preprocessing and the SHA-256 of the model.

    Args:
        weights_file: where a head's network has its weights now, if they have moved.
        overwrite: replace a file that is there.

    Raises:
        UsageError: a head of several views; onnx is not installed; the output is there.
        FeatxError: what onnxruntime computes is something else.
    """
    output = Path(output)
    if output.exists() and not overwrite:
        raise UsageError(f"{output} is there already; --overwrite replaces it, or choose another name with -o")
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  # PyTorch's exporter needs it, and says so in ten lines
    except ImportError as error:
        raise UsageError(f"this needs {error.name}: pip install 'featx[onnx]'") from None
    loaded = load_model(model)
    recipe = loaded.recipe(device="cpu", batch_size=_COMPARED, decode="cpu", weights_file=weights_file)
    if recipe.preprocess.view_count > 1:
        raise UsageError(f"{model} takes {recipe.preprocess.view_count} views of each image; an ONNX model takes one")
    engine = loaded.engine(recipe, reporter)
    network = load_network(recipe.backbone.name, recipe.weights, reporter.download).capture(recipe.layers)
    classifier = _Classifier(loaded, recipe, network).eval()
    side = recipe.preprocess.crop
    pixels = np.random.default_rng(0).integers(0, 256, (_COMPARED, side, side, 3), np.uint8)
    names = [
        "scores",
        *(["probabilities"] if loaded.rule.probabilities(np.zeros((1, len(loaded.classes)))) is not None else []),
    ]
    with replacing(output) as partial:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own, about itself
            torch.onnx.export(
                classifier, (torch.from_numpy(pixels),), str(partial), input_names=["pixels"], output_names=names,
                dynamic_shapes={"pixels": {0: torch.export.Dim("images")}}, opset_version=_OPSET, dynamo=True,
                external_data=False, verbose=False,
            )  # fmt: skip
        made = onnx.load(partial)
        about = {
            "classes": list(loaded.classes), "preprocess": recipe.preprocess.values(), "exif": recipe.exif,
            "backbone": recipe.backbone.name, "layer": recipe.layers[0].name, "sha256": loaded.digest,
            "featx": __version__,
        }  # fmt: skip
        onnx.helper.set_model_props(made, {key: json.dumps(value) for key, value in about.items()})
        onnx.save(made, partial)
        session = onnxruntime.InferenceSession(str(partial), providers=["CPUExecutionProvider"])
        found = session.run(["scores"], {"pixels": pixels})[0]
        expected = engine(pixels.transpose(0, 3, 1, 2))[LOGITS if loaded.head is None else SCORES]
        engine.close()
        difference = float(np.abs(found - expected).max() / np.abs(expected).max())
        if not difference <= _ALLOWED:
            raise FeatxError(
                f"onnxruntime's scores differ from featx's by {difference:.1e}: this network is not exported right"
            )
    return OnnxReport(output, side, len(loaded.classes), names, difference, output.stat().st_size)
