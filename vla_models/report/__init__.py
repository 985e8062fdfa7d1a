"""What a person reads after a run: ``write_report`` turns a run folder into one HTML file."""

from vla_models.report.report import write_report

__all__ = ["write_report"]
