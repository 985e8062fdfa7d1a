"""A driving VLA of your own, from nothing to online reinforcement learning: python examples/bring_your_own_model.py"""

import numpy as np
import torch
from torch import nn

from vla_models import VLAConfig, VLAForDriving, VLAInput, VLAPrediction, VLASpec, register_vla_model
from vla_models.heads import make_head
from vla_models.inputs import EGO_FEATURES, load_images
from vla_models.training.launch import launch


@register_vla_model("my_vla")
class MyVLA(VLAForDriving):
    def __init__(self, dim=128, head="gaussian"):
        self.spec = VLASpec(head=head, horizon=8, dt=0.5)  # eight poses, half a second apart: what NavSim wants
        self.see = nn.Sequential(nn.Conv2d(3, 16, 6, 4), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(4))
        self.read = nn.EmbeddingBag(256, dim)  # bytes of the instruction
        self.feel = nn.Linear(len(EGO_FEATURES) + 20, dim)  # the ego's motion and the route ahead
        self.think = nn.Sequential(nn.Linear(512 + 2 * dim, dim), nn.GELU(), nn.Linear(dim, dim), nn.GELU())
        self.head = make_head({"type": head}, dim, horizon=8, dt=0.5)

    def encode(self, inputs):
        """Everything the network sees, one row an input."""
        text = [list(f"{x.command}: {x.text}".encode()[:64].ljust(64)) for x in inputs]
        ego = [[x.ego_state[name] for name in EGO_FEATURES] + list(x.route.flatten() / 20) for x in inputs]
        pixels = np.stack([load_images(x.images)["front"] for x in inputs])
        return {"pixels": torch.from_numpy(pixels), "text": torch.tensor(text), "ego": torch.tensor(ego)}

    def features(self, seen):
        picture = self.see(seen["pixels"].permute(0, 3, 1, 2) / 128.0 - 1.0).flatten(1)
        return self.think(torch.cat([picture, self.read(seen["text"]), self.feel(seen["ego"])], dim=1))

    @torch.no_grad()
    def predict(self, inputs, *, deterministic=False, num_samples=1, generator=None, temperature=1.0, top_p=1.0, **_):
        seen = self.encode([inputs] if isinstance(inputs, VLAInput) else inputs)
        seen = {name: part.repeat_interleave(num_samples, dim=0) for name, part in seen.items()}
        one = torch.ones(len(seen["ego"]))
        warp = {"temperature": temperature * one, "top_p": top_p * one, "generator": generator}
        drawn = self.head.sample(self.features(seen), seen["ego"][:, 0], **warp, deterministic=deterministic)
        return VLAPrediction(drawn.plans.numpy(), logprobs=drawn.logprobs, record=seen | drawn.record)

    def evaluate_actions(self, record, *, entropy=False, values=False):  # what a framework trains with
        return self.head.log_prob(self.features(record), record, entropy=entropy)

    def record_from_plans(self, inputs, plans):  # what imitation trains with
        seen = self.encode(inputs)
        return seen | self.head.record_from_plans(torch.as_tensor(plans), seen["ego"][:, 0])

    def plan_normaliser(self):
        return self.head


if __name__ == "__main__":
    scenes = {"train_towns": ["Town01"], "heldout_towns": ["Town02"], "train_scenes": 256, "heldout_scenes": 60}
    training = {"imitation": {"steps": 150}, "steps": 40, "eval_every": 0, "optimizer": {"lr": 3e-4}}
    grpo = {"group_size": 16, "temperature": 0.7, "normalize_advantage": False}
    settings = {"model": {"name": "my_vla"}, "environment": scenes, "algorithm": grpo, "training": training}
    print(launch(VLAConfig.from_dict(settings)))  # the run's folder: report.html, metrics, the trained model
