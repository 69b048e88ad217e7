"""What a rule about options without effect is made of; `rules` has the table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Facts:
    """What a run knows of itself when it is planned.

    Attributes:
        epochs_of_rates: layer -> the first epoch it is trained in, from 0, of the layers that are trained at all.
        frozen: layers that are never trained.
        steps: training steps in all.
        train, val: images to train on and to validate on.
        class_sizes: training images of every class.
        trained_dropouts: dropout layers among what is trained.
        device: "cpu" or "cuda".
        source_kind: of the manifest; None for a features file.
        all_vectors: no layer asked for is a map or tokens.
        model: "head" or "run" (a fine-tuned network), where one is used; else "".
    """

    epochs_of_rates: dict[str, int] = field(default_factory=dict)
    frozen: tuple[str, ...] = ()
    steps: int = 1_000_000
    train: int = 1_000_000
    val: int = 1_000_000
    class_sizes: tuple[int, ...] = ()
    trained_dropouts: int = 1
    device: str = "cuda"
    source_kind: str | None = "folder"
    all_vectors: bool = False
    model: str = ""


@dataclass(frozen=True)
class Rule:
    """One combination without effect.

    Attributes:
        command: whose options: the name of the config class.
        holds: (options, facts) -> whether it is met; facts are None while there are none yet.
        says: (options, facts) -> the sentence.
        refuses: an error; else a note.
        needs_facts: whether it can be decided only when the run is planned.
        example: options, and facts, that meet it; the tests use them.
    """

    command: str
    holds: Callable[[Any, Facts], bool]
    says: Callable[[Any, Facts], str]
    refuses: bool = True
    needs_facts: bool = False
    example: tuple[dict[str, Any], dict[str, Any]] = field(default_factory=lambda: ({}, {}))
