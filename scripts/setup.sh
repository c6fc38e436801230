# Sourced by the other scripts: a virtual environment .venv in the checkout with the package and all it needs, installed
# from pyproject.toml under constraints.txt, and left alone where it is already right. Sets ROOT and PYTHON, and lets
# threads sleep while they wait for each other.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
PYTHON="$ROOT/.venv/bin/python"
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}" # as nodule_plugin.parallel.wait_passively, before PyTorch is imported
stamp="$ROOT/.venv/installed.sha256"
wanted="$(cat "$ROOT/pyproject.toml" "$ROOT/constraints.txt" | sha256sum) $ROOT"

if [ ! -x "$PYTHON" ] || [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "Setting up $ROOT/.venv (a few minutes, once) ..."
    "${BASE_PYTHON:-python3}" -c 'import sys; assert sys.version_info >= (3, 10), "Python 3.10 or newer is needed"'
    [ -x "$PYTHON" ] || "${BASE_PYTHON:-python3}" -m venv "$ROOT/.venv"
    "$PYTHON" -m pip install --quiet --constraint "$ROOT/constraints.txt" --editable "$ROOT[test]"
    echo "$wanted" > "$stamp"
fi
