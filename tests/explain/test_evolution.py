"""Snapshots of a training, and what `featx show evolution` makes of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import write_photo
from safetensors.torch import load_file

import featx
from featx.explain.subject import load_subject
from featx.networks.run_folder import snapshots_of


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evolution")
    for seed in range(16):
        write_photo(folder / "photos" / "ab"[seed % 2] / f"{seed:02d}.png", seed, (64, 64))
    config = featx.FinetuneConfig(
        backbone="alexnet-mini", lr="*=0.01", epochs=2, snapshots="0,2,1", val=0.0, batch_size=8
    )
    featx.finetune_network(folder / "photos", folder / "run", config)
    return folder


def test_snapshots_are_the_weights_at_the_end_of_epochs(trained, tmp_path):
    found = snapshots_of(trained / "run")
    assert list(found) == [0, 1, 2]
    last, model = load_file(found[2]), load_file(trained / "run" / "model.safetensors")
    assert last.keys() == model.keys()
    assert all(torch.equal(last[name], model[name]) for name in model)
    shipped = load_file(pretrained())
    first = load_file(found[0])
    assert torch.equal(first["features.0.weight"], shipped["features.0.weight"])
    assert not torch.equal(load_file(found[1])["features.0.weight"], first["features.0.weight"])


def pretrained():
    from featx.networks.weights import weights_of

    return weights_of("alexnet-mini", "default").file


def test_show_evolution(trained, tmp_path, featx):
    command = ("show", "evolution", trained / "run", "-l", "conv5", "--units", "3,9", "-o", tmp_path / "out")
    done = featx(*command)
    assert done.status == 0, done.err
    paths = sorted((trained / "photos").rglob("*.png"))
    with np.load(tmp_path / "out" / "evolution.npz") as numbers:
        assert numbers["epochs"].tolist() == [0, 1, 2]
        for place, snapshot in enumerate(snapshots_of(trained / "run").values()):
            subject = load_subject(str(trained / "run"), "conv5", weights=str(snapshot), device="cpu")
            with torch.no_grad():
                maps = subject.network(subject.normalised(subject.pixels(paths)))["conv5"].amax((2, 3))
            np.testing.assert_allclose(numbers["activations"][place], maps[:, [3, 9]].amax(0), rtol=1e-3)
            assert numbers["rows"][place].tolist() == maps[:, [3, 9]].argmax(0).tolist()
        assert np.abs(numbers["projections"]).max() == 1
    assert "already" in featx(*command).err


def test_what_has_no_evolution_is_said(trained, tmp_path, featx):
    done = featx("show", "evolution", tmp_path, "-o", tmp_path / "out")
    assert (done.status, "is not the folder of a run" in done.err) == (2, True)
    done = featx("show", "evolution", trained / "run", "--images", tmp_path / "none", "-o", tmp_path / "out")
    assert (done.status, "none: No such file or directory" in done.err) == (2, True)
    more = trained / "photos" / "more.png"  # another image has come: these are not those of the training
    more.write_bytes(b"x")
    done = featx("show", "evolution", trained / "run", "-o", tmp_path / "out")
    more.unlink()
    assert (done.status, "are not there as they were; name some with --images" in done.err) == (2, True)
    done = featx("finetune", trained / "photos", "--snapshots", "1,30", "-o", tmp_path / "run")
    assert (done.status, "the training ends after --epochs 10" in done.err) == (2, True)
    done = featx("finetune", trained / "photos", "--snapshots", "one", "-o", tmp_path / "run")
    assert (done.status, "are no epochs; write them as 1,2,5,10" in done.err) == (2, True)
