"""The commands of the README and of the pages do what they show; tests/test_cli.py runs their Python."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").rglob("*.md") if p.name != "commands.md")]
START = ROOT / "docs" / "start.md"


def blocks(language: str, *pages: Path) -> list[str]:
    text = "\n".join(page.read_text() for page in pages or PAGES)
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where a reader would be after `make demo`."""
    made = tmp_path_factory.mktemp("readme")
    write = [sys.executable, ROOT / "pipelines" / "digits" / "write_digits.py", made / "demo" / "digits"]
    (made / "demo" / "digits").mkdir(parents=True)
    subprocess.run(write, check=True)
    return made


def test_there_are_blocks_of_every_kind():
    readme = ROOT / "README.md"
    assert len(blocks("python", readme)) == 1
    assert len(blocks("console", readme)) == 1
    assert len(blocks("console", START)) == 2
    assert len(blocks("sh")) >= 20


def test_the_readme_is_read_in_two_minutes():
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) < 900
    for page in re.findall(r"\]\(([\w./-]+\.md)", text):
        assert (ROOT / page).is_file(), page


def test_the_commands_of_the_console_do_what_it_shows(folder):
    """Their first words and numbers; times and seeds are another machine's."""
    text = blocks("console", START)[0]
    commands = re.findall(r"^\$ (.*)$", text, re.MULTILINE)
    assert len(commands) == 3
    about = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    said = ""
    for command in commands:
        ran = subprocess.run(
            ["sh", "-c", command], cwd=folder, env=about, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stderr
        said += ran.stdout + ran.stderr
    for shown in (
        "1,797 images, 10 classes; alexnet-mini", "digits.h5: 1,797 of 1,797 images", "all 1,797 rows match",
        "300 training images, 1,497 test images",
    ):  # fmt: skip
        assert shown in text
        assert shown in said
    accuracies = [float(re.search(r"accuracy ([\d.]+)%", one)[1]) for one in (text, said)]
    assert abs(accuracies[0] - accuracies[1]) < 0.3  # another processor rounds differently


def test_every_featx_command_and_option_of_the_shell_blocks_exists(featx):
    shown = "\n".join([*blocks("sh"), *blocks("console")])
    calls = re.findall(r"(?:^|\s|-m )featx ((?:show )?[a-z][a-z-]+)([^\n#|;]*)", shown, re.MULTILINE)
    assert len(calls) >= 15
    helps: dict[str, str] = {}
    for command, words in calls:
        if command not in helps:
            said = featx(*command.split(), "--help")
            assert said.status == 0, command
            helps[command] = said.out
        for option in re.findall(r"(?<=\s)(--[a-z-]+)", words):
            assert option in helps[command], f"{command} {option}"


def test_the_gallery_shows_every_picture_with_a_command_that_there_is():
    text = (ROOT / "docs" / "gallery.md").read_text()
    pictures = re.findall(r"^!\[.*?\]\((pictures/.*?)\)$", text, re.MULTILINE)
    assert {Path(name).name for name in pictures} == {path.name for path in (ROOT / "docs" / "pictures").iterdir()}
    assert sum(path.stat().st_size for path in (ROOT / "docs" / "pictures").iterdir()) < 3e6
    commands = re.findall(r"^featx show (\S+)", text, re.MULTILINE)
    from featx.cli import show_group

    assert set(commands) == set(show_group.commands)
