#!/usr/bin/env bash
# Known weaknesses of every locked dependency, by pip-audit (the advisories of PyPI, asked over the network).
#   tools/audit.sh [constraints.txt]
# Exit code: 0 none known; 1 some are, listed above; 3 nothing was audited, because the advisories cannot be reached.
set -u
cd "$(dirname "$0")/.."
locked=${1:-constraints.txt}
venv=.venv.audit
uv() { .venv/bin/python -m uv "$@"; }
export UV_FIND_LINKS=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}
if [ ! -x "$venv/bin/pip-audit" ]; then
  # An environment of its own: the tool's dependencies are not the project's.
  uv venv --quiet "$venv" && uv pip install --quiet --python "$venv/bin/python" "pip-audit>=2.10,<3" || {
    echo "audit: pip-audit could not be installed; nothing was audited" >&2
    exit 3
  }
fi
# pip-audit ends with 1 for a finding and for a service that does not answer: its own report tells the two apart.
report=$(mktemp)
trap 'rm -f "$report" "$report.err"' EXIT
"$venv/bin/pip-audit" --requirement "$locked" --no-deps --disable-pip --progress-spinner off --timeout 20 --format json --output "$report" 2> "$report.err"
status=$?
"$venv/bin/python" - "$report" "$locked" <<'PY'
import json
import sys

try:
    with open(sys.argv[1], encoding="utf-8") as stream:
        found = json.load(stream)["dependencies"]
except (OSError, ValueError, KeyError):
    sys.exit(3)
skipped = [item for item in found if "skip_reason" in item]
looked_at = [item for item in found if "skip_reason" not in item]
if not looked_at:
    sys.exit(3)
for item in looked_at:
    for weakness in item["vulns"]:
        mended = ", ".join(weakness["fix_versions"]) or "no release yet"
        print(f"{item['name']} {item['version']}: {weakness['id']}, mended in {mended}")
for item in skipped:
    print(f"not audited: {item['name']}: {item['skip_reason']}")
count = sum(len(item["vulns"]) for item in looked_at)
print(f"{len(looked_at)} packages of {sys.argv[2]} audited, {count} known weaknesses, {len(skipped)} not audited")
sys.exit(1 if count else 0)
PY
judged=$?
if [ "$judged" -eq 3 ]; then
  tail -n 1 "$report.err" >&2
  echo "audit: the advisories cannot be reached from here; nothing was audited (pip-audit ended with $status)" >&2
fi
exit "$judged"
