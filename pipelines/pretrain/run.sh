#!/bin/sh
# Question   How good do two small networks become on Tiny ImageNet? Their weights are the ones featx ships.
# Data       Tiny ImageNet (200 classes, 500 training and 50 validation images each, 64 x 64 pixels), from
#            http://cs231n.stanford.edu/tiny-imagenet-200.zip; DATA holds train/CLASS/* and val/CLASS/*.
# Compare    Networks of this size are reported at 45 to 60 % top-1; ResNet-18 trained from scratch at about 60 %.
# Expect     expected.json: top-1 on the 10,000 validation images within 0.02.
# Takes      Two to four hours a network on two cores with bf16. Killed and started again it goes on from its last checkpoint.
#            What ships: alexnet-mini as it stands; vgg-mini with
#            CYCLES="44:0.2:flip,crop:0.35,jitter:0.2" BATCH=256 WARMUP=2, five seconds an epoch on an H200 that trains
#            another network beside it, six minutes on two cores. Of two cycles on a CPU (CYCLES="12:0.1 8:0.05") 53.2 %
#            came, and features that transfer less well; of flip,crop:0.5,cutmix in as many epochs 52.8 %.
#            OUT/pretrained then holds weights, model cards and curves as featx/pretrained does.
#
# Usage: run.sh DATA OUT [NET]      (featx and python on PATH; NET is alexnet-mini, vgg-mini or, by default, both)
set -eu
data=$1 out=$2 nets=${3:-alexnet-mini vgg-mini} here=$(dirname "$0")
mkdir -p "$out"

for net in $nets; do
    start=$net from=--from-scratch number=0
    set --
    for cycle in ${CYCLES:-20:0.1}; do  # EPOCHS:RATE[:AUGMENTATION]
        number=$((number + 1)) rest=${cycle#*:} augment=flip,shift:${SHIFT:-6}
        case $rest in *:*) augment=${rest#*:} ;; esac
        torchrun --nproc-per-node "${PROCESSES:-1}" -m featx finetune "$data" -b "$start" $from --split-column \
            --epochs "${cycle%%:*}" --batch-size "${BATCH:-128}" --lr "*=${rest%%:*}" --warmup "${WARMUP:-1}" \
            --no-bias-decay --label-smoothing 0.1 --precision bf16 --augment "$augment" -o "$out/$net-$number"
        start=$out/$net-$number from=
        set -- "$@" "$start"
    done
    featx evaluate "$start" "$data" --split "${SPLIT:-val}" -o "$out/$net.evaluation.json" --json > "$out/$net.json"
    python "$here/ship.py" "$net" "$out/pretrained" "$out/$net.json" "$@"
done
python "$here/table.py" "$out/table.csv" "$out"/*-mini.json
