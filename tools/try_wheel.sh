#!/usr/bin/env bash
# Builds the wheel, installs it into an empty environment and runs it from an empty folder, as a stranger would.
# Takes minutes: it installs torch.  Usage: tools/try_wheel.sh [PYTHON]
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=${1:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
pip=("$work/venv/bin/python" -m pip --disable-pip-version-check --quiet)

"$python" -m venv "$work/venv"
# from a copy: a build folder in the tree would lend the wheel what the sources lack
mkdir "$work/source" "$work/empty"
git -C "$root" ls-files --cached --others --exclude-standard -z |
    (cd "$root" && xargs -0 sh -c 'for f; do [ ! -e "$f" ] || printf "%s\0" "$f"; done' -) |
    tar -C "$root" --null -T - -cf - | tar -C "$work/source" -xf -
"${pip[@]}" wheel --no-deps --wheel-dir "$work/dist" "$work/source"
"${pip[@]}" install --constraint "$root/constraints.txt" torch
"${pip[@]}" install --constraint "$root/constraints.txt" "$work"/dist/pieray-*.whl

cd "$work/empty"
export PIERAY_CACHE="$work/cache" PIERAY_HOME="$work/home"
"$work/venv/bin/pieray" version
"$work/venv/bin/pieray" doctor
"$work/venv/bin/pieray" inferlets
"$work/venv/bin/pieray" run text-completion -- --prompt "12+7="
echo "the wheel works"
