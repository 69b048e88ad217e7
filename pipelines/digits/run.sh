#!/bin/sh
# Question   Which layer of a small AlexNet tells handwritten digits apart, with 30 examples of each to learn from?
# Data       The 1,797 digits that scikit-learn carries; written as PNG files into DATA if they are not there.
# Compare    Nothing published. The network, alexnet-mini, was trained on photographs; digits hardly tell its weights from
#            random ones (WEIGHTS=random:0 shows it). What training is worth shows on photographs: see docs/probe.md.
# Expect     expected.json: accuracy of each layer and head within 0.02.
# Takes      About a minute on two CPU cores. Killed and started again it goes on where it was.
#
# Usage: run.sh DATA OUT      (featx and python on PATH)
set -eu
data=$1 out=$2 here=$(dirname "$0")
layers="conv1 conv3 conv5 fc6 fc7"
mkdir -p "$data" "$out"

echo "1. the images: $data/0 ... $data/9"
python "$here/write_digits.py" "$data" "$out/photos"

echo "2. what they are"
featx check "$data"

echo "3. features of five layers: $out/digits.h5"
featx extract "$data" -b alexnet-mini -w "${WEIGHTS:-default}" -l conv1,conv3,conv5,fc6,fc7 --pool avg \
    -o "$out/digits.h5"

echo "4. are they right? rows recomputed one by one by plain PyTorch"
featx verify "$out/digits.h5" --rows 16

echo "5. a linear SVM and a softmax on each layer, 30 images of each digit to learn from, C by cross-validation"
set --
for layer in $layers; do
    for head in svm softmax; do
        name="$out/$layer-$head"
        featx "fit-$head" "$out/digits.h5" -l "$layer" --per-class "${PER_CLASS:-30}" --normalize standard --folds 3 \
            -o "$name.safetensors" --json > "$name.json"
        set -- "$@" "$name.json"
    done
done

echo "6. accuracy on the digits that were not learned from"
python "$here/table.py" "$out/table.csv" "$@"

echo "7. the best layer's SVM on every image: $out/predictions.csv"
featx predict "$out/conv5-svm.safetensors" "$out/digits.h5" -o "$out/predictions.csv"

echo "8. a page about all of it: $out/report.html"
featx report "$out/digits.h5" --photos "$out/photos" -o "$out/report.html"
echo "Digits hardly tell trained weights from random ones (WEIGHTS=random:0); photographs do: see docs/probe.md."
echo "Also: $out/table.csv, $out/predictions.csv, $out/digits.h5 (HDF5), $data"
echo "To open in a browser: file://$(cd "$out" && pwd)/report.html"
