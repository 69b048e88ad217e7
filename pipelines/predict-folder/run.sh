#!/bin/sh
# Question   What is on a million photographs nobody has labelled?
# Data       A folder of images, and a head that featx fit-svm or fit-softmax has saved.
# Compare    Nothing published: it is your head.
# Expect     One line per image in OUT/table.csv, in the order of their paths; the same lines whatever SHARDS is.
# Takes      An extraction: two CPU cores do 500,000 images a day with AlexNet. Killed and started again it goes on where
#            it was. With SHARD set to I/SHARDS only that part is done, on as many machines as there are parts; started
#            without it at the end, the same command finds all parts done and joins their tables.
#
# Usage: run.sh DATA OUT HEAD [SHARDS]      the features are made as those that HEAD was fitted on (featx on PATH)
set -eu
data=$1 out=$2 head=$3 shards=${4:-1} here=$(dirname "$0")
mkdir -p "$out"

eval "set -- $(python "$here/options.py" "$head")"
for part in ${SHARD:-$(seq -f "%.0f/$shards" 0 $((shards - 1)))}; do
    featx extract "$data" "$@" --shard "$part" -o "$out/features.h5"
    name=${part%/*}-of-$shards
    featx predict "$head" "$out/features.$name.h5" -o "$out/predictions.$name.csv"
done
[ -n "${SHARD:-}" ] || python "$here/table.py" "$out" "$shards"
