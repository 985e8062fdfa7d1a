"""RLinf (https://github.com/RLinf/RLinf): any ``VLAForDriving`` and any environment in its own embodied runner.

``launch`` starts a run, ``native`` writes RLinf's configuration, ``plugin`` is what RLinf loads in each of its workers, ``env``
and ``model`` are its environment and its policy on our contracts. Only ``launch``, ``native`` and ``compat`` can be imported
without RLinf.
"""
