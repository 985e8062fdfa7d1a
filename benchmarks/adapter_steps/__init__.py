"""One training step through the adapters of each framework, for ``benchmarks/frameworks.py``: a module each, with ``step``."""
