#!/usr/bin/env bash
# Prints the Python of the environment of a framework (requirements/<framework>.txt), building it first if need be:
#     python=$(bash requirements/framework_env.sh rlinf)
# Environments lie outside the clone, under ${VLA_MODELS_VENVS:-~/.cache/vla_models/venvs}, and are named by what they were made
# from, so clones share them and a changed pin makes a new one. This package is not installed in them: put the clone on PYTHONPATH.
set -euo pipefail
framework=$1
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3.11}
made_from=$(cat "$here/$framework.txt" "$0" | sha256sum | cut -c1-16)
folder=${VLA_MODELS_VENVS:-$HOME/.cache/vla_models/venvs}/$framework-$made_from

if [ ! -f "$folder/.complete" ]; then
    mkdir -p "$(dirname "$folder")"
    exec 9> "$folder.lock"
    flock 9 # two builds at once: the second waits, and finds the first one's
    if [ ! -f "$folder/.complete" ]; then
        echo "building the environment of $framework in $folder" >&2
        rm -rf "$folder" # what a build left that was broken off
        "$python" -m venv "$folder" >&2
        "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -r "$here/$framework.txt" >&2
        touch "$folder/.complete"
    fi
fi
echo "$folder/bin/python"
