"""AReaL (https://github.com/areal-project/AReaL): any ``VLAForDriving`` and any environment in its asynchronous trainer.

``launch`` starts a run, ``native`` writes AReaL's configuration, ``env`` has the environments in the ``ainitialize`` /
``aexecute`` shape, ``workflow`` drives episodes with them inside AReaL's rollouts, ``inference`` and ``engine`` are the model's
two sides on the record route, ``trainer`` is AReaL's own trainer around them. Only ``blocking``, ``env``, ``driving``,
``deciding``, ``sequences``, ``native``, ``compat`` and ``launch`` can be imported without AReaL.
"""
