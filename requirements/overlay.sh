#!/usr/bin/env bash
# Print the python of an environment that lays a few packages over .venv: requirements/overlay.sh requirements/x.txt
# It is built once for each requirements file and kept outside the clone, in $VLA_MODELS_VENVS or ~/.cache/vla_models/venvs.
# Run it with VLA_MODELS_BASE=<.venv's site-packages>: they come after its own, so that it has torch and the rest from there.
set -euo pipefail
cd "$(dirname "$0")/.."
base=.venv/bin/python
file=$1
cache=${VLA_MODELS_VENVS:-$HOME/.cache/vla_models/venvs}
key=$( (cat "$file" "$0"; "$base" -VV) | sha256sum | cut -c1-16)
venv=$cache/$(basename "$file" .txt)-$key
mkdir -p "$cache"
exec 9>"$venv.lock"
flock 9 # two gates may start at once
if [ ! -e "$venv/.complete" ]; then
  rm -rf "$venv"
  "$base" -m venv "$venv" >&2
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -r "$file" >&2
  site=$("$venv/bin/python" -c 'import site; print(site.getsitepackages()[0])')
  echo 'import os, site; "VLA_MODELS_BASE" in os.environ and site.addsitedir(os.environ["VLA_MODELS_BASE"])' >"$site/zz_base.pth"
  touch "$venv/.complete"
fi
echo "$venv/bin/python"
