"""siiRL's main program with our plugin in it: ``python -m vla_models.frameworks.siirl.main a.b=c …`` (``siirl/start.sh``)."""

from __future__ import annotations

import importlib
from typing import Any

from vla_models.frameworks.siirl import plugin


def main() -> None:
    """``siirl.main_dag.main`` on a Ray whose processes load the plugin."""
    plugin.register()
    ray: Any = importlib.import_module("ray")
    main_dag: Any = importlib.import_module("siirl.main_dag")
    ray.init(runtime_env={"env_vars": main_dag.RAY_RUNTIME_ENV_VARS, "worker_process_setup_hook": plugin.HOOK})
    main_dag.main()


if __name__ == "__main__":
    main()
