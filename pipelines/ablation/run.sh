#!/bin/sh
# Question   Which layers does a network need? It is trained from scratch whole, without 3-4, 7, 6-7 and 3-4-6-7, and with
#            wider 6-7: the same recipe, the same seeds. Beside it: what half of a layer's units are worth to the trained one.
# Data       Labelled images with splits, DATA/train/CLASS/* and DATA/test/CLASS/* (or val), a folder or zip: CIFAR-10, or
#            500 images of each of its classes.
# Compare    Zeiler & Fergus, ECCV 2014, Table 3, on ImageNet; the table has their figures beside ours. There a network
#            without 3-4-6-7 is far worse. On few small images it need not be: see docs/show.md.
# Expect     The table in docs/show.md, of EPOCHS=10 and SEEDS="0 1", within 0.03.
# Takes      About 35 minutes on two cores with 5,000 images of CIFAR-10: 16 seconds an epoch for the whole network. Killed and
#            started again it goes on where it was.
#
# Usage: run.sh DATA OUT [NET]      (featx and python on PATH; NET is alexnet-mini by default)
set -eu
data=$1 out=$2 net=${3:-alexnet-mini} here=$(dirname "$0")
mkdir -p "$out"

train() {  # NAME SEED [OPTION...]
    name=$1-seed$2 seed=$2
    shift 2
    echo "$name"
    featx finetune "$data" -b "$net" --from-scratch "$@" --split-column --epochs "${EPOCHS:-8}" --lr '*=0.1' --warmup 1 \
        --batch-size "${BATCH:-64}" --no-bias-decay --precision bf16 --augment "${AUGMENT:-flip,shift:6}" --seed "$seed" \
        -o "$out/$name" > "$out/$name.txt"
    for split in train "${SPLIT:-test}"; do
        featx evaluate "$out/$name" "$data" --split "$split" -o "$out/$name.$split.json" > /dev/null
    done
}

for seed in ${SEEDS:-0 1 2}; do
    for variant in ${VARIANTS:-whole without-3-4 without-7 without-6-7 without-3-4-6-7 wider-6-7}; do
        case $variant in
            whole) set -- ;;
            without-3-4) set -- --without conv3,conv4 ;;
            without-7) set -- --without fc7 ;;
            without-6-7) set -- --without fc6,fc7 ;;
            without-3-4-6-7) set -- --without conv3,conv4,fc6,fc7 ;;
            wider-6-7) set -- --widen fc6x2,fc7x2 ;;
        esac
        train "$variant" "$seed" "$@"
    done
    for layer in ${LESIONS:-conv1 conv2 conv3 conv4 conv5 fc6 fc7}; do
        featx evaluate "$out/whole-seed$seed" "$data" --split "${SPLIT:-test}" --lesion "$layer=${SHARE:-0.5}" \
            -o "$out/lesion-$layer-seed$seed.json" > /dev/null
    done
done
python "$here/table.py" "$out" "${SPLIT:-test}"
