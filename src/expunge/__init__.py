"""Remove chosen knowledge from a causal language model, keep the rest, and prove both."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from expunge import methods, objectives, step_sizes, weightings
    from expunge.api import evaluate, finetune, unlearn
    from expunge.arguments import UnlearningArguments
    from expunge.audit_record import AuditRecord
    from expunge.auditing import AuditResult, audit
    from expunge.comparison import compare
    from expunge.comparison_record import Comparison
    from expunge.errors import UsageError
    from expunge.methods import METHODS, Method
    from expunge.records import Record, Records, read_records
    from expunge.runs import Result
    from expunge.stopping import RetainBudget
    from expunge.unlearner import Unlearner

_HOMES = {
    "AuditRecord": "audit_record",
    "AuditResult": "auditing",
    "audit": "auditing",
    "Comparison": "comparison_record",
    "compare": "comparison",
    "evaluate": "api",
    "finetune": "api",
    "unlearn": "api",
    "Result": "runs",
    "UnlearningArguments": "arguments",
    "UsageError": "errors",
    "METHODS": "methods",
    "Method": "methods",
    "Record": "records",
    "Records": "records",
    "read_records": "records",
    "RetainBudget": "stopping",
    "Unlearner": "unlearner",
}
_MODULES = ("methods", "objectives", "step_sizes", "weightings")

__all__ = [
    "METHODS",
    "AuditRecord",
    "AuditResult",
    "Comparison",
    "Method",
    "Record",
    "Records",
    "Result",
    "RetainBudget",
    "Unlearner",
    "UnlearningArguments",
    "UsageError",
    "audit",
    "compare",
    "evaluate",
    "finetune",
    "methods",
    "objectives",
    "read_records",
    "step_sizes",
    "unlearn",
    "weightings",
]


def __getattr__(name: str) -> Any:
    """Public names load on first use: `import expunge` and `expunge --help` do not wait for torch."""
    if name in _MODULES:
        return import_module(f"expunge.{name}")
    if name in _HOMES:
        return getattr(import_module(f"expunge.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'expunge' has no attribute {name!r}")
