"""siiRL (https://github.com/sii-research/siiRL): any ``VLAForDriving`` and any environment in its own DAG, with SRPO.

siiRL's embodied path is closed to outsiders (LIBERO and OpenVLA are written into it), so what we bring is a worker, a pipeline
and a reward; the trainer, the graph, the sampling node, the advantages, the losses and the SRPO reward are siiRL's own.
``launch`` starts a run, ``native`` writes siiRL's arguments, ``plugin`` is what every process of siiRL loads, ``env`` is its
environment class on our contract. ``rollout``, ``batch``, ``policy`` and ``embedding`` need torch
alone; ``worker``, ``update``, ``pipeline``, ``reward``, ``runner`` and ``plugin`` cannot be imported without siiRL.
"""
