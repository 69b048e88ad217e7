"""Options that have no effect together, or in a given run: refused or noted before anything is computed.

A rule that needs only the options is checked when they are made, another one when the run is planned.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from featx.errors import UsageError
from featx.options.without_effect.rule import Facts, Rule
from featx.options.without_effect.training import FINETUNE, RULES_OF_TRAINING


def _given(options: Any, *names: str) -> str:
    """The flags of those options that are not at their defaults, as "--all, --seed"."""
    defaults = {spec.name: spec.default for spec in fields(options)}
    return ", ".join(f"--{name.replace('_', '-')}" for name in names if getattr(options, name) != defaults[name])


def _of_other_methods(options: Any) -> str:
    """The flags of saliency methods that are not asked for."""
    needs = {"smoothgrad": ("samples", "noise", "seed"), "integrated": ("steps", "baseline"), "gradcam": ("layer",)}
    asked = [word.strip() for word in options.method.split(",")]
    idle = [name for method, names in needs.items() if not {method, "all"} & {*asked} for name in names]
    return _given(options, *idle)


def _idle_seed(command: str) -> Rule:
    return Rule(
        command,
        lambda o, f: o.seed != 0 and not o.units.startswith("random"),
        lambda o, f: f"--seed {o.seed} chooses --units random:N; --units {o.units} are chosen already",
        example=({"seed": 3, "units": "0,7"}, {}),
    )


def _follow_links(command: str) -> Rule:
    return Rule(
        command,
        lambda o, f: o.follow_links and f.source_kind not in (None, "folder"),
        lambda o, f: "--follow-links is about folders; the images come from a list or zip",
        refuses=False,
        needs_facts=True,
        example=({"follow_links": True}, {"source_kind": "csv"}),
    )


EXTRACT, FIT, PROBE = "ExtractConfig", "FitConfig", "ProbeConfig"
VERIFY, PREDICT, EVALUATE, SERVE = "VerifyConfig", "PredictConfig", "EvaluateConfig", "ServeConfig"
_OF_ROWS = ("rows", "all", "seed", "tolerance", "weights_file")
_OF_IMAGES = ("weights_file", "follow_links", "decode", "image_timeout", "workers", "batch_size")
_OF_IMAGES_IN_EVALUATE = ("follow_links", "workers", "batch_size")
_DEFAULT_FOLDS = 5

RULES: tuple[Rule, ...] = (
    Rule(
        "ClassImageConfig",
        lambda o, f: o.blur > 0 and o.parameters != "pixels",
        lambda o, f: "--blur is of --parameters pixels; the spectrum is smooth by itself",
        example=({"blur": 1.0}, {}),
    ),
    *map(_idle_seed, ("TopConfig", "EvolutionConfig")),
    Rule(
        "MapConfig",
        lambda o, f: bool(_given(o, "perplexity" if o.method == "umap" else "neighbors")),
        lambda o, f: (
            f"{_given(o, 'perplexity' if o.method == 'umap' else 'neighbors')} is of the other method; leave it out, "
            f"or choose that with --method"
        ),
        example=({"neighbors": 5}, {}),
    ),
    *RULES_OF_TRAINING,
    Rule(
        EXTRACT,
        lambda o, f: o.plain and f.device != "cpu",
        lambda o, f: "--plain is about the CPU; on a GPU PyTorch's own operations are used in any case",
        refuses=False,
        needs_facts=True,
        example=({"plain": True}, {"device": "cuda"}),
    ),
    Rule(
        EXTRACT,
        lambda o, f: o.pool not in ("none", "flatten") and f.all_vectors,
        lambda o, f: f"--pool {o.pool} has no effect: every layer asked for is a vector",
        refuses=False,
        needs_facts=True,
        example=({"pool": "avg"}, {"all_vectors": True}),
    ),
    Rule(
        EXTRACT,
        lambda o, f: o.views == "center" and o.aggregate != "mean",
        lambda o, f: f"--aggregate {o.aggregate} is of several views; add --views corners or ten",
        example=({"aggregate": "max"}, {}),
    ),
    Rule(
        EXTRACT,
        lambda o, f: o.update and o.overwrite,
        lambda o, f: "--update keeps the file that is there, --overwrite replaces it; choose one",
        example=({"update": True, "overwrite": True}, {}),
    ),
    Rule(
        EXTRACT,
        lambda o, f: o.views == "ten" and o.mirror,
        lambda o, f: "--views ten has every square mirrored already; leave out --mirror",
        example=({"views": "ten", "mirror": True}, {}),
    ),
    *(
        Rule(
            command,
            lambda o, f: o.squash and o.fit not in (None, "squash"),
            lambda o, f: f"--squash and --fit {o.fit} are different; choose one",
            example=({"squash": True, "fit": "pad"}, {}),
        )
        for command in (EXTRACT, FINETUNE)
    ),
    Rule(
        FIT,
        lambda o, f: o.folds != _DEFAULT_FOLDS and o.c is not None and o.calibrate == "none",
        lambda o, f: (
            f"--folds {o.folds} are for --c auto or --calibrate; with --c {o.c:g} nothing is cross-validated"
        ),
        refuses=False,
        needs_facts=True,
        example=({"folds": 3, "c": 1.0}, {}),
    ),
    Rule(
        PROBE,
        lambda o, f: o.folds != _DEFAULT_FOLDS and o.c is not None,
        lambda o, f: f"--folds {o.folds} are for --c auto; with --c {o.c:g} nothing is cross-validated",
        refuses=False,
        needs_facts=True,
        example=({"folds": 3, "c": 1.0}, {}),
    ),
    Rule(
        VERIFY,
        lambda o, f: o.all and bool(_given(o, "rows", "seed")),
        lambda o, f: f"{_given(o, 'rows', 'seed')}: no effect with --all, which recomputes every row",
        refuses=False,
        needs_facts=True,
        example=({"rows": 5, "seed": 1, "all": True}, {}),
    ),
    Rule(
        VERIFY,
        lambda o, f: bool(f.model and _given(o, *_OF_ROWS)),
        lambda o, f: f"{_given(o, *_OF_ROWS)}: no effect on a head or a run, which have no rows to recompute",
        refuses=False,
        needs_facts=True,
        example=({"weights_file": "w.pth"}, {"model": "head"}),
    ),
    Rule(
        PREDICT,
        lambda o, f: f.model == "run" and o.weights_file is not None,
        lambda o, f: "--weights-file says where the network of a head has its weights; a run has its own",
        needs_facts=True,
        example=({"weights_file": "w.pth"}, {"model": "run"}),
    ),
    Rule(
        PREDICT,
        lambda o, f: f.source_kind is None and bool(_given(o, *_OF_IMAGES)),
        lambda o, f: f"{_given(o, *_OF_IMAGES)}: no effect on a features file, whose images are not read",
        refuses=False,
        needs_facts=True,
        example=({"workers": 2}, {"source_kind": None, "model": "head"}),
    ),
    Rule(
        EVALUATE,
        lambda o, f: f.model == "head" and bool(_given(o, *_OF_IMAGES_IN_EVALUATE)),
        lambda o, f: f"{_given(o, *_OF_IMAGES_IN_EVALUATE)}: no effect on a features file, whose images are not read",
        refuses=False,
        needs_facts=True,
        example=({"workers": 2}, {"source_kind": None, "model": "head"}),
    ),
    Rule(
        EVALUATE,
        lambda o, f: o.seed != 0 and "=" not in (o.lesion or ""),
        lambda o, f: f"--seed {o.seed} chooses the units of --lesion LAYER=SHARE, which is not given",
        example=({"seed": 3}, {}),
    ),
    Rule(
        "SaliencyConfig",
        lambda o, f: bool(_of_other_methods(o)),
        lambda o, f: f"{_of_other_methods(o)}: no effect with --method {o.method}; leave it out, or name its method",
        example=({"method": "gradient", "steps": 9}, {}),
    ),
    Rule(
        SERVE,
        lambda o, f: o.rate_limit is not None and o.api_key_file is None,
        lambda o, f: "--rate-limit is for each key, and without --api-key-file there are none",
        example=({"rate_limit": 5}, {}),
    ),
    *map(_follow_links, (FINETUNE, EXTRACT, PREDICT, EVALUATE)),
)


def refuse_without_effect(options: Any) -> None:
    """Raise UsageError for options that have no effect together, whatever the run."""
    for rule in RULES:
        if rule.command == type(options).__name__ and not rule.needs_facts and rule.holds(options, Facts()):
            raise UsageError(rule.says(options, Facts()))


def notes_on(options: Any, facts: Facts) -> list[str]:
    """What the user should know of options that have no effect in this run.

    Raises:
        UsageError: they are to be refused.
    """
    notes = []
    for rule in RULES:
        if rule.command != type(options).__name__ or not rule.needs_facts or not rule.holds(options, facts):
            continue
        if rule.refuses:
            raise UsageError(rule.says(options, facts))
        notes.append(f"note: {rule.says(options, facts)}")
    return notes
