"""Every pipeline is listed, says what a stranger needs, runs end to end, and ends with the same table if it is killed."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import kubernetes_validate
import numpy as np
import pytest
import yaml
from PIL import Image

from featx.commands.extract import extract_features
from featx.commands.fit import fit_svm
from featx.options.extraction import ExtractConfig
from featx.options.heads import FitConfig

ROOT = Path(__file__).parents[1]
FILES = sorted(p.relative_to(ROOT) for p in (ROOT / "pipelines").rglob("*") if p.is_file() and p.suffix != ".pyc")
PIPELINES = sorted(path.parent for path in (ROOT / "pipelines").glob("*/run.sh"))
TEMPLATES = sorted((ROOT / "pipelines" / "cluster").iterdir())
KUBERNETES = "1.33"
# What makes a pipeline small: its arguments behind DATA and OUT, and variables.
SMALL: dict[str, tuple[list[str], dict[str, str]]] = {
    "ablation": ([], {"EPOCHS": "1", "SEEDS": "0", "VARIANTS": "whole without-6-7", "LESIONS": "fc6", "BATCH": "4"}),
    "digits": ([], {"PER_CLASS": "3"}),
    "few-shot": (["alexnet-mini", "fc7"], {"SHOTS": "1 3", "REPEATS": "2"}),
    "frozen-vs-finetuned": (["alexnet-mini", "fc7"], {"EPOCHS": "1", "C": "1", "VAL": "0.25"}),
    "layer-probe": (["alexnet-mini"], {"PER_CLASS": "3", "REPEATS": "1", "POOL": "avg", "C": "1"}),
    "pairs": (["", "alexnet-mini", "fc6,fc7"], {"COUNT": "30", "METRICS": "cosine,chi-square"}),
    "predict-folder": (["HEAD", "2"], {"FEATX_BATCH_SIZE": "4"}),
    "two-stream": ([], {}),
    "pretrain": (["alexnet-mini"], {"CYCLES": "1:0.1 1:0.05:flip,crop:0.5", "SPLIT": "test"}),
}


def test_every_pipeline_and_template_is_in_the_readme_and_nothing_else_is():
    readme = (ROOT / "docs" / "pipelines.md").read_text()
    named = set(re.findall(r"`pipelines/([\w./-]+)`", readme))
    assert named == {folder.name for folder in PIPELINES} | {f"cluster/{path.name}" for path in TEMPLATES}
    expected = {Path("pipelines") / f.name / "run.sh" for f in PIPELINES}
    assert expected <= set(FILES)
    assert {path.parts[1] for path in FILES} == {folder.name for folder in PIPELINES} | {"cluster"}


@pytest.mark.parametrize("folder", PIPELINES, ids=lambda folder: folder.name)
def test_a_pipeline_says_its_question_data_and_expectation(folder):
    text = (folder / "run.sh").read_text()
    for word in ("# Question", "# Data", "# Compare", "# Expect", "# Takes", "set -eu"):
        assert word in text
    assert os.access(folder / "run.sh", os.X_OK)
    expected = json.loads((folder / "expected.json").read_text())
    assert expected["rows"] or "needs" in expected


@pytest.fixture
def dozen(tmp_path: Path) -> Path:
    """A dozen 64 x 64 photos of two colours in train/ and test/; the classes of both together for probing."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 2)):
        for label, colour in (("red", (200, 60, 60)), ("blue", (60, 60, 200))):
            folder = tmp_path / "photos" / split / label
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = np.clip(generator.normal(colour, 40, (64, 64, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "photos"


def command(folder: Path, data: Path, out: Path, tmp_path: Path) -> tuple[list[str], dict[str, str]]:
    """How to run a pipeline on little."""
    words, variables = SMALL[folder.name]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment |= {"WEIGHTS": "random:0", "FEATX_DEVICE": "cpu", **variables}
    if "HEAD" in words:
        head = tmp_path / "head.safetensors"
        config = ExtractConfig(backbone="alexnet-mini", weights="random:0", device="cpu")
        extract_features(data, tmp_path / "features.h5", config)
        fit_svm(tmp_path / "features.h5", head, FitConfig(c=1.0))
        words = [str(head), *words[1:]]
    if folder.name == "two-stream":
        data = tmp_path / "clips.csv"  # it makes its own
        environment |= {"TEXTURES": "2", "CLIPS": "4", "SAMPLES": "2", "EPOCHS": "1"}
    if folder.name == "digits":
        data = tmp_path / "digits"  # it writes its own, here the first of them
        source = "from sklearn.datasets import load_digits"
        subprocess.run(
            [sys.executable, "-c", f"{source}\nfrom pathlib import Path\nfrom PIL import Image\nimport numpy as np\n"
             f"d = load_digits()\nfor n in range(120):\n"
             f"    p = Path({str(data)!r}) / str(d.target[n]) / f'{{n:04d}}.png'\n"
             f"    p.parent.mkdir(parents=True, exist_ok=True)\n"
             f"    Image.fromarray(np.uint8(d.images[n] * 15)).save(p)"],
            check=True,
        )  # fmt: skip
    return [str(folder / "run.sh"), str(data), str(out), *words], environment


# One stays among the fast ones; the others are processes by the dozen, and trainings of several networks.
_FAST = ("layer-probe",)


@pytest.mark.parametrize(
    "folder",
    [pytest.param(p, marks=() if p.name in _FAST else pytest.mark.slow) for p in PIPELINES],
    ids=lambda folder: folder.name,
)
def test_a_pipeline_runs_end_to_end_and_again_to_the_same_table(folder, dozen, tmp_path):
    words, environment = command(folder, dozen, tmp_path / "out", tmp_path)
    expected = json.loads((folder / "expected.json").read_text())
    tables = []
    for _ in range(2):
        ran = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        tables.append((tmp_path / "out" / expected["table"]).read_bytes())
    assert tables[0] == tables[1]
    rows = list(csv.DictReader(tables[0].decode().splitlines()))
    assert rows
    assert list(rows[0])[: len(expected["columns"])] == expected["columns"]


@pytest.mark.slow
@pytest.mark.parametrize("folder", PIPELINES, ids=lambda folder: folder.name)
def test_a_pipeline_that_was_killed_ends_with_the_same_table(folder, dozen, tmp_path):
    table = json.loads((folder / "expected.json").read_text())["table"]
    words, environment = command(folder, dozen, tmp_path / "whole", tmp_path)
    subprocess.run(words, env=environment, check=True, stdout=subprocess.DEVNULL)
    whole = len(list((tmp_path / "whole").rglob("*")))
    words[2] = str(tmp_path / "out")
    for share in (0.2, 0.6):
        running = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, process_group=0)
        while len(list((tmp_path / "out").rglob("*"))) < share * whole:
            time.sleep(0.02)
            assert running.poll() is None
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    assert not (tmp_path / "out" / table).exists()
    subprocess.run(words, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert (tmp_path / "out" / table).read_bytes() == (tmp_path / "whole" / table).read_bytes()


def documents(name: str) -> list[dict[str, Any]]:
    text = (ROOT / "pipelines" / "cluster" / name).read_text()
    return list(yaml.safe_load_all(text))


def test_the_kubernetes_templates_obey_the_published_schemas():
    jobs = documents("k8s-extract.yaml")
    assert [job["kind"] for job in jobs] == ["Job", "Job"]
    for job in jobs:
        kubernetes_validate.validate(job, KUBERNETES, strict=True)
    spec = jobs[0]["spec"]
    args = spec["template"]["spec"]["containers"][0]["args"]
    assert spec["completions"] == spec["parallelism"] == int(args[args.index("--shard") + 1].removeprefix("auto/"))
    for replica in documents("k8s-finetune.yaml")[0]["spec"]["pytorchReplicaSpecs"].values():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": replica["template"]["spec"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def local(args: list[str], data: Path, out: Path, shards: int = 2) -> list[str]:
    """A template's arguments, for this machine: its folders, a small network, fewer parts."""
    words = [w.replace("/data", str(data)).replace("/out", str(out)) for w in args]
    words = [re.sub(r"^auto/\d+$", f"auto/{shards}", w) for w in words]
    return [sys.executable, "-m", "featx", *("alexnet-mini" if w == "vgg16" else w for w in words)]


def run_all(commands: list[tuple[list[str], dict[str, str]]]) -> None:
    running = [
        subprocess.Popen(words, env=os.environ | about, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        for words, about in commands
    ]
    for process in running:
        said = process.communicate(timeout=300)[1]
        assert process.returncode == 0, said


SMALL_JOB = {"FEATX_WEIGHTS": "random:0", "FEATX_DEVICE": "cpu", "FEATX_BATCH_SIZE": "4", "OMP_NUM_THREADS": "1"}


def test_the_kubernetes_jobs_make_the_file_of_one_run(dozen, tmp_path):
    extract, merge = (
        job["spec"]["template"]["spec"]["containers"][0]["args"] for job in documents("k8s-extract.yaml")
    )
    out = tmp_path / "out"
    words = local(extract, dozen, out)
    run_all([(words, SMALL_JOB | {"JOB_COMPLETION_INDEX": str(index)}) for index in range(2)])
    run_all([(local(merge, dozen, out), {})])
    config = ExtractConfig(backbone="alexnet-mini", layers="fc7", weights="random:0", device="cpu", batch_size=4)
    extract_features(dozen, tmp_path / "one.h5", config)
    assert (out / "photos.h5").read_bytes() == (tmp_path / "one.h5").read_bytes()


@pytest.mark.slow
def test_the_kubernetes_training_runs_with_the_operators_variables(dozen, tmp_path):
    replicas = documents("k8s-finetune.yaml")[0]["spec"]["pytorchReplicaSpecs"]
    args = replicas["Worker"]["template"]["spec"]["containers"][0]["args"]
    words = [*local(args, dozen, tmp_path / "out"), "--epochs", "1", "--val", "0.3"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    about = {"FEATX_WEIGHTS": "random:0", "FEATX_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
    about |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    run_all([(words, about | {"RANK": str(rank)}) for rank in range(2)])
    assert (tmp_path / "out" / "run" / "model.safetensors").exists()


FAKE_SLURM = {
    "srun": '#!/bin/sh\nwhile [ "${1#--}" != "$1" ]; do shift; done\nexec "$@"\n',
    "scontrol": '#!/bin/sh\necho "$@" >> "$SCONTROL_LOG"\n[ "$1" != show ] || echo 127.0.0.1\n',
}


def test_the_slurm_script_runs_arrays_merges_trains_and_puts_interrupted_jobs_back(dozen, tmp_path):
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for name, text in FAKE_SLURM.items():
        (bin_folder / name).write_text(text)
        (bin_folder / name).chmod(0o755)
    script = ["bash", str(ROOT / "pipelines" / "cluster" / "slurm.sbatch")]
    about = {
        **SMALL_JOB,
        "PATH": f"{bin_folder}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node1",
        "SLURM_NNODES": "1",
        "SCONTROL_LOG": str(tmp_path / "scontrol.log"),
    }
    out = tmp_path / "out" / "photos.h5"
    extract = [*script, "extract", str(dozen), "-b", "alexnet-mini", "-l", "fc7", "-o", str(out)]
    run_all([(extract, about | {"SHARDS": "2", "SLURM_ARRAY_TASK_ID": str(index)}) for index in range(2)])
    run_all([([*script, "merge", str(out.parent), "-o", str(out)], about)])
    config = ExtractConfig(backbone="alexnet-mini", layers="fc7", weights="random:0", device="cpu", batch_size=4)
    extract_features(dozen, tmp_path / "one.h5", config)
    assert out.read_bytes() == (tmp_path / "one.h5").read_bytes()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    train = [*script, "finetune", str(dozen), "-b", "alexnet-mini", "--epochs", "1", "-o", str(tmp_path / "run")]
    run_all([(train, about | {"PROCESSES": "2", "MASTER_PORT": port})])
    assert (tmp_path / "run" / "model.safetensors").exists()
    log = tmp_path / "scontrol.log"
    for status, requeued in ((75, ""), (143, "requeue 7\n"), (4, ""), (1, ""), (0, "")):
        log.write_text("")
        (bin_folder / "srun").write_text(f"#!/bin/sh\nexit {status}\n")
        assert subprocess.run(extract, env=os.environ | about, check=False).returncode == status
        assert log.read_text() == requeued


@pytest.mark.parametrize("more", [{}, {"PROCESSES": "2"}], ids=["alone", "torchrun"])
def test_a_slurm_job_whose_time_is_over_is_put_back(tmp_path, more):
    """Its processes end as they like after SIGTERM, torchrun always with 1."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    ready, log = tmp_path / "ready", tmp_path / "scontrol.log"
    step = f"trap 'sleep 0.3; exit 1' TERM; echo $$ > {tmp_path}/pid; touch {ready}; while :; do sleep 0.05; done"
    fakes = {
        **FAKE_SLURM,
        "srun": f"#!/bin/sh\n{step}\n",
        "scancel": f'#!/bin/sh\nkill -TERM "$(cat {tmp_path}/pid)"\n',
    }
    for name, text in fakes.items():
        (bin_folder / name).write_text(text)
        (bin_folder / name).chmod(0o755)
    about = {"PATH": f"{bin_folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node1"}
    about |= {"SLURM_NNODES": "1", "SCONTROL_LOG": str(log), **more}
    script = str(ROOT / "pipelines" / "cluster" / "slurm.sbatch")
    job = subprocess.Popen(["bash", script, "extract", "photos"], env=os.environ | about)
    while not ready.exists():
        time.sleep(0.01)
    job.terminate()
    assert job.wait(timeout=30) == 1
    assert log.read_text().splitlines()[-1] == "requeue 7"


@pytest.mark.slow
@pytest.mark.parametrize("folder", PIPELINES, ids=lambda folder: folder.name)
def test_a_pipeline_gives_the_expected_table_and_the_same_one_again(folder, tmp_path):
    expected = json.loads((folder / "expected.json").read_text())
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    if "needs" in expected:
        pytest.skip(f"{folder.name} needs {expected['needs']}")
    command = [folder / "run.sh", tmp_path / "data", tmp_path / "out"]
    tables = []
    for _ in range(2):
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        tables.append((tmp_path / "out" / expected["table"]).read_text())
    assert tables[0] == tables[1]
    rows = list(csv.DictReader(tables[0].splitlines()))
    name = expected["columns"][0]
    assert [row[name] for row in rows] == [row[name] for row in expected["rows"]]
    for row, wanted in zip(rows, expected["rows"], strict=True):
        for column in wanted.keys() - {name}:
            assert float(row[column]) == pytest.approx(wanted[column], abs=expected["tolerance"])
