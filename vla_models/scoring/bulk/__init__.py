"""Many scenes at once: scenes and proposals on disk in, one table of scores out, by several processes or machines.

``sources`` finds and matches the files, ``work`` scores a share of them, ``engines`` spreads the shares over processes or
Ray, ``run`` keeps what is finished so that a killed run goes on, ``table`` is the result and its files.
"""

from vla_models.scoring.bulk.run import score_jobs
from vla_models.scoring.bulk.sources import Job, find_jobs, find_scenes
from vla_models.scoring.bulk.table import ScoreTable
from vla_models.scoring.bulk.work import Options

__all__ = ["Job", "Options", "ScoreTable", "find_jobs", "find_scenes", "score_jobs"]
