"""VACUUM the tables that churn, and check that the graphs of indexes find what an exact search finds."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection

from ragllava.errors import JobRefused
from ragllava.jobs.isolation import Failures
from ragllava.jobs.kinds import KINDS
from ragllava.jobs.runner import ShardContext
from ragllava.stages.maintenance.task_report import Report, counted, with_failures
from ragllava.stages.reindex.gate import NEEDED_RECALL, measure_recall
from ragllava.stages.resources import Resources
from ragllava.stores.archives import indexes, word_index
from ragllava.stores.archives.vectors import IndexView
from ragllava.stores.maintenance import inspection, vacuuming


def vacuum(context: ShardContext[Resources]) -> Report:
    """Sum up the counts of words, VACUUM (ANALYZE) the tables that churn, and measure recall@20 of every graph with
    questions that were asked."""
    failures = Failures()
    failures.run("the counts of words", context.read, _sum_up_words)
    tables = []
    of_inputs = [name for kind in KINDS.values() for name in kind.inputs.updated_tables]
    for name in (*vacuuming.CHURNING, *of_inputs, *context.read(vacuuming.partitions)):
        context.check()
        if (state := failures.run(f"table {name}", vacuuming.vacuum_table, context.engine, name)) is not None:
            tables.append(state)
    oldest_s = context.read(vacuuming.oldest_transaction_s)
    graphs: list[dict[str, Any]] = []
    for details in context.read(indexes.all_indexes):
        context.check()
        if details.index.has_hnsw and details.index.state != "retired":
            graph = {"archive": details.archive, "index": details.index.index_id}
            measured = failures.run(f"index {details.index.index_id}", _measure, context, details.index)
            graphs.append(graph | (measured or {"not_measured": "it failed"}))
    dead = sum(table.dead_rows for table in tables)
    warnings = [
        f"index {graph['index']} of {graph['archive']} finds only {graph['recall']:.3f} of the true neighbours; "
        f"rebuild it with `ragllava reindex --archive {graph['archive']}`"
        for graph in graphs
        if graph.get("recall", 1.0) < NEEDED_RECALL
    ]
    if dead > max(1_000, sum(table.live_rows for table in tables)):
        warnings.append(f"{dead:,} dead rows could not be removed: a transaction has been open for {oldest_s:.0f} s")
    summary = f"vacuumed {counted(len(tables), 'table')}, measured {counted(len(graphs), 'graph')}"
    figures: dict[str, Any] = {
        "warnings": warnings,
        "graphs": graphs,
        "oldest_transaction_s": round(oldest_s, 1),
        "tables": [asdict(table) for table in tables if table.dead_rows or table.live_rows],
    }
    return with_failures(Report("; ".join([summary, *warnings]), figures), failures)


def _sum_up_words(connection: Connection) -> None:
    inspection.allow_minutes(connection)
    word_index.compact(connection)


def _measure(context: ShardContext[Resources], index: IndexView) -> dict[str, Any]:
    """`recall` and how many questions it was measured with; without it, the reason."""
    try:
        recall, questions = measure_recall(context, index, context.resources.retriever_of(index))
    except JobRefused as error:
        return {"not_measured": str(error)}
    if not questions:
        return {"not_measured": "no question has been asked of this archive yet"}
    return {"recall": round(recall, 4), "questions": questions}
