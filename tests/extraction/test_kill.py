"""A real run, killed for real: the finished file's bytes equal an undisturbed run's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import write_photo
from killing import CONFIG

from featx.commands.extract import extract_features
from featx.options.option import command_line
from featx.runtime.signals import graceful_stop
from featx.store.open import open_features
from featx.store.schema import partial_path

HERE = Path(__file__).parents[1]
COUNT = 150


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """Photos, and the bytes of an undisturbed run over them."""
    folder = tmp_path_factory.mktemp("many")
    for index in range(COUNT):
        write_photo(folder / "photos" / "ab"[index % 2] / f"{index}.jpg", index, (300, 260))
    extract_features(folder / "photos", folder / "undisturbed.h5", CONFIG)
    return folder / "photos", (folder / "undisturbed.h5").read_bytes()


@pytest.mark.parametrize(("seed", "kills"), [(1, 10), pytest.param(2, 40, marks=pytest.mark.slow)])
def test_kills_at_random_moments_lose_nothing_and_change_nothing(many, tmp_path, seed, kills):
    source, whole = many
    output = tmp_path / "f.h5"
    ran = subprocess.run(
        [sys.executable, HERE / "killing.py", source, output, str(kills), str(seed)],
        capture_output=True,
        text=True,
        check=True,
    )
    outcome = json.loads(ran.stdout)
    assert outcome["killed"] >= 3, outcome
    assert outcome["done_after"] == sorted(outcome["done_after"]), "a row that was done was lost"
    assert len(set(outcome["done_after"])) > 1, "no kill fell into the work"
    assert output.read_bytes() == whole
    assert os.listdir(tmp_path) == ["f.h5"]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_signal_ends_the_run_after_the_blocks_in_hand_and_the_command_resumes(many, tmp_path, number, status):
    source, whole = many
    output = tmp_path / "f.h5"
    command = [sys.executable, "-m", *command_line("extract", str(source), CONFIG).split(), "-o", output]
    command += ["--workers", "2"]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (partial_path(output).exists() and open_features(partial_path(output), partial=True).count(1) >= 4):
        time.sleep(0.005)
        assert running.poll() is None, running.stderr.read()
    running.send_signal(number)
    said = running.communicate(timeout=60)[1]
    assert running.returncode == status, said
    assert "Run the same command again to resume" in said
    assert "Traceback" not in said
    assert open_features(partial_path(output), partial=True).count(1) < COUNT
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"{COUNT} of {COUNT} images" in again.stdout
    assert output.read_bytes() == whole


def test_two_runs_into_the_same_file_do_not_meet(many, tmp_path):
    source, whole = many
    output = tmp_path / "f.h5"
    command = [sys.executable, "-m", *command_line("extract", str(source), CONFIG).split(), "-o", output]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [run.communicate(timeout=120)[1] for run in both]
    assert sorted(run.returncode for run in both) in ([0, 0], [0, 75]), said
    assert output.read_bytes() == whole
    assert os.listdir(tmp_path) == ["f.h5"]


def test_a_finished_file_is_recognised_in_under_two_seconds_without_torch(many, tmp_path):
    source, _ = many
    output = tmp_path / "f.h5"
    extract_features(source, output, CONFIG)
    program = (
        "import sys; from featx.cli import main\ntry: main(sys.argv[1:])\nfinally: assert 'torch' not in sys.modules"
    )
    words = command_line("extract", str(source), CONFIG).split()[1:]
    ran = subprocess.run(
        [sys.executable, "-c", program, *words, "-o", output], capture_output=True, text=True, check=True
    )
    assert "nothing to do" in ran.stdout


def test_a_second_sigterm_at_once_is_the_same_request_and_later_it_kills(monkeypatch):
    """Under Slurm a process of torchrun's gets one from each."""
    killed: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: killed.append(number))
    try:
        with graceful_stop() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.signal == signal.SIGTERM
            os.kill(os.getpid(), signal.SIGTERM)
            assert killed == []
            monkeypatch.setattr("featx.runtime.signals.ECHO_S", 0.0)
            os.kill(os.getpid(), signal.SIGTERM)
            assert killed == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_second_interrupt_kills_at_once():
    with graceful_stop() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
