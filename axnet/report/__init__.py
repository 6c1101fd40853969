"""One self-contained HTML page of an evaluation: figures with their uncertainty, curves, pictures, configuration."""

from axnet.report.environment import environment
from axnet.report.page import write_report
from axnet.report.results import Example, ModelResult

__all__ = ["Example", "ModelResult", "environment", "write_report"]
