"""Say what is wrong with files of bars, whether they are fit for training, and mend copies."""

from jaxtrader.data.checking.findings import Finding, Limits, Verdict
from jaxtrader.data.checking.remediate import remediate
from jaxtrader.data.checking.report import write_report
from jaxtrader.data.checking.run import CheckedFile, check_file, check_folder

__all__ = [
    "CheckedFile",
    "Finding",
    "Limits",
    "Verdict",
    "check_file",
    "check_folder",
    "remediate",
    "write_report",
]
