"""Options that would have no effect are refused or noted: every rule of the table, and that none fires by default."""

from __future__ import annotations

import pytest

from featx.errors import UsageError
from featx.options import extraction, heads, serving, show, training
from featx.options.without_effect.rule import Facts
from featx.options.without_effect.rules import RULES, notes_on

CONFIGS = {
    "FinetuneConfig": training.FinetuneConfig, "ExtractConfig": extraction.ExtractConfig,
    "FitConfig": heads.FitConfig, "ProbeConfig": heads.ProbeConfig, "VerifyConfig": extraction.VerifyConfig,
    "PredictConfig": extraction.PredictConfig, "EvaluateConfig": extraction.EvaluateConfig, "ServeConfig": serving.ServeConfig,
    "SaliencyConfig": show.SaliencyConfig, "MapConfig": show.MapConfig, "ClassImageConfig": show.ClassImageConfig,
    "TopConfig": show.TopConfig, "EvolutionConfig": show.EvolutionConfig,
}  # fmt: skip


def test_there_are_rules_for_every_command_that_has_such_options():
    assert {rule.command for rule in RULES} == set(CONFIGS)
    assert len(RULES) >= 26


@pytest.mark.parametrize("rule", RULES, ids=[f"{r.command}-{','.join(r.example[0])}" for r in RULES])
def test_every_rule_refuses_or_notes_its_example_and_names_the_option(rule):
    given, facts = rule.example
    flag = "--" + next(iter(given)).replace("_", "-")
    if not rule.needs_facts:
        with pytest.raises(UsageError) as refused:
            CONFIGS[rule.command](**given)
        said = str(refused.value)
    elif rule.refuses:
        with pytest.raises(UsageError) as refused:
            notes_on(CONFIGS[rule.command](**given), Facts(**facts))
        said = str(refused.value)
    else:
        notes = notes_on(CONFIGS[rule.command](**given), Facts(**facts))
        said = next(note for note in notes if rule.says(CONFIGS[rule.command](**given), Facts(**facts)) in note)
    assert flag in said or "--epochs" in said or "--momentum" in said or "--init-head" in said
    assert len(said) < 250


@pytest.mark.parametrize("name", CONFIGS)
def test_no_rule_fires_where_nothing_was_asked_for(name):
    assert notes_on(CONFIGS[name](), Facts()) == []


@pytest.mark.parametrize(("name", "given"), [
    ("FinetuneConfig", {"optimizer": "sgd", "momentum": 0.3}),
    ("FinetuneConfig", {"patience": 2}),
    ("FinetuneConfig", {"warmup": 1.0, "epochs": 3}),
    ("FinetuneConfig", {"dropout": 0.5}),
    ("FinetuneConfig", {"ema": 0.99}),
    ("FitConfig", {"folds": 3}),
    ("FitConfig", {"folds": 3, "c": 1.0, "calibrate": "platt"}),
    ("ExtractConfig", {"follow_links": True}),
    ("VerifyConfig", {"rows": 5, "seed": 1, "tolerance": 0.1, "weights_file": "w.pth"}),
    ("PredictConfig", {"workers": 2, "follow_links": True, "weights_file": "w.pth"}),
])  # fmt: skip
def test_options_that_do_something_are_not_complained_about(name, given):
    assert notes_on(CONFIGS[name](**given), Facts()) == []


def test_predict_evaluate_and_verify_note_theirs(photos, tmp_path, featx):
    features, head = tmp_path / "f.h5", tmp_path / "h.safetensors"
    net = ("-b", "alexnet-mini", "-l", "fc7", "--device", "cpu")
    assert featx("extract", photos, *net, "-o", features).status == 0
    assert featx("fit-softmax", features, "--c", "1", "--test", "0", "-o", head).status == 0
    for arguments, note in [
        (
            ("predict", head, features, "-o", tmp_path / "p.csv", "--workers", "2"),
            "--workers: no effect on a features",
        ),
        (("predict", head, features, "-o", tmp_path / "q.csv", "--decode", "fast"), "--decode: no effect on a feat"),
        (("evaluate", head, features, "--batch-size", "2"), "--batch-size: no effect on a features file"),
        (("verify", head, "--rows", "5", "--seed", "1"), "--rows, --seed: no effect on a head or a run"),
        (("verify", features, "--all", "--rows", "5"), "--rows: no effect with --all"),
    ]:
        found = featx(*arguments)
        assert found.status == 0, found.err
        assert f"note: {note}" in found.err
