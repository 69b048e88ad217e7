"""C for the first head is chosen on some of many images; the head and its slope are those of all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from featx.runtime.progress import SILENT
from featx.training import initial_head as head
from featx.training.initial_head import FOLDS, fit_first_head, sample_of
from featx.training.task import Task


def test_a_sample_has_the_same_share_of_every_class_and_enough_of_the_rare_ones(monkeypatch):
    monkeypatch.setattr(head, "SEARCHED", 100)
    labels = np.repeat(np.arange(4, dtype=np.int32), [600, 300, 93, 7])
    chosen = sample_of(labels, 0)
    assert np.bincount(labels[chosen]).tolist() == [60, 30, 9, FOLDS]
    assert (np.diff(chosen) > 0).all()
    assert sample_of(labels[:100], 0).tolist() == list(range(100))
    assert sample_of(labels, 1).tolist() != chosen.tolist()


@pytest.mark.parametrize("rare", [3000, 7])
def test_an_svms_slope_is_that_of_the_heads_that_are_kept(tmp_path, monkeypatch, rare):
    """Cross-entropy on unseen images: near the best that any slope gives, as without a sample."""
    generator = np.random.default_rng(0)
    middles = generator.normal(size=(3, 200))
    labels = np.concatenate([np.arange(3000) % 2, np.full(rare, 2)]).astype(np.int32)

    def rows(labels):
        return (0.012 * middles[labels] + 0.1 * generator.normal(size=(len(labels), 200))).astype(np.float32)

    values, unseen = rows(labels), generator.choice(labels, 4000)
    test = rows(unseen)
    task = Task(labels, ["a", "b", "c"], np.arange(len(labels)), np.arange(0))
    monkeypatch.setattr(head, "SEARCHED", 300)
    fit_first_head(
        "svm", values, task, tmp_path / "h.safetensors", seed=0, device=torch.device("cpu"), reporter=SILENT
    )
    found = load_file(tmp_path / "h.safetensors")
    logits = torch.from_numpy(test).double() @ found["weights"].double().T + found["bias"].double()
    lost = [float(torch.nn.functional.cross_entropy(logits * f, torch.from_numpy(unseen).long())) for f in
            np.geomspace(0.1, 10, 81)]  # fmt: skip
    assert lost[40] <= 1.02 * min(lost)
