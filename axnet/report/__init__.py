"""One self-contained HTML page of an evaluation: figures with their uncertainty, curves, pictures, configuration."""

from axnet.report.environment import environment
from axnet.report.page import write_report
from axnet.report.results import Example, ModelResult
from axnet.report.sheet import Thumbnail, write_sheet

__all__ = ["Example", "ModelResult", "Thumbnail", "environment", "write_report", "write_sheet"]
