#!/usr/bin/env bash
# Everything that needs a GPU, in under ten minutes: the tests of it, every ceiling and path (extraction, heads, training with
# and without torch.compile), and the distance of nvJPEG's pixels. What is printed and measured goes into the folder.
#
#   benchmarks/on_a_gpu.sh PHOTOS FOLDER [PYTHON]
#
# PHOTOS is a folder of JPEGs. Each part has a time of its own, and one that fails does not end the others.
set -uo pipefail
photos=$(realpath "$1") folder=$(realpath -m "$2") python=${3:-python3}
cd "$(dirname "$0")/.." || exit 2
mkdir -p "$folder"
part() {
    local name=$1 seconds=$2
    shift 2
    echo "== $name"
    timeout "$seconds" "$@" > "$folder/$name.txt" 2>&1
    echo "   status $?"
    tail -n 5 "$folder/$name.txt"
}
nvidia-smi > "$folder/machine.txt" 2>&1
part tests 200 "$python" -m pytest -q -m gpu -p no:cacheprovider
part gpu 240 "$python" benchmarks/gpu.py "$photos" --images 8000 --results "$folder"
part distance 60 "$python" benchmarks/distance.py "$photos" --device cuda
