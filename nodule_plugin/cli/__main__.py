"""``python -m nodule_plugin.cli``: the command ``nodule`` where it is not installed."""

from __future__ import annotations

from nodule_plugin.cli import main

if __name__ == "__main__":
    main()
