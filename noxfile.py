"""The tests with the oldest and the newest PyTorch: pip install nox && nox."""

from __future__ import annotations

import nox

OLDEST = ("torch==2.11.*", "torchvision==0.26.*")


@nox.session(python=["3.11", "3.12", "3.13"])
@nox.parametrize("libraries", [OLDEST, ("torch", "torchvision")], ids=["oldest", "newest"])
def tests(session: nox.Session, libraries: tuple[str, ...]) -> None:
    session.install("--editable", ".[test]", *libraries)
    session.run("pytest", "-n", "auto", "--maxprocesses", "4", *session.posargs)
