"""timm's networks: `timm:NAME`, built, prepared for and loaded as timm does it."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from featx.errors import UnknownBackbone, UsageError, WeightsMismatch, WeightsUnavailable
from featx.networks.architectures.architecture import Architecture, WeightsSource
from featx.networks.external.code import TIMM
from featx.runtime.text import nearest_names

_WEIGHTS = "model.safetensors"


def timm_library() -> ModuleType:
    """timm.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import timm
    except ImportError:
        raise UsageError(f"{TIMM}NAME needs timm: pip install 'featx[timm]'") from None
    return timm


@dataclass(frozen=True)
class TimmWeights:
    """The weights that timm publishes for one of its names, and their data config.

    Attributes:
        network: the name, with its prefix.
    """

    network: str

    def source(self, spec: str) -> WeightsSource:
        if spec != "default":
            raise UsageError(
                f"--weights is {spec!r}; for {self.network} it can be default, random:SEED, or a .pth or "
                f".safetensors file. timm's names say which weights are meant: {self.network.partition('.')[0]}.TAG"
            )
        config = self._config
        if not config.get("hf_hub_id"):
            raise UsageError(f"timm has no weights of {self.network} on the hub; use --weights FILE or random:SEED")
        file = config.get("hf_hub_filename") or _WEIGHTS
        return WeightsSource(spec, self.network, url=f"hf-hub:{config['hf_hub_id']}/{file}")

    def preprocessing(self, name: str | None = None) -> dict[str, Any]:
        config = self._config
        channels, height, width = config["input_size"]
        if channels != 3 or height != width:
            raise UsageError(f"{self.network} takes inputs of {channels} x {height} x {width}; featx gives 3 x S x S")
        mode, share = config.get("crop_mode") or "center", float(config.get("crop_pct") or 0.875)
        if mode != "center" and share != 1.0:
            raise UsageError(
                f"{self.network} is meant for timm's crop_mode {mode!r} with crop_pct {share:g}, which featx has not"
            )
        border = [round(255 * float(value)) for value in config["mean"]]
        return {
            "resize": math.floor(height / share),
            "crop": height,
            "interpolation": config.get("interpolation") or "bicubic",
            "mean": [float(value) for value in config["mean"]],
            "std": [float(value) for value in config["std"]],
            **({"squash": True} if mode == "squash" else {"pad": border} if mode == "border" else {}),
        }

    def files(self) -> dict[str, str]:
        return {}

    @property
    def _config(self) -> dict[str, Any]:
        config = timm_library().models.get_pretrained_cfg(self.network.removeprefix(TIMM))
        return {} if config is None else dict(config.to_dict())


def refuse_unknown(name: str) -> None:
    """Raise UnknownBackbone unless timm has a network of that name."""
    timm, own = timm_library(), name.removeprefix(TIMM)
    if not timm.is_model(own):
        nearest = nearest_names(own, [*timm.list_models(), *timm.list_pretrained()])
        raise UnknownBackbone(f"timm {timm.__version__} has no network {own!r}. Nearest: {nearest}")
    with contextlib.suppress(RuntimeError):  # what timm raises for an unknown tag
        if timm.models.get_pretrained_cfg(own) is not None:
            return
    if "." in own:
        tags = [one for one in timm.list_pretrained() if one.partition(".")[0] == own.partition(".")[0]]
        raise UnknownBackbone(
            f"timm {timm.__version__} has no weights {own!r}; it has {', '.join(tags[:8]) or 'none'}"
        )


@functools.cache
def timm_architecture(name: str) -> Architecture:
    """The table's entry of one of timm's networks.

    Raises:
        UsageError and its child UnknownBackbone: timm is not there, or does not know it.
    """
    refuse_unknown(name)

    def build(published: str | None, init: bool) -> nn.Module:
        network: nn.Module = timm_library().create_model(name.removeprefix(TIMM), pretrained=False)
        return network

    return Architecture(name, build, TimmWeights(name), external="timm")


def fetch_from_hub(url: str) -> Path:
    """The weights of `hf-hub:REPOSITORY/FILE` in the Hugging Face cache, downloaded if they are not there.

    Raises:
        WeightsUnavailable: they cannot be had.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repository, _, file = url.removeprefix("hf-hub:").rpartition("/")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it would tell of every attempt
    try:
        return Path(hf_hub_download(repository, file))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise WeightsUnavailable(
            f"cannot download {file} of {repository} from the Hugging Face hub: {reason}. Without a network: fetch "
            f"it elsewhere and name it with --weights FILE, or set HF_HOME to a cache that has it"
        ) from error


def load_timm(name: str, path: Path) -> nn.Module:
    """A network of timm's with the weights of a file, read and renamed as timm does it; no code in it is run.

    Raises:
        WeightsMismatch: they are not this network's.
    """
    try:
        network: nn.Module = timm_library().create_model(
            name.removeprefix(TIMM), pretrained=True, pretrained_cfg_overlay={"file": str(path)}
        )
    except Exception as error:  # timm raises what PyTorch, pickle and safetensors raise
        raise WeightsMismatch(f"{path} does not fit {name}: {str(error).splitlines()[0]}") from error
    return network
