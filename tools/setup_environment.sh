#!/usr/bin/env bash
# Makes the virtual environment whole or not at all.
#   tools/setup_environment.sh [.venv]
# Takes a Python of 3.11 or newer if there is one, else lets uv fetch one. Interrupted, it removes what it began;
# killed outright, the missing mark makes the next run start over.
set -eu
cd "$(dirname "$0")/.."
venv=${1:-.venv}
extras=${MAC_LORA_EXTRAS:-lab,mlx,track,test,dev}

# On Apple Silicon a Python for Intel runs under Rosetta and has no MPS: not taken.
suits() {
  command -v "$1" >/dev/null 2>&1 && "$1" - >/dev/null 2>&1 <<'PY'
import ensurepip, platform, subprocess, sys, venv
assert (3, 11) <= sys.version_info[:2] <= (3, 14)
if sys.platform == "darwin" and platform.machine() != "arm64":
    probe = subprocess.run(["sysctl", "-n", "hw.optional.arm64"], capture_output=True, text=True)
    assert probe.stdout.strip() != "1"
PY
}

pick() {
  for name in ${PYTHON3:-} python3 python3.12 python3.11 python3.13 python3.14; do
    if suits "$name"; then echo "$name"; return; fi
  done
}

if [ -e "$venv" ] && [ ! -e "$venv/.ready" ]; then
  echo "removing a half-made $venv"
  rm -rf "$venv"
fi
fresh=no
[ -e "$venv" ] || fresh=yes
undo() {
  status=$?
  if [ "$status" -ne 0 ] && [ "$fresh" = yes ]; then
    rm -rf "$venv"
    echo "set-up did not finish; $venv was removed. Run the same command again." >&2
  fi
  exit "$status"
}
trap undo EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

if [ "$fresh" = yes ]; then
  python=$(pick)
  if [ -n "$python" ]; then
    echo "making $venv with $("$python" --version)"
    "$python" -m venv "$venv"
  else
    echo "no Python 3.11 or newer here: uv fetches one"
    python3 -m venv .boot
    .boot/bin/python -m pip install --quiet --disable-pip-version-check uv
    .boot/bin/python -m uv venv --quiet --seed --python ">=3.11,<3.14" "$venv"
  fi
fi
echo "installing what pyproject.toml asks for, at the versions of constraints.txt (some minutes the first time)"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --prefer-binary -c constraints.txt -e ".[$extras]"
touch "$venv/.ready"
