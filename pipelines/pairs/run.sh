#!/bin/sh
# Question   Do two photographs show the same person, or the same thing? Which layer and which distance tell best?
# Data       A folder of images, one folder for each person, as Labeled Faces in the Wild
#            (http://vis-www.cs.umass.edu/lfw/lfw.tgz) with its pairs.txt as PAIRS. Without PAIRS, pairs are drawn from the
#            folders, as many of the same as of different.
# Compare    DeepFace (Taigman et al. 2014) reports 97.4 % on LFW; features of networks trained on things, not on faces, reach
#            60 to 75 % there.
# Expect     No figure is promised: it depends on DATA.
# Takes      An extraction, and seconds. Killed and started again it goes on where it was.
#
# Usage: run.sh DATA OUT [PAIRS [NET [LAYERS]]]      by default alexnet fc6,fc7 (featx and python on PATH)
set -eu
data=$1 out=$2 pairs=${3:-} net=${4:-alexnet} layers=${5:-fc6,fc7} here=$(dirname "$0")
mkdir -p "$out"
featx extract "$data" -b "$net" -w "${WEIGHTS:-default}" -l "$layers" --pool "${POOL:-avg}" -o "$out/features.h5"
if [ -z "$pairs" ]; then
    pairs=$out/pairs.csv
    python "$here/draw_pairs.py" "$out/features.h5" "$pairs" "${COUNT:-500}"
fi
set --
for layer in $(echo "$layers" | tr , ' '); do
    featx pairs "$out/features.h5" "$pairs" -l "$layer" --metric "${METRICS:-cosine,l2}" -o "$out/$layer" --json > "$out/$layer.json"
    set -- "$@" "$out/$layer.json"
done
python "$here/table.py" "$out/table.csv" "$@"
