"""``vla-models init`` and ``vla-models codebook``: what one makes before training."""

from __future__ import annotations

import keyword
import re
from pathlib import Path
from typing import Annotated

import typer

from vla_models.cli.app import app, console
from vla_models.errors import ConfigError

_TEMPLATES = Path(__file__).parent / "templates"
_FILES = {
    "pyproject.toml.txt": "pyproject.toml",
    "model.py.txt": "{package}/__init__.py",
    "config.yaml.txt": "config.yaml",
    "test_model.py.txt": "tests/test_{package}.py",
}
"""Template -> file of the new package."""


@app.command(epilog="Example:\n\n  vla-models init my_vla && cd my_vla && pip install -e . && vla-models train config.yaml")
def init(
    name: Annotated[str, typer.Argument(help="Name of the model and of its package, say my_vla.")],
    folder: Annotated[Path | None, typer.Option(help="Where to make it; left out, ./NAME.")] = None,
) -> None:
    """Write a package with a model of your own: small, trainable from the first minute, with a test."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise ConfigError(f"{name!r} is no name for a package: small letters, digits and _, a letter first")
    root = folder or Path(name)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ConfigError(f"{str(root)!r} exists and is not empty; name another --folder")
    known = {"package": name, "class": "".join(part.capitalize() for part in name.split("_"))}
    for template, target in _FILES.items():
        text = (_TEMPLATES / template).read_text(encoding="utf-8")
        for key, value in known.items():
            text = text.replace(f"<{key}>", value)
        path = root / target.format(**known)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    terminal = console()
    for target in _FILES.values():
        terminal.print(root / target.format(**known), soft_wrap=True, highlight=False)
    terminal.print(f"\nnext: cd {root} && pip install -e . && vla-models train config.yaml", soft_wrap=True, highlight=False)


@app.command(
    epilog="Example:\n\n  vla-models codebook my_scenes --size 256 --output plans.npz\n\n"
    "  vla-models train configs/navsim_quick.yaml model.policy_head='{type: tokens, codebook: plans.npz}'"
)
def codebook(
    store: Annotated[Path, typer.Argument(help="A scene store, say one that vla-models scenes wrote.")],
    size: Annotated[int, typer.Option(help="Trajectories in the codebook.", min=2)] = 256,
    output: Annotated[Path, typer.Option(help="The file to write (.npz).")] = Path("codebook.npz"),
    seed: Annotated[int, typer.Option(help="Of k-means.", min=0)] = 0,
) -> None:
    """Cluster the expert plans of a scene store into a codebook of trajectories, one token each."""
    import torch

    from vla_models.heads.trajectories import TrajectoryCodebook, cluster
    from vla_models.scenes.scene import PLAN_DT
    from vla_models.scenes.store import SceneStore
    from vla_models.training.imitation import expert_plans

    if output.suffix != ".npz":
        raise ConfigError(f"--output: a codebook is an .npz file, not {str(output)!r}")
    plans, speed = expert_plans(SceneStore.open(store))
    made = TrajectoryCodebook(cluster(plans, size, seed), PLAN_DT)
    wanted = torch.from_numpy(plans)
    near = made.decode(made.encode(wanted, torch.from_numpy(speed)), torch.from_numpy(speed))
    apart = (near - wanted)[..., :2].norm(dim=-1)
    made.save(output)
    console().print(
        f"{output}: {size} trajectories of {len(plans)} plans; a plan's poses lie {apart.mean():.2f} m from its token's on "
        f"average, {apart[:, -1].quantile(0.95):.2f} m at the end in the worst twentieth",
        soft_wrap=True,
        highlight=False,
    )
