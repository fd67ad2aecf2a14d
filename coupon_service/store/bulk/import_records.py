"""What the ledger has of an imported chunk: enough to answer a repeat with. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from coupon_service.errors import FieldViolation, error_class, reason_name
from coupon_service.model import Event
from coupon_service.store.bulk.upload_rows import (
    OF_CODES,
    ImportResult,
    OfRows,
    Rejection,
    import_result,
)


def recorded_of(
    result: ImportResult, rejected: Mapping[Rejection, Sequence[int]]
) -> Mapping[str, Any]:
    """The metadata of the ledger row of a chunk."""
    record: Mapping[str, Any] = {
        "created": result.created,
        "duplicates": result.duplicates,
        "existing": result.existing,
        "invalid": result.invalid,
        "min_length": result.min_length,
        "rejected": rejected,
    }
    if result.of_rows == OF_CODES:
        return record
    return {**record, **_of_rows(result.of_rows)}


def _of_rows(of_rows: OfRows) -> Mapping[str, Any]:
    return {
        "assigned": of_rows.assigned,
        "not_assigned": len(of_rows.refused),
        "rows": {
            "refused": [
                (index, reason_name(type(it)), it.message, dict(it.metadata))
                for index, it in of_rows.refused.items()
            ],
            "violations": [
                (index, [(it.field, it.description) for it in violations])
                for index, violations in of_rows.violations.items()
            ],
        },
    }


def result_of(event: Event) -> ImportResult:
    """What a repeat of the chunk is answered."""
    record = json.loads(event.metadata or "{}")
    rejected = {Rejection(why): indexes for why, indexes in record["rejected"].items()}
    of_rows = _recorded_rows(record) if "rows" in record else OF_CODES
    least = record.get("min_length", 0)
    return import_result(record["created"], rejected, least, of_rows, replayed=True)


def _recorded_rows(record: Mapping[str, Any]) -> OfRows:
    return OfRows(
        assigned=record["assigned"],
        refused={
            index: error_class(reason)(message, **metadata)
            for index, reason, message, metadata in record["rows"]["refused"]
        },
        violations={
            index: tuple(FieldViolation(*it) for it in violations)
            for index, violations in record["rows"]["violations"]
        },
    )
