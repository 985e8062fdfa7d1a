"""One stored batch through each framework's own advantages and losses; ``benchmarks/parity.py`` is the command."""
