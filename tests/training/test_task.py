"""Which images train and which validate, and what is said of it."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import write_photo

from featx.images.sources.scan import scan
from featx.options.training import FinetuneConfig
from featx.training.task import plan_task


def listed(tmp_path, lines):
    """A CSV of photos with these labels and splits, as it is scanned."""
    for index in range(len(lines)):
        write_photo(tmp_path / f"{index}.png", index, (40, 40))
    rows = [f"{index}.png,{line}" for index, line in enumerate(lines)]
    (tmp_path / "photos.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
    return scan(tmp_path / "photos.csv")


def planned(manifest):
    task = plan_task(manifest, val=None, split_column=True, seed=0)
    notes = task.notes(np.arange(len(manifest)), FinetuneConfig(split_column=True))
    return task, [manifest.paths[row].decode() for row in task.val], " ".join(notes)


TRAIN = ["a,train", "b,train"]


def test_the_best_epoch_is_chosen_on_val_where_there_is_also_a_test(tmp_path):
    _, validated, notes = planned(listed(tmp_path, [*TRAIN, "a,test", "b,val"]))
    assert validated == ["3.png"]
    assert "too good" not in notes


def test_that_it_is_chosen_on_the_test_images_is_said(tmp_path):
    _, validated, notes = planned(listed(tmp_path, [*TRAIN, "a,Test", "b,Test"]))
    assert validated == ["2.png", "3.png"]
    assert "no split called val, so the best epoch is chosen on Test, and the accuracy there is too good" in notes


@pytest.mark.parametrize("several", [False, True])
def test_images_of_classes_that_are_not_learnt_are_counted(tmp_path, several):
    train = ["a|b,train", "b,train"] if several else TRAIN
    task, validated, notes = planned(listed(tmp_path, [*train, "a,val", "new,val", "new,val", "other,val"]))
    assert task.classes == ["a", "b"]
    assert validated == ["2.png"]
    assert "3 images to validate on are left out, of classes that no training image has, as 'new'" in notes
