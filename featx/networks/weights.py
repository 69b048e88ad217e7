"""Where a network's weights come from: torchvision's published files, a file of the user's, or a seed.

Nothing that is loaded can run: checkpoints are read with `weights_only=True` or as safetensors. Published files
are fetched by featx itself from torchvision's addresses into torch's own cache, checked against the hash in
their name, and checked again, in full, on every load.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featx.errors import UsageError
from featx.networks.architectures.architecture import WeightsSource
from featx.networks.checkpoints import CHOICE
from featx.networks.external.caffe import caffe_preprocessing, is_caffemodel
from featx.networks.external.matconvnet import is_matconvnet, matconvnet_preprocessing
from featx.networks.external.own_module import OwnWeights
from featx.networks.registry import architecture
from featx.networks.run_folder import is_run, read_run
from featx.runtime.files import sha256_of_file


def weights_of(backbone: str, spec: str) -> WeightsSource:
    """What `--weights SPEC` means for a backbone.

    Args:
        spec: "default", a torchvision name such as "IMAGENET1K_V1", a path to a file of torch.save or safetensors
            (FILE#NAME chooses one of several sets of weights in it), or "random:SEED".

    Raises:
        UsageError: none of these.
    """
    if match := re.fullmatch(r"random:(\d{1,18})", spec):
        return WeightsSource(spec, spec, seed=int(match[1]))
    file, _, choice = spec.partition(CHOICE) if not Path(spec).is_file() else (spec, "", "")
    if _is_file_name(file):
        path = Path(file)
        if not path.is_file():
            raise UsageError(f"--weights: no file {file}")
        return WeightsSource(spec, path.name, file=path, published=_recognised(backbone, path), choice=choice or None)
    if is_run(backbone) and spec == "default":
        run = read_run(backbone)
        run.refuse_unfinished()
        return WeightsSource("default", f"fine-tuned {run.backbone}", file=run.weights)
    if is_run(backbone):
        raise UsageError(
            f"--weights is {spec!r}; for {backbone} it can be default, random:SEED, a .pth or .safetensors file"
        )
    return architecture(backbone).weights.source(spec)


def published_name(backbone: str, name: str) -> str:
    """torchvision's full name of published weights, for `--preprocess NAME`.

    Raises:
        UsageError: the network has no weights of that name, or is a run, which has its own preprocessing.
    """
    if is_run(backbone):
        raise UsageError(f"--preprocess: {backbone} is a run and has its own preprocessing; leave the option out")
    weights = architecture(backbone).weights
    names = [full.rpartition(".")[2] for full in weights.files()]
    full = next((full for full in weights.files() if name in (full, full.rpartition(".")[2])), None)
    if full is None:
        allowed = ", ".join(names) or "nothing: its weights are part of featx"
        raise UsageError(f"--preprocess is {name!r}; for {backbone} it can be {allowed}")
    return full


def preprocessing_for(values: Mapping[str, Any], source: WeightsSource | None) -> Mapping[str, Any]:
    """A network's preprocessing, as its weights want it: Caffe's and MatConvNet's want pixels from 0 to 255."""
    if source is not None and source.file is not None and is_matconvnet(source.file):
        return matconvnet_preprocessing(source.file, values)
    return caffe_preprocessing(values) if source is not None and is_caffemodel(source.file) else values


def assumed_preprocessing(backbone: str, source: WeightsSource) -> str | None:
    """What to tell the user about weights that are none of the published ones; None if there is nothing to assume."""
    if is_run(backbone):
        return None
    if isinstance(own := architecture(backbone).weights, OwnWeights):
        return own.assumed
    if source.file is None or source.published:
        return None
    if is_caffemodel(source.file) or is_matconvnet(source.file):
        values = preprocessing_for(architecture(backbone).weights.preprocessing(), source)
        colour = ", ".join(f"{255 * value:.1f}" for value in values["mean"])
        whose = "Caffe" if is_caffemodel(source.file) else "MatConvNet"
        return (
            f"note: {source.name} is {whose}'s: pixels from 0 to 255 less the mean colour {colour} (red, green, blue)"
        )
    weights = architecture(backbone).weights
    names = [full.rpartition(".")[2] for full in weights.files()]
    if not names:
        return None
    values = weights.preprocessing()
    default = weights.source("default").name.rpartition(".")[2]
    return (
        f"note: {source.name} is none of {backbone}'s published weights; its images are prepared as for "
        f"{default} (resize {values['resize']}, crop {values['crop']}, {values['interpolation']}). --preprocess "
        f"chooses: {', '.join(names)}"
    )


def _is_file_name(spec: str) -> bool:
    """Whether `--weights` names a file: by its ending, by a slash, or because there is one and it has a dot."""
    endings = (
        ".pth",
        ".pt",
        ".safetensors",
        ".pth.tar",
        ".tar",
        ".ckpt",
        ".bin",
        ".th",
        ".pkl",
        ".caffemodel",
        ".mat",
    )
    return spec.lower().endswith(endings) or "/" in spec or ("." in spec and Path(spec).is_file())


def _recognised(backbone: str, file: Path) -> str | None:
    """The published weights that a file holds, by its name, or by its hash where it matters which they are."""
    if is_run(backbone):
        return None
    weights = architecture(backbone).weights
    published = weights.files()
    for name, file_name in published.items():
        if file.name == file_name:
            return name
    if len({json.dumps(weights.preprocessing(name)) for name in published}) < 2:
        return None
    digits = {match[1]: name for name, f in published.items() if (match := re.search(r"-([0-9a-f]{8})\.", f))}
    return digits.get(sha256_of_file(file)[:8])


def sha256_of_state(state: dict[str, Tensor]) -> str:
    """Hexadecimal SHA-256 over the names, types, shapes and bytes of all tensors, in order."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
