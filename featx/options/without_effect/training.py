"""Options of `featx finetune` that have no effect together, or in a given training."""

from __future__ import annotations

from featx.options.without_effect.rule import Facts, Rule

FINETUNE = "FinetuneConfig"
_NO_DECAY, _DEFAULT_MOMENTUM = 0.0, 0.9


def _late_layers(facts: Facts, epochs: int) -> list[str]:
    return [layer for layer, first in facts.epochs_of_rates.items() if first >= epochs]


RULES_OF_TRAINING: tuple[Rule, ...] = (
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
        lambda o, f: o.from_scratch and bool(f.frozen),
        lambda o, f: (
            f"--from-scratch with --lr {o.lr}: {', '.join(f.frozen[:3])}{' ...' if len(f.frozen) > 3 else ''} keep "
            f"random weights, as they are frozen. All layers: leave out --lr"
        ),
        refuses=False,
        needs_facts=True,
        example=({"from_scratch": True, "lr": "*=0, fc8=0.1"}, {"frozen": ("conv1",)}),
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
)
