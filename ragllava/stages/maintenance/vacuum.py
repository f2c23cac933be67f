"""VACUUM where rows churn, and whether the graphs of indexes still find what an exact search finds."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ragllava.errors import JobRefused
from ragllava.jobs.kinds import KINDS
from ragllava.jobs.runner import ShardContext
from ragllava.stages.maintenance.task_report import Report, TaskRequest, counted
from ragllava.stages.resources import Resources
from ragllava.stores.archives import vectors
from ragllava.stores.archives.vectors import IndexView
from ragllava.stores.maintenance import vacuuming

LEAST_RECALL = 0.98  # of the 20 nearest, against exact (docs/reliability.md D12)
_NEAREST = 20
_QUESTIONS = 200


def vacuum(context: ShardContext[Resources], request: TaskRequest) -> Report:
    """VACUUM (ANALYZE) the tables that churn, and measure recall@20 of every graph on questions that were asked."""
    tables = []
    of_inputs = [name for kind in KINDS.values() for name in kind.inputs.updated_tables]
    for name in (*vacuuming.CHURNING, *of_inputs, *context.read(vacuuming.partitions)):
        context.check()
        if (state := vacuuming.vacuum_table(context.engine, name)) is not None:
            tables.append(state)
    oldest_s = context.read(vacuuming.oldest_transaction_s)
    graphs: list[dict[str, Any]] = []
    for archive_name, index in context.read(vacuuming.graphs):
        context.check()
        graphs.append({"archive": archive_name, "index": index.index_id} | _measure(context, index))
    dead = sum(table.dead_rows for table in tables)
    warnings = [
        f"index {graph['index']} of {graph['archive']} finds only {graph['recall']:.3f} of the true neighbours; "
        f"build it anew with `ragllava reindex --archive {graph['archive']}`"
        for graph in graphs
        if graph.get("recall", 1.0) < LEAST_RECALL
    ]
    if dead > max(1_000, sum(table.live_rows for table in tables)):
        warnings.append(f"{dead:,} dead rows could not be removed: a transaction is open for {oldest_s:.0f} s")
    summary = f"vacuumed {counted(len(tables), 'table')}, measured {counted(len(graphs), 'graph')}"
    figures: dict[str, Any] = {
        "warnings": warnings,
        "graphs": graphs,
        "oldest_transaction_s": round(oldest_s, 1),
        "tables": [asdict(table) for table in tables if table.dead_rows or table.live_rows],
    }
    return Report("; ".join([summary, *warnings]), figures)


def _measure(context: ShardContext[Resources], index: IndexView) -> dict[str, Any]:
    """`recall` and how many questions it was measured on; without it, the reason."""
    try:
        retriever = context.resources.retriever_of(index)
    except JobRefused as error:
        return {"not_measured": str(error)}
    questions = context.read(vacuuming.stored_questions, index.archive_id, _QUESTIONS)
    if not questions:
        return {"not_measured": "nobody has asked this archive anything yet"}
    queries = retriever.embed_texts(questions)
    recall = context.read(vectors.measure_recall, index, queries, _NEAREST)
    return {"recall": round(recall, 4), "questions": len(questions)}
