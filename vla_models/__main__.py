"""``python -m vla_models`` is ``vla-models``."""

from __future__ import annotations

from vla_models.cli import main

if __name__ == "__main__":
    main()
