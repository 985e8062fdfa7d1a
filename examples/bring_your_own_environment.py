"""A driving environment of your own, for every framework: python examples/bring_your_own_environment.py FRAMEWORK

A straight road with a parked car in it. One VectorEnv and, for each framework, two lines.
"""

import sys

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from vla_models import VLAConfig, register_env_adapter
from vla_models.frameworks import get_launcher
from vla_models.frameworks.areal.env import AReaLEnvAdapter
from vla_models.frameworks.rlinf.env import RLinfEnvAdapter
from vla_models.frameworks.siirl.env import SiirlEnvAdapter
from vla_models.frameworks.verl.env import VerlEnvAdapter
from vla_models.inputs import EGO_FEATURES
from vla_models.scenes.scene import COMMANDS

LENGTH, HALF_WIDTH, REACH = 40.0, 4.0, 2.4  # metres: of the road, of its half, from the parked car's centre to where it touches
POSES = 2  # of a plan that are driven before the next decision
PLACES = {"train": (12.0, 18.0, 24.0, 30.0), "heldout": (15.0, 27.0)}  # where the parked cars are, metres along the road


class ParkedCars(VectorEnv):
    """N roads at once. ``tokens`` are the scenes' names; ``max_decisions`` ends an episode that does not end itself."""

    metadata = {"autoreset_mode": AutoresetMode.DISABLED, "render_modes": []}  # noqa: RUF012 - frameworks choose the scenes

    def __init__(self, num_envs, part="train", horizon=8, dt=0.5, max_decisions=8):
        self.num_envs, self.dt, self.max_decisions = num_envs, dt, max_decisions
        self.parked = {f"{part}-{x:.0f}-{s}": (x, y) for x in PLACES[part] for s, y in (("left", 0.8), ("right", -0.8))}
        self.tokens = list(self.parked)
        self.single_observation_space = spaces.Dict(
            {
                "images": spaces.Dict({"front": spaces.Box(0, 255, (32, 48, 3), np.uint8)}),
                "ego": spaces.Box(-np.inf, np.inf, (len(EGO_FEATURES),), np.float32),
                "route": spaces.Box(-np.inf, np.inf, (10, 2), np.float32),
                "command": spaces.Discrete(len(COMMANDS)),
                "text": spaces.Text(100),
            }
        )
        self.single_action_space = spaces.Box(-np.inf, np.inf, (horizon, 3), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.pose, self.speed = np.zeros((num_envs, 3)), np.zeros(num_envs)
        self.decided, self.names = np.zeros(num_envs, dtype=np.int64), [self.tokens[0]] * num_envs

    def reset(self, *, seed=None, options=None):
        """Begin episodes: ``options["scenes"]`` names N scenes, ``options["reset_mask"]`` says which rows begin again."""
        super().reset(seed=seed)
        options = options or {}
        rows = np.asarray(options.get("reset_mask", np.ones(self.num_envs, dtype=bool)))
        scenes = options.get("scenes") or list(self.np_random.choice(self.tokens, self.num_envs))
        for row in np.flatnonzero(rows):
            self.parked[scenes[row]]  # an unknown scene is an error, here and now
            self.names[row] = scenes[row]
        self.pose[rows], self.speed[rows], self.decided[rows] = 0.0, 5.0, 0
        return self.observe(), {"scene": list(self.names)}

    def step(self, plans):
        """Drive the first ``POSES`` poses of each plan [N, T, 3] (x, y, heading in the ego frame), at most 12 m/s."""
        before, hit, off = self.pose.copy(), np.zeros(self.num_envs, dtype=bool), np.zeros(self.num_envs, dtype=bool)
        cars = np.array([self.parked[name] for name in self.names])
        cos, sin = np.cos(before[:, 2]), np.sin(before[:, 2])
        for x, y, turn in np.asarray(plans, dtype=np.float64)[:, :POSES].transpose(1, 2, 0):
            aim = before[:, :2] + np.stack([cos * x - sin * y, sin * x + cos * y], axis=1)
            way = aim - self.pose[:, :2]
            self.speed = np.minimum(np.linalg.norm(way, axis=1) / self.dt, 12.0)
            scale = self.speed * self.dt / np.maximum(np.linalg.norm(way, axis=1), 1e-9)
            for share in (0.25, 0.5, 0.75, 1.0):  # looked at four times on the way
                point = self.pose[:, :2] + share * scale[:, None] * way
                hit |= np.linalg.norm(point - cars, axis=1) < REACH
                off |= np.abs(point[:, 1]) > HALF_WIDTH
            self.pose = np.concatenate([self.pose[:, :2] + scale[:, None] * way, (before[:, 2] + turn)[:, None]], axis=1)
        self.decided += 1
        arrived = self.pose[:, 0] >= LENGTH
        progress = np.clip(self.pose[:, 0], 0.0, LENGTH) - np.clip(before[:, 0], 0.0, LENGTH)
        terms = {"progress": progress / LENGTH, "collision": -1.0 * hit, "off_road": -1.0 * off}
        terms = {name: values.astype(np.float32) for name, values in terms.items()}
        metrics = {"score": (arrived & ~hit & ~off).astype(np.float32)}
        info = {"terms": terms, "metrics": metrics, "scene": list(self.names), "valid": np.isfinite(self.pose).all(axis=1)}
        return self.observe(), sum(terms.values()), arrived | hit | off, self.decided >= self.max_decisions, info

    def observe(self):
        """What the model may know; the picture is the road from above, 24 m ahead and 4 m to each side."""
        cos, sin = np.cos(self.pose[:, 2]), np.sin(self.pose[:, 2])
        ahead, left = np.meshgrid(np.linspace(24.0, 0.0, 32), np.linspace(4.0, -4.0, 48), indexing="ij")
        x = self.pose[:, 0, None, None] + np.multiply.outer(cos, ahead) - np.multiply.outer(sin, left)
        y = self.pose[:, 1, None, None] + np.multiply.outer(sin, ahead) + np.multiply.outer(cos, left)
        cars = np.array([self.parked[name] for name in self.names])[:, :, None, None]
        picture = np.where(np.abs(y) > HALF_WIDTH, 40, 120)
        picture = np.where(np.hypot(x - cars[:, 0], y - cars[:, 1]) < 1.2, 250, picture)
        along, aside = np.arange(5.0, 51.0, 5.0), -self.pose[:, 1]  # the road's middle, seen from the car
        route = [np.multiply.outer(cos, along) + (sin * aside)[:, None], (cos * aside)[:, None] - np.multiply.outer(sin, along)]
        ego = np.zeros((self.num_envs, len(EGO_FEATURES)), dtype=np.float32)
        ego[:, 0] = self.speed
        return {
            "images": {"front": np.repeat(picture[..., None], 3, axis=-1).astype(np.uint8)},
            "ego": ego,
            "route": np.stack(route, axis=-1).astype(np.float32),
            "command": np.full(self.num_envs, COMMANDS.index("straight")),
            "text": ["Drive around what stands in the road"] * self.num_envs,
        }


class MadeHere:
    """Where each framework's adapter gets its rows from."""

    @classmethod
    def make_env(cls, config, part, num_envs, spec):
        return ParkedCars(num_envs, part, spec.horizon, spec.dt)


@register_env_adapter("parked_cars", "areal")
class InAReaL(MadeHere, AReaLEnvAdapter): ...


@register_env_adapter("parked_cars", "rlinf")
class InRLinf(MadeHere, RLinfEnvAdapter): ...


@register_env_adapter("parked_cars", "verl")
class InVerl(MadeHere, VerlEnvAdapter): ...


@register_env_adapter("parked_cars", "siirl")
class InSiiRL(MadeHere, SiirlEnvAdapter): ...


if __name__ == "__main__":  # python examples/bring_your_own_environment.py rlinf, with the Python that `make env-rlinf` names
    training = {"steps": 40, "scenes_per_step": 8, "eval_every": 20, "imitation": {"steps": 0}, "optimizer": {"lr": 3e-4}}
    settings = {"framework": sys.argv[1], "environment": {"type": "parked_cars"}, "training": training}
    print(get_launcher(sys.argv[1])(VLAConfig.from_dict(settings)))
