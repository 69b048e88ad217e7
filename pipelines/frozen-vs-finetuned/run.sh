#!/bin/sh
# Question   When does fine-tuning pay? The same images through features and a linear head (the network stays as it is)
#            and through fine-tuning with four policies of learning rates.
# Data       A folder with train/CLASS/* and test/CLASS/*: any labelled photographs. Both ways learn from train alone:
#            C is chosen by cross-validation there, the best epoch on a tenth of it that is held out.
# Compare    Yosinski et al., NeurIPS 2014 (arXiv:1411.1792): fine-tuned features transfer better than frozen ones, the
#            more so the further the task is from ImageNet; Agrawal et al., ECCV 2014, for few images.
# Expect     head is within the noise of the softmax on the same layer, as it is the same convex problem; all and decay
#            above it from some dozens of images per class on. No figure is promised: it depends on DATA.
# Takes      About (policies x EPOCHS) times an extraction. Killed and started again it goes on where it was.
#
# Usage: run.sh DATA OUT [NET [LAYER]]      by default alexnet fc7 (featx and python on PATH)
set -eu
data=$1 out=$2 net=${3:-alexnet} layer=${4:-fc7} here=$(dirname "$0")
weights=${WEIGHTS:-default}
mkdir -p "$out"

featx extract "$data" -b "$net" -w "$weights" -l "$layer" -o "$out/features.h5"
for head in svm softmax; do
    featx "fit-$head" "$out/features.h5" -l "$layer" --split-column --c "${C:-auto}" -o "$out/$head.safetensors" \
        --json > "$out/frozen-$head.json"
done
for policy in head fc all decay:0.5; do
    featx finetune "$data/train" -b "$net" -w "$weights" --val "${VAL:-0.1}" --lr "$policy" --epochs "${EPOCHS:-10}" \
        -o "$out/finetuned-$policy"
    featx evaluate "$out/finetuned-$policy" "$data/test" -o "$out/finetuned-$policy.evaluation.json" --json \
        > "$out/finetuned-$policy.json"
done
python "$here/table.py" "$out"
