"""Options that have no effect together, or in a given run: refused or noted before anything is computed.

A rule that needs only the options is checked when they are made, another one when the run is planned.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from featx.errors import UsageError
from featx.options.rule import Facts, Rule


def _late_layers(facts: Facts, epochs: int) -> list[str]:
    return [layer for layer, first in facts.epochs_of_rates.items() if first >= epochs]


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


FINETUNE, EXTRACT, FIT, PROBE = "FinetuneConfig", "ExtractConfig", "FitConfig", "ProbeConfig"
VERIFY, PREDICT, EVALUATE, SERVE = "VerifyConfig", "PredictConfig", "EvaluateConfig", "ServeConfig"
_OF_ROWS = ("rows", "all", "seed", "tolerance", "weights_file")
_OF_IMAGES = ("weights_file", "follow_links", "decode", "image_timeout", "workers", "batch_size")
_OF_IMAGES_IN_EVALUATE = ("follow_links", "workers", "batch_size")
_NO_DECAY, _DEFAULT_MOMENTUM, _DEFAULT_FOLDS = 0.0, 0.9, 5

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
    Rule(
        FINETUNE,
        lambda o, f: o.optimizer == "adamw" and o.momentum != _DEFAULT_MOMENTUM,
        lambda o, f: f"--momentum {o.momentum:g} is of sgd; adamw has none. Leave it out, or use --optimizer sgd",
        example=({"optimizer": "adamw", "momentum": 0.3}, {}),
    ),
    Rule(
        FINETUNE,
        lambda o, f: o.patience is not None and o.val == 0,
        lambda o, f: f"--patience {o.patience} waits for a better validation, and --val 0 holds out none",
        example=({"patience": 2, "val": 0.0}, {}),
    ),
    Rule(
        FINETUNE,
        lambda o, f: o.warmup > o.epochs,
        lambda o, f: f"--warmup {o.warmup:g} is not over after --epochs {o.epochs}: --lr would never be reached",
        example=({"warmup": 50.0, "epochs": 2}, {}),
    ),
    Rule(
        FINETUNE,
        lambda o, f: o.no_bias_decay and o.weight_decay == _NO_DECAY and "/wd" not in o.lr,
        lambda o, f: "--no-bias-decay leaves biases out of a weight decay that is 0: leave out one of the two",
        example=({"no_bias_decay": True, "weight_decay": 0.0}, {}),
    ),
    Rule(
        FINETUNE,
        lambda o, f: o.from_scratch and o.init_head == "svm",
        lambda o, f: "--init-head svm fits a head on pretrained features, and --from-scratch has none",
        example=({"from_scratch": True, "init_head": "svm"}, {}),
    ),
    Rule(
        FINETUNE,
        lambda o, f: o.accumulate > o.batch_size,
        lambda o, f: f"--accumulate {o.accumulate} parts of --batch-size {o.batch_size} images: some would be empty",
        example=({"accumulate": 128, "batch_size": 64}, {}),
    ),
    Rule(
        FINETUNE,
        lambda o, f: bool(o.dropout) and not f.trained_dropouts,
        lambda o, f: (
            f"--dropout {o.dropout:g}: there is no dropout layer among what is trained of {o.backbone}; leave it out"
        ),
        needs_facts=True,
        example=({"dropout": 0.5}, {"trained_dropouts": 0}),
    ),
    Rule(
        FINETUNE,
        lambda o, f: bool(_late_layers(f, o.epochs)),
        lambda o, f: (
            f"{len(late := _late_layers(f, o.epochs))} of {len(f.epochs_of_rates)} layers begin after the last of "
            f"--epochs {o.epochs} and are never trained: {', '.join(late[:5])}"
        ),
        refuses=False,
        needs_facts=True,
        example=({"epochs": 3}, {"epochs_of_rates": {"fc8": 0, "fc7": 5}}),
    ),
    Rule(
        FINETUNE,
        lambda o, f: o.ema is not None and f.steps < 1 / (1 - o.ema),
        lambda o, f: (
            f"--ema {o.ema:g} averages over about {1 / (1 - o.ema):,.0f} steps, and there are {f.steps:,}: it stays "
            f"near the start"
        ),
        refuses=False,
        needs_facts=True,
        example=({"ema": 0.999}, {"steps": 20}),
    ),
    Rule(
        FINETUNE,
        lambda o, f: o.class_weights == "balanced" and len(set(f.class_sizes)) == 1,
        lambda o, f: (
            f"--class-weights balanced changes nothing: every class has {f.class_sizes[0]:,} training images"
        ),
        refuses=False,
        needs_facts=True,
        example=({"class_weights": "balanced"}, {"class_sizes": (20, 20)}),
    ),
    Rule(
        FINETUNE,
        lambda o, f: o.class_weights == "balanced" and o.init_head != "random" and not o.from_scratch,
        lambda o, f: (
            "--class-weights balanced counts in the training, not for the head it starts from (--init-head "
            f"{o.init_head}); --init-head random starts without one"
        ),
        refuses=False,
        needs_facts=True,
        example=({"class_weights": "balanced"}, {"class_sizes": (20, 30)}),
    ),
    Rule(
        FINETUNE,
        lambda o, f: o.patience is not None and o.val != 0 and not f.val,
        lambda o, f: f"--patience {o.patience} has no effect: no image is held out to validate on",
        refuses=False,
        needs_facts=True,
        example=({"patience": 1}, {"val": 0}),
    ),
    Rule(
        FINETUNE,
        lambda o, f: o.patience is not None and o.patience >= o.epochs,
        lambda o, f: f"--patience {o.patience} has no effect in --epochs {o.epochs}",
        refuses=False,
        needs_facts=True,
        example=({"patience": 10, "epochs": 10}, {}),
    ),
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
