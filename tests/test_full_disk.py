"""A disk that becomes full at any call of any command: one line, status 74, nothing lost, and the same result after."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import write_photo

import featx
from featx.artifacts.journal import Journal

HERE = Path(__file__).parent
NET = ["-b", "alexnet-mini", "--device", "cpu", "--workers", "1"]


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("there is no C compiler on this machine to build full_disk.c with")
    built = tmp_path_factory.mktemp("shim") / "full_disk.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", built, HERE / "full_disk.c", "-ldl"], check=True)
    return built


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Every command that writes a file, on inputs that are there."""
    folder = tmp_path_factory.mktemp("inputs")
    photos = folder / "photos"
    for index in range(18):
        write_photo(photos / "abc"[index % 3] / f"{index:02d}.jpg", index)
    plan = {"backbone": "alexnet-mini", "layers": "fc7", "device": "cpu", "batch_size": 8}
    featx.extract_features(photos, folder / "f.h5", featx.ExtractConfig(**plan))
    shards = [str(folder / f"s.{i}-of-2.h5") for i in range(2)]
    for index in range(2):
        featx.extract_features(photos, folder / "s.h5", featx.ExtractConfig(**plan, shard=f"{index}/2"))
    featx.fit_svm(folder / "f.h5", folder / "h.safetensors", featx.FitConfig(c=1.0))
    features, head = str(folder / "f.h5"), str(folder / "h.safetensors")
    return {
        "extract": ["extract", str(photos), *NET, "-l", "fc6,fc7", "--batch-size", "8", "-o", "OUT/f.h5"],
        "merge": ["merge", *shards, "-o", "OUT/f.h5"],
        "fit-svm": ["fit-svm", features, "--c", "1", "-o", "OUT/h.safetensors"],
        "fit-softmax": ["fit-softmax", features, "--c", "1", "-o", "OUT/h.safetensors"],
        "probe": ["probe", features, "--per-class", "3", "--repeats", "1", "--c", "1", "-o", "OUT/probe"],
        "predict": ["predict", head, str(photos), "--device", "cpu", "--workers", "1", "-o", "OUT/p.csv"],
        "predict-features": ["predict", head, features, "-o", "OUT/p.csv"],
        "evaluate": ["evaluate", head, features, "-o", "OUT/r.json"],
        "finetune": ["finetune", str(photos), *NET, "--lr", "fc", "--epochs", "1", "-o", "OUT/run"],
    }


def test_a_journal_whose_disk_is_full_says_so_once_and_can_be_closed(tmp_path):
    journal = Journal(tmp_path / "probe.partial.jsonl", {"plan": 1})
    assert journal._file is not None
    journal._file.close()
    journal._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115  # the journal closes it
    with pytest.raises(featx.FeatxError, match=r"probe\.partial\.jsonl: No space left on device; free some space"):
        journal.write("fc7", "svm", 0, (0.5, 1.0, 0))
    journal.close()


# All places of all commands, some 280, take a quarter of an hour.
@pytest.mark.parametrize("points", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_it_is_said_and_the_next_run_makes_what_an_undisturbed_one_does(shim, commands, tmp_path, points):
    if points:
        commands = {name: commands[name] for name in ("extract", "fit-svm", "finetune")}
    ran = subprocess.run(
        [sys.executable, HERE / "filling.py", tmp_path, str(points)],
        input=json.dumps(commands),
        env=os.environ | {"LD_PRELOAD": str(shim)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    for name, outcome in json.loads(ran.stdout).items():
        assert outcome["calls"] >= 5, name
        assert len(outcome["tried"]) == (points or outcome["calls"]), name
        for place, status, text, again, differ in outcome["tried"]:
            where = f"{name}, call {place}: {text}"
            said = text.strip().splitlines()[-1]
            assert status == 74, where
            assert said.startswith(f"featx: {tmp_path / 'out'}"), where
            assert said.endswith("No space left on device; free some space and run the same command again"), where
            assert (again, differ) == (0, []), where
