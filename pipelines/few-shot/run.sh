#!/bin/sh
# Question   How many labelled images per class are enough?
# Data       A folder of class folders: any labelled photographs, at least 30 + 10 per class for the whole curve.
# Compare    Zeiler & Fergus, ECCV 2014, Figure 9: Caltech-256, 6 images per class surpass the best result that hand-made
#            features had reached with 60.
# Expect     A curve that rises steeply to ten images per class and slowly behind; no figure is promised: it depends on
#            DATA. C is 10 throughout, as with one image per class there is nothing to cross-validate on.
# Takes      One extraction, then seconds to minutes. Killed and started again it goes on where it was.
#
# Usage: run.sh DATA OUT [NET [LAYER]]      by default alexnet fc7; SHOTS="1 2 5 10 20 30" (featx and python on PATH)
set -eu
data=$1 out=$2 net=${3:-alexnet} layer=${4:-fc7} here=$(dirname "$0")
shots=${SHOTS:-1 2 5 10 20 30}
mkdir -p "$out"

featx extract "$data" -b "$net" -w "${WEIGHTS:-default}" -l "$layer" -o "$out/features.h5"
for shot in $shots; do
    featx probe "$out/features.h5" -l "$layer" --per-class "$shot" --test-per-class 50 --repeats "${REPEATS:-10}" \
        --c 10 -o "$out/$shot"
done
# shellcheck disable=SC2086  # one word each
python "$here/table.py" "$out" $shots
