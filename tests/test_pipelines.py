"""Every pipeline is listed, says what a stranger needs, and gives the table it promises."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PIPELINES = sorted(path.parent for path in (ROOT / "pipelines").glob("*/run.sh"))


def test_there_are_pipelines_and_the_readme_names_each():
    assert PIPELINES
    readme = (ROOT / "README.md").read_text()
    for folder in PIPELINES:
        assert f"pipelines/{folder.name}" in readme


@pytest.mark.parametrize("folder", PIPELINES, ids=lambda folder: folder.name)
def test_a_pipeline_says_its_question_data_and_expectation(folder):
    text = (folder / "run.sh").read_text()
    for word in ("# Question", "# Data", "# Compare", "# Expect", "# Takes", "set -eu"):
        assert word in text
    assert os.access(folder / "run.sh", os.X_OK)
    expected = json.loads((folder / "expected.json").read_text())
    assert expected["rows"] or "needs" in expected


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
    assert [row["layer"] for row in rows] == [row["layer"] for row in expected["rows"]]
    for row, wanted in zip(rows, expected["rows"], strict=True):
        for head in ("svm", "softmax"):
            assert float(row[head]) == pytest.approx(wanted[head], abs=expected["tolerance"])
