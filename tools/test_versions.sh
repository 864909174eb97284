#!/usr/bin/env bash
# Every test on other library versions than the locked ones, in an environment of its own.
#   tools/test_versions.sh oldest|newest [pytest arguments]      -m "not slow and not browser": the quick ones
# oldest: the lower end of every range in pyproject.toml. newest: what the package index gives within the ranges.
# The environment (.venv.oldest, .venv.newest) is kept and brought up to date by the next call.
set -eu
cd "$(dirname "$0")/.."
which=${1:-}
case "$which" in
  oldest) resolution=lowest-direct ;;
  newest) resolution=highest ;;
  *) echo "usage: tools/test_versions.sh oldest|newest [pytest arguments]" >&2; exit 2 ;;
esac
shift
venv=.venv.$which
pins=$venv.txt
uv() { .venv/bin/python -m uv "$@"; }
# uv does not read pip's own setting for a folder of wheels.
export UV_FIND_LINKS=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}
version=$(.venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')

resolve() {
  uv pip compile --quiet --resolution "$1" --extra lab --extra mlx --extra test --extra dev --python-version "$version" \
    --no-annotate --no-header ${3:+-c "$3"} pyproject.toml -o "$2"
}

echo "resolving the $which versions"
resolve highest "$pins"
if [ "$which" = oldest ]; then
  # torch has one minor version for everybody; its lowest file is the build with the GPU packages.
  grep '^torch==' "$pins" > "$pins.torch"
  rm -f "$pins"
  resolve "$resolution" "$pins" "$pins.torch"
  rm -f "$pins.torch"
fi
[ -x "$venv/bin/python" ] || uv venv --quiet --seed --python "$PWD/.venv/bin/python" "$venv"
uv pip sync --quiet --python "$venv/bin/python" "$pins"
uv pip install --quiet --python "$venv/bin/python" --no-deps -e .
grep -E '^(torch|transformers|trl|peft|accelerate|datasets|huggingface-hub|numpy|pydantic|papermill|ipywidgets|gguf|xllamacpp)==' "$pins"
if [ "${MAC_LORA_INSTALL_ONLY:-}" = 1 ]; then exit 0; fi
exec "$venv/bin/python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder -p no:cacheprovider "$@"
