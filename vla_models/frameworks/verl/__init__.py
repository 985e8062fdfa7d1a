"""verl (https://github.com/verl-project/verl): any ``VLAForDriving`` and any environment in its own PPO trainer.

``launch`` starts a run, ``native`` writes verl's configuration, ``plugin`` is what verl loads in each of its processes.
``env`` drives, ``loop`` is verl's agent loop, ``model``, ``engine`` and ``rollout`` are its model, its training engine and its
rollout server around our model contract, ``sampler`` counts what was dropped. Only ``launch``, ``native``, ``env`` and
``compat`` can be imported without verl.
"""
