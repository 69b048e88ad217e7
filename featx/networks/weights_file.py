"""Which file a network's weights are read from, and whether it has changed: without loading a network."""

from __future__ import annotations

from pathlib import Path

from featx.networks.external.code import code_of, trust_code
from featx.networks.run_folder import is_run, read_run
from featx.runtime.files import sha256_of_file


def weights_file(backbone: str, spec: str) -> Path:
    """The file that `--weights SPEC` names, or a run's weights; a path that is not a file for published weights."""
    if is_run(backbone) and spec == "default":
        return read_run(backbone).weights
    whole = Path(spec)
    return whole if whole.is_file() else Path(spec.partition("#")[0])


def digest_of_weights(backbone: str, spec: str) -> str | None:
    """SHA-256 of a weights file, which can change under its name, and what stands for the network's code, likewise.

    None for published weights and those of a seed, of featx's and torchvision's networks.
    """
    trust_code(backbone)
    code, file = code_of(backbone), weights_file(backbone, spec)
    own = sha256_of_file(file) if file.is_file() else None
    return own if code is None else f"{code} {own or spec}"
