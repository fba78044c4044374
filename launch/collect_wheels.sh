#!/usr/bin/env bash
# Collects what a bare machine with a GPU lacks, so that it can be carried there: one that has torch, Triton, Accelerate
# and the small packages around them, and reaches no package index. Run it where packages can be had:
#   launch/collect_wheels.sh wheels 3.12
# and there, in a copy of this directory:
#   python3 -m pip install --no-index --no-deps --target site wheels/*.whl
#   PYTHONPATH=site python3 -m eupmim_dist bench gpu --json gpu-check.json
set -euo pipefail
into=${1:-wheels} python=${2:-3.12} most_mib=64
cd "$(dirname "$0")/.."
pip=(.venv/bin/python -m pip)
pinned() { # NAME... -> NAME==VERSION as this project is tested with
    for name in "$@"; do
        grep -i "^${name//-/[-_]}==" constraints.txt || { echo "constraints.txt: has no $name" >&2; return 1; }
    done
}
mkdir -p "$into"
# shellcheck disable=SC2046  # a word for each package
"${pip[@]}" download --quiet --no-deps --only-binary=:all: --python-version "$python" --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --dest "$into" \
    $(pinned pydantic pydantic-core annotated-types typing-inspection polars polars-runtime-32)
# DeepSpeed comes as source; without its compiled operators, which are not used here, its wheel fits any Python.
# shellcheck disable=SC2046
DS_BUILD_OPS=0 "${pip[@]}" wheel --quiet --no-deps --wheel-dir "$into" $(pinned deepspeed hjson py-cpuinfo)
mib=$(du --summarize --block-size=1M "$into" | cut -f1)
echo "$into: $(find "$into" -name '*.whl' | wc -l) wheels, $mib MiB"
if [ "$mib" -gt "$most_mib" ]; then
    echo "$into: more than $most_mib MiB; remove what an earlier run left there" >&2
    exit 1
fi
