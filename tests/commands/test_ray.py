"""A Ray job gives the rows of `featx extract`, byte for byte, whatever dies in it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_photo

import featx
from featx.commands.exchange.ray_extract import ExtractRows, check_rows, write_plan
from featx.errors import FeatxError, FileFormatError, PlanMismatch
from featx.extraction.engine import Engine
from featx.extraction.plan import ExtractionPlan
from featx.images.sources.scan import scan
from featx.store.parquet_rows import PLAN

CONFIG = featx.ExtractConfig(
    backbone="alexnet-mini", layers="fc7,conv5", pool="avg", device="cpu", max_bad=1.0, dtype="float16"
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number in range(70):
        write_photo(folder / "ab"[number % 2] / f"{number:02d}.jpg", number)
    (folder / "b" / "33.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def extracted(photos, tmp_path_factory):
    path = tmp_path_factory.mktemp("features") / "f.h5"
    featx.extract_features(photos, path, CONFIG)
    return path


def parquet_of(photos, folder, parts):
    """What a job leaves: some rows in each file, by the class that the actors are made of."""
    manifest = scan(photos)
    planned = ExtractionPlan(manifest, folder, CONFIG, None)
    engine = Engine(planned.recipe)
    folder.mkdir()
    write_plan(folder / PLAN, planned.file(engine), manifest, CONFIG)
    engine.close()
    actor = ExtractRows(str(folder / PLAN))
    for number, rows in enumerate(parts):
        pq.write_table(actor({"id": np.array(rows)}), folder / f"{number}.parquet")
    return folder


def test_rows_of_actors_become_the_file_that_extract_makes(photos, extracted, tmp_path):
    order = np.random.default_rng(0).permutation(70).tolist()  # in no order, and of no block's size
    folder = parquet_of(photos, tmp_path / "parquet", [order[:33], order[33:34], order[34:]])
    report = featx.import_parquet(folder, tmp_path / "f.h5")
    assert (report.images, report.failed, report.files) == (70, 1, 3)
    assert (tmp_path / "f.h5").read_bytes() == extracted.read_bytes()
    before = (tmp_path / "f.h5").stat().st_mtime_ns
    featx.import_parquet(folder, tmp_path / "f.h5")  # does nothing
    assert (tmp_path / "f.h5").stat().st_mtime_ns == before
    table = pq.read_table(folder / "0.parquet")
    assert set(table.column_names) == {
        "row",
        "path",
        "status",
        "reason",
        "sha256",
        "orientation",
        "decoder",
        "fc7",
        "conv5",
    }
    features = featx.open_features(extracted)
    assert table["path"].to_pylist() == [features.paths[row] for row in table["row"].to_pylist()]
    assert table["reason"].to_pylist() == [
        None if features.status[row] == 1 else features.failures()[0].reason for row in order[:33]
    ]
    other = tmp_path / "other.h5"
    featx.extract_features(photos, other, featx.ExtractConfig(backbone="alexnet-mini", device="cpu", max_bad=1.0))
    with pytest.raises(PlanMismatch):
        featx.import_parquet(folder, other)


def test_a_job_that_has_lost_rows_is_an_error(photos, tmp_path):
    folder = parquet_of(photos, tmp_path / "parquet", [range(70)])
    assert check_rows(folder, 70) == 1
    with pytest.raises(FeatxError, match="gave 1 rows not at all and 0 more than once"):
        check_rows(folder, 71)
    shutil.copy(folder / "0.parquet", folder / "1.parquet")
    with pytest.raises(FeatxError, match="0 rows not at all and 70 more than once"):
        check_rows(folder, 70)


def test_missing_double_and_foreign_rows_are_refused(photos, extracted, tmp_path):
    rows = list(range(70))
    folder = parquet_of(photos, tmp_path / "parquet", [rows[:32], rows[32:]])
    shutil.copytree(folder, tmp_path / "missing")
    (tmp_path / "missing" / "1.parquet").unlink()
    with pytest.raises(FileFormatError, match="row 32 of 70 is missing"):
        featx.import_parquet(tmp_path / "missing", tmp_path / "m.h5")
    assert not (tmp_path / "m.h5").exists()
    shutil.copy(folder / "1.parquet", tmp_path / "missing" / "1.parquet")  # it came after all
    featx.import_parquet(tmp_path / "missing", tmp_path / "m.h5")
    assert (tmp_path / "m.h5").read_bytes() == extracted.read_bytes()
    shutil.copy(folder / "0.parquet", folder / "2.parquet")
    with pytest.raises(FileFormatError, match=r"2\.parquet holds rows that were there before"):
        featx.import_parquet(folder, tmp_path / "d.h5")
    (folder / "2.parquet").write_bytes(b"PAR1")
    with pytest.raises(FileFormatError, match=r"2\.parquet cannot be read"):
        featx.import_parquet(folder, tmp_path / "e.h5")
    pq.write_table(pa.table({"x": [1]}), folder / "2.parquet")
    with pytest.raises(FileFormatError, match=r"2\.parquet cannot be read"):
        featx.import_parquet(folder, tmp_path / "e.h5")
    (folder / PLAN).write_text("[]")
    with pytest.raises(FileFormatError, match="is not the plan"):
        featx.import_parquet(folder, tmp_path / "g.h5")
    with pytest.raises(FileFormatError, match="extract_with_ray makes"):
        featx.import_parquet(photos, tmp_path / "g.h5")


_JOB = """
import json, os, signal, sys, threading, time
import featx, psutil
from pathlib import Path
source, out, kill = sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "kill"
config = featx.ExtractConfig(**json.loads(sys.argv[4]))
killed = []

def watch():
    for _ in range(600):
        time.sleep(0.1)
        for process in psutil.Process().children(recursive=True) + [p for p in psutil.process_iter() if "ExtractRows" in p.name()]:
            try:
                if "ExtractRows" in " ".join(process.cmdline()) and process.cpu_times().user > 4:
                    os.kill(process.pid, signal.SIGKILL)
                    killed.append(process.pid)
                    return
            except psutil.Error:
                continue

if kill:
    threading.Thread(target=watch, daemon=True).start()
report = featx.extract_with_ray(source, out / "parquet", config)
featx.import_parquet(out / "parquet", out / "f.h5")
print(json.dumps({"killed": len(killed), "images": report.images, "failed": report.failed}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kill", ["kill", "leave"])
def test_a_job_on_a_local_cluster_gives_the_same_bytes_also_if_an_actor_is_killed(tmp_path, kill):
    pytest.importorskip("ray")
    folder = tmp_path / "photos"
    for number in range(900 if kill == "kill" else 70):
        write_photo(
            folder / "ab"[number % 2] / f"{number:03d}.jpg", number, (600, 500) if kill == "kill" else (80, 70)
        )
    (folder / "b" / "033.jpg").write_bytes(b"no image")
    given = {name: getattr(CONFIG, name) for name in ("backbone", "layers", "pool", "device", "max_bad", "dtype")}
    words = [sys.executable, "-c", _JOB, str(folder), str(tmp_path), kill, json.dumps(given)]
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said == {"killed": int(kill == "kill"), "images": len(list(folder.rglob("*.jpg"))), "failed": 1}
    featx.extract_features(folder, tmp_path / "plain.h5", CONFIG)
    assert (tmp_path / "f.h5").read_bytes() == (tmp_path / "plain.h5").read_bytes()
    assert not list(Path(tmp_path).glob("parquet.partial*"))


_CLASS = """
import sys
import featx, numpy as np, ray
ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR", _node_ip_address="127.0.0.1")
images = ray.data.read_binary_files(sys.argv[1], include_paths=True)
made = images.map_batches(
    featx.Extractor, batch_size=16, compute=ray.data.ActorPoolStrategy(size=1), num_cpus=0.5,
    fn_constructor_kwargs={"backbone": "alexnet-mini", "layers": ["fc7"], "device": "cpu", "on_error": "nan"},
)
rows = sorted(made.take_all(), key=lambda row: row["path"])
np.savez(sys.argv[2], fc7=np.stack([row["fc7"] for row in rows]), status=[row["status"] for row in rows])
"""


@pytest.mark.slow
def test_the_extractor_is_a_class_for_map_batches(photos, extracted, tmp_path):
    pytest.importorskip("ray")
    words = [sys.executable, "-c", _CLASS, str(photos), str(tmp_path / "x.npz")]
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    featx.extract_features(
        photos,
        tmp_path / "f.h5",
        featx.ExtractConfig(backbone="alexnet-mini", layers="fc7", device="cpu", max_bad=1.0),
    )
    expected = featx.open_features(tmp_path / "f.h5")
    with np.load(tmp_path / "x.npz") as found:
        np.testing.assert_array_equal(found["fc7"], expected["fc7"])
        assert (found["status"] != "done").sum() == 1
