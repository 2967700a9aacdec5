"""TOFU, a task of fictitious unlearning (arXiv 2401.06121): questions about authors who do not exist."""

from expunge.benchmarks.tofu.data import training_sets
from expunge.benchmarks.tofu.export import write_logs
from expunge.benchmarks.tofu.logs import from_tofu_logs, read_log
from expunge.benchmarks.tofu.metrics import METRICS, names
from expunge.benchmarks.tofu.suite import Tofu, load

__all__ = ["METRICS", "Tofu", "from_tofu_logs", "load", "names", "read_log", "training_sets", "write_logs"]
