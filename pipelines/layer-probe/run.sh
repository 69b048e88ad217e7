#!/bin/sh
# Question   Which layer transfers best to another data set, and to which classifier?
# Data       Caltech-101, https://data.caltech.edu/records/mzrjq-6wc02, unpacked; or any folder of class folders.
# Compare    Zeiler & Fergus, ECCV 2014, Table 6 (arXiv:1311.2901v3, Table 7): Caltech-101, 30 images per class, their
#            own AlexNet: linear SVM on layers 1-5 and 7: 44.8, 66.2, 72.3, 76.6, 86.2, 85.5 %; softmax on 5, 7: 82.9, 85.4.
# Expect     The same rise from conv1 to conv5 and the same plateau behind it; expected.json has theirs, and no rows of ours. Ours
#            differ in the network's weights, in C (cross-validated) and in the maps, pooled here over 1x1, 2x2 and 4x4.
# Takes      AlexNet about 20 minutes and VGG16 2 hours on two CPU cores; minutes on a GPU. Killed and started again it
#            goes on where it was.
#
# Usage: run.sh DATA OUT [NET...]      by default alexnet vgg16 (featx and python on PATH)
set -eu
data=$1 out=$2 here=$(dirname "$0")
shift 2
[ $# -gt 0 ] || set -- alexnet vgg16
mkdir -p "$out"

for net in "$@"; do
    featx probe "$data" -b "$net" -w "${WEIGHTS:-default}" --pool "${POOL:-spp:1,2,4}" --per-class "${PER_CLASS:-30}" \
        --test-per-class 50 --repeats "${REPEATS:-10}" --c "${C:-auto}" -o "$out/$net"
done
python "$here/table.py" "$out" "$@"
