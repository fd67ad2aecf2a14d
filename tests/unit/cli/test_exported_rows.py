"""Rows of exports."""

from __future__ import annotations

import csv
import io
import json

from coupon_service.cli.exported_rows import CsvWriter, JsonWriter
from coupon_service.v1.audit_service_pb2 import AuditEvent


def test_two_exports_of_an_event_are_the_same() -> None:
    """The keys of metadata have no order of their own."""
    names = [f"key-{n}" for n in range(9)]
    nested = {name: {other: [{other: 1.0}] for other in names} for name in names}
    event = AuditEvent(event_id="an-event", user_id="ann")
    event.metadata.update(dict(reversed(nested.items())))
    line, table = io.StringIO(), io.StringIO(newline="")
    JsonWriter(line).write([event])
    CsvWriter(table, AuditEvent.DESCRIPTOR, header=True).write([event])

    assert line.getvalue().startswith('{"event_id": "an-event"')
    assert json.dumps(nested)[:-1] in line.getvalue()
    (row,) = csv.DictReader(io.StringIO(table.getvalue()))
    assert row["metadata"] == json.dumps(nested)
