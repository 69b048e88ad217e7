"""Several processes, and several shards, give the file that one process gives; so they do when they are killed."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import write_photo
from killing import CONFIG
from ranks import finish, free_port, start

from featx.commands.extract import extract_features
from featx.commands.merge import merge_shards
from featx.distributed.work_queue import _file_system, refuse_incoherent_disk
from featx.errors import PlanMismatch, UsageError
from featx.options.extraction import ExtractConfig
from featx.options.option import command_line
from featx.store.open import open_features
from featx.store.schema import complete_offset, partial_path

COUNT = 121


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """Photos, one of them damaged, and the bytes of one process's file."""
    folder = tmp_path_factory.mktemp("many")
    for index in range(COUNT):
        write_photo(folder / "photos" / "ab"[index % 2] / f"{index}.jpg", index, (300, 260))
    (folder / "photos" / "b" / "77.jpg").write_bytes(b"\xff\xd8\xff\xe0 no photo")
    extract_features(folder / "photos", folder / "undisturbed.h5", CONFIG)
    return folder / "photos", (folder / "undisturbed.h5").read_bytes()


def replaced(**changes: Any) -> ExtractConfig:
    return dataclasses.replace(CONFIG, max_bad=0.1, **changes)


def command(source: Path, output: Path, *more: str) -> list[str]:
    words = command_line("extract", str(source), CONFIG).split()[1:]
    return ["-m", "featx", *words, "-o", str(output), "--workers", "1", *more]


def wait_for_work(output: Path, rows: int, running: list[subprocess.Popen[str]]) -> None:
    """Until so many rows are in the file."""
    half, deadline = partial_path(output), time.monotonic() + 100
    while not (half.exists() and (open_features(half, partial=True).status > 0).sum() >= rows):
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in running), finish(running)
        time.sleep(0.002)


def test_torchruns_processes_fill_one_file_and_a_killed_one_is_resumed(many, tmp_path):
    source, whole = many
    output = tmp_path / "f.h5"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
    run = subprocess.Popen(
        [*torchrun, str(free_port()), *command(source, output)], stderr=subprocess.PIPE, text=True, process_group=0
    )
    wait_for_work(output, 10, [run])
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    assert len(children) == 2
    os.kill(int(children[0]), signal.SIGKILL)  # rank 0: the one the others depend on
    said = run.communicate(timeout=120)[1]
    assert run.returncode != 0, said
    rows_kept = int((open_features(partial_path(output), partial=True).status > 0).sum())
    assert 10 <= rows_kept < COUNT
    again = subprocess.run(
        [*torchrun, str(free_port()), *command(source, output)], capture_output=True, text=True, check=True
    )
    assert again.stdout.count(f"{COUNT - 1} of {COUNT} images") == 1, "only the first process speaks"
    assert "resuming" in again.stderr
    assert output.read_bytes() == whole
    assert os.listdir(tmp_path) == ["f.h5"]


@pytest.mark.slow
def test_the_first_process_does_the_blocks_of_those_that_were_killed(many, tmp_path):
    source, whole = many
    output = tmp_path / "f.h5"
    running = start(3, *command(source, output))
    wait_for_work(output, 6, running)
    for process in running[1:]:
        process.kill()
    statuses, said, complaints = finish(running)
    assert statuses == [0, -9, -9], complaints
    assert f"{COUNT - 1} of {COUNT} images" in said[0]
    assert output.read_bytes() == whole


def test_a_signal_to_the_first_process_ends_all_and_two_others_resume(many, tmp_path):
    source, whole = many
    output = tmp_path / "f.h5"
    running = start(3, *command(source, output))
    wait_for_work(output, 6, running)
    running[0].send_signal(signal.SIGTERM)
    statuses, _, complaints = finish(running)
    assert statuses == [143, 75, 75], complaints
    assert not any("Traceback" in text for text in complaints)
    statuses, said, complaints = finish(start(2, *command(source, output)))
    assert statuses == [0, 0], complaints
    assert said[1] == ""
    assert "done again" not in complaints[0], "every block was somebody's"
    assert output.read_bytes() == whole


def test_processes_that_would_make_different_files_are_refused(many, tmp_path):
    source, _ = many
    output = tmp_path / "f.h5"
    running = start(2, *command(source, output), differently={1: ["--mirror"]})
    statuses, _, complaints = finish(running)
    assert statuses[1] == 4, complaints
    assert (
        "would make another file than the first" in complaints[1] or "made with different settings" in complaints[1]
    )
    assert statuses[0] in (0, 75), complaints  # 0 if it had finished before the other could object
    assert statuses[0] == 0 or "would make another file" in complaints[0]


@pytest.mark.slow
def test_a_run_that_is_not_of_the_group_is_kept_out(many, tmp_path):
    source, whole = many
    output = tmp_path / "f.h5"
    running = start(2, *command(source, output))
    wait_for_work(output, 6, running)
    stranger = subprocess.run([sys.executable, *command(source, output)], capture_output=True, text=True, check=False)
    statuses, _, complaints = finish(running)
    assert statuses == [0, 0], complaints
    assert stranger.returncode in (0, 75), stranger.stderr  # 0 if it came late and found the finished file
    assert output.read_bytes() == whole


@pytest.mark.parametrize("count", [3, *(pytest.param(count, marks=pytest.mark.slow) for count in (1, 7))])
def test_merged_shards_are_the_file_of_one_run(many, tmp_path, count):
    source, whole = many
    for index in range(count):
        report = extract_features(source, tmp_path / "f.h5", replaced(shard=f"{index}/{count}"))
        assert report.output == tmp_path / f"f.{index}-of-{count}.h5"
    report = merge_shards(sorted(tmp_path.iterdir(), reverse=True), tmp_path / "f.h5")
    assert (report.images, report.done, report.failed, report.shards) == (COUNT, COUNT - 1, 1, count)
    assert (tmp_path / "f.h5").read_bytes() == whole
    before = (tmp_path / "f.h5").stat().st_mtime_ns
    assert merge_shards([tmp_path], tmp_path / "f.h5") == report
    assert (tmp_path / "f.h5").stat().st_mtime_ns == before
    again = extract_features(source, tmp_path / "f.h5", replaced(shard=f"0/{count}"))
    assert again.computed == 0


def test_a_shard_of_other_images_is_refused(many, tmp_path):
    photos = tmp_path / "photos"
    shutil.copytree(many[0], photos)
    extract_features(photos, tmp_path / "f.h5", replaced(shard="1/3"))
    (photos / "b" / "99.jpg").unlink()  # of the last part: the images of this one stay what they were
    with pytest.raises(PlanMismatch, match="different settings"):
        extract_features(photos, tmp_path / "f.h5", replaced(shard="1/3"))


@pytest.fixture(scope="module")
def shards(many, tmp_path_factory) -> Path:
    source, _ = many
    folder = tmp_path_factory.mktemp("shards")
    for index in range(3):
        extract_features(source, folder / "f.h5", replaced(shard=f"{index}/3"))
    return folder


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("missing", "shard 1 of 3 is missing"),
        ("twice", "are both part 0 of 3"),
        ("whole", "is not a shard: it was made without --shard"),
        ("other", "preprocess.mirror false in one, true in the other"),
        ("other count", "are not of one job"),
        ("unfinished", "is not finished"),
        ("nothing", "no shards in"),
        ("in the way", "is a features file made with different settings"),
    ],
)
def test_what_is_not_one_whole_job_is_not_merged(many, shards, tmp_path, change, said):
    source, _ = many
    folder = tmp_path / "parts"
    shutil.copytree(shards, folder)
    files = sorted(folder.iterdir())
    output = tmp_path / "all.h5"
    if change == "missing":
        files[1].unlink()
    elif change == "twice":
        shutil.copy(files[0], folder / "copy.0-of-3.h5")
    elif change == "whole":
        files[1].unlink()
        extract_features(source, files[1], replaced())
    elif change == "other":
        files[1].unlink()
        extract_features(source, folder / "f.h5", replaced(shard="1/3", mirror=True))
    elif change == "other count":
        files[1].unlink()
        extract_features(source, folder / "f.h5", replaced(shard="1/2"))
    elif change == "unfinished":
        os.rename(files[1], partial_path(files[1]))
        files = [files[0], partial_path(files[1]), files[2]]
        with files[1].open("r+b") as file:
            file.seek(complete_offset(files[1]))
            file.write(b"\0")
    elif change == "nothing":
        shutil.rmtree(folder)
        folder.mkdir()
    elif change == "in the way":
        extract_features(source, output, replaced(mirror=True))
    given = files if change in ("unfinished", "whole") else [folder]
    ran = subprocess.run(
        [sys.executable, "-m", "featx", "merge", *map(str, given), "-o", str(output)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode in (1, 2, 4), ran.stderr
    assert said in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
    assert not partial_path(output).exists()
    assert output.exists() == (change == "in the way")


def test_a_merge_that_was_killed_goes_on(many, shards, tmp_path, monkeypatch):
    _, whole = many
    output = tmp_path / "all.h5"
    monkeypatch.setattr("featx.store.copying.BLOCK_BYTES", 1 << 12)
    merging = os.fork()
    if merging == 0:
        merge_shards([shards], output)
        os._exit(0)
    half = partial_path(output)
    while not (half.exists() and (open_features(half, partial=True).status > 0).any()):
        time.sleep(0.0005)
    os.kill(merging, signal.SIGKILL)
    os.waitpid(merging, 0)
    assert not output.exists()
    merge_shards([shards], output)
    assert output.read_bytes() == whole


def test_a_merge_of_shards_that_have_changed_since_is_refused(many, tmp_path):
    photos = tmp_path / "photos"
    shutil.copytree(many[0], photos)
    for index in range(2):
        extract_features(photos, tmp_path / "f.h5", replaced(shard=f"{index}/2"))
    merge_shards([tmp_path], tmp_path / "f.h5")
    whole = (tmp_path / "f.h5").read_bytes()
    write_photo(photos / "b" / "77.jpg", 77, (300, 260))
    for index in range(2):
        extract_features(photos, tmp_path / "f.h5", replaced(shard=f"{index}/2", retry_failed=True))
    with pytest.raises(PlanMismatch, match="before the shards became what they are now"):
        merge_shards([tmp_path], tmp_path / "f.h5")
    assert (tmp_path / "f.h5").read_bytes() == whole
    os.rename(tmp_path / "f.h5", partial_path(tmp_path / "f.h5"))  # as if that merge had not been finished
    with pytest.raises(PlanMismatch, match="before the shards became what they are now"):
        merge_shards([tmp_path], tmp_path / "f.h5")


@pytest.mark.slow
def test_a_process_that_starts_late_finds_the_file_finished(many, tmp_path):
    source, whole = many
    output = tmp_path / "f.h5"
    running = start(2, *command(source, output), late=1, delay=12.0)
    statuses, _, complaints = finish(running)
    assert statuses == [0, 0], complaints
    assert output.read_bytes() == whole


@pytest.mark.slow
def test_two_files_one_after_the_other_in_the_same_processes(many, tmp_path):
    source, whole = many
    program = (
        "import sys; from featx.commands.extract import extract_features; from featx.distributed.work_queue import join_group\n"
        "from featx.options.extraction import ExtractConfig; from killing import CONFIG; import dataclasses\n"
        "for mirror in (True, False):\n"
        "    config = dataclasses.replace(CONFIG, mirror=mirror, max_bad=0.1)\n"
        "    extract_features(sys.argv[1], f'{sys.argv[2]}/{mirror}.h5', config, queue=join_group())\n"
    )
    (tmp_path / "two.py").write_text(f"import sys\nsys.path.insert(0, {str(Path(__file__).parents[1])!r})\n{program}")
    statuses, _, complaints = finish(start(2, str(tmp_path / "two.py"), str(source), str(tmp_path)))
    assert statuses == [0, 0], complaints
    assert (tmp_path / "False.h5").read_bytes() == whole
    assert "done again" not in complaints[0]


def test_the_kind_of_disk_is_read_from_the_systems_table(tmp_path):
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/sda / ext4 rw 0 0\nserver:/x /data nfs4 rw 0 0\nserver:/y /data/my\\040disk lustre rw 0 0\n"
    )
    kinds = [_file_system(Path(p), mounts) for p in ("/data/out", "/data", "/home/me", "/data/my disk/a/b")]
    assert kinds == ["nfs4", "nfs4", "ext4", "lustre"]


def test_nfs_is_found_behind_a_link(tmp_path, monkeypatch):
    (tmp_path / "nfs").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nfs")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(
        "featx.distributed.work_queue._file_system", lambda f: "nfs4" if f == tmp_path / "nfs" else "ext4"
    )
    with pytest.raises(UsageError, match="lies on nfs4"):
        refuse_incoherent_disk(tmp_path / "link" / "f.h5")


def test_several_machines_on_nfs_are_refused(many, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr("featx.distributed.work_queue._file_system", lambda _: "nfs4")
    with pytest.raises(UsageError, match="use --shard auto, which makes"):
        refuse_incoherent_disk(tmp_path / "f.h5")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    refuse_incoherent_disk(tmp_path / "f.h5")
