"""The report: one HTML page and one metrics.json that carry everything a run has to show for itself."""

from stages.report.stage import ReportStage

__all__ = ["ReportStage"]
