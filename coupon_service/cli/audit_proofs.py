"""`coupon-service audit verify` and `audit checkpoint`: whether the ledger is what it was."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final

import typer

from coupon_service.audit.checkpoints import (
    Checkpoint,
    NotVerifiedError,
    read_checkpoint,
    split_notes,
    verify_checkpoint,
)
from coupon_service.audit.records import MalformedError
from coupon_service.cli.client import (
    BlockingService,
)
from coupon_service.cli.connection import Connection, takes_connection
from coupon_service.cli.failure import CommandError
from coupon_service.cli.fields import time_option
from coupon_service.cli.progress import progress
from coupon_service.v1.audit_service_pb2 import (
    AuditFault,
    AuditFinding,
    GetAuditCheckpointRequest,
    GetAuditCheckpointResponse,
    VerifyAuditRequest,
    VerifyAuditResponse,
)
from coupon_service.v1.audit_service_pb2_grpc import AuditServiceStub

FAULTS: Final = {
    AuditFault.AUDIT_FAULT_ROW_CHANGED: "was changed",
    AuditFault.AUDIT_FAULT_ROW_MISSING: "is missing",
    AuditFault.AUDIT_FAULT_ROW_INSERTED: "was inserted",
    AuditFault.AUDIT_FAULT_KEY_MISSING: "cannot be verified: the key of its user is gone",
    AuditFault.AUDIT_FAULT_SEAL_CHANGED: "was changed",
    AuditFault.AUDIT_FAULT_SEAL_MISSING: "is missing",
    AuditFault.AUDIT_FAULT_ERASURE_UNRECORDED: "was erased, and no event says that its user was",
}

Against = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="A checkpoint that was kept, or those of all shards: finds a ledger that was rewritten"
        " as a whole.",
        show_default=False,
    ),
]
Key = Annotated[
    str | None,
    typer.Option(
        metavar="KEY",
        help="The public key that the checkpoint has to be signed with.",
        show_default=False,
    ),
]
Shard = Annotated[
    str,
    typer.Option(
        metavar="SHARD",
        help="Only the ledger of this shard, such as coupon_01. Default: those of all shards.",
        show_default=False,
    ),
]


@takes_connection
def verify(
    since: Annotated[
        datetime | None,
        typer.Option(
            metavar="TIME",
            parser=time_option,
            help="Only what was sealed at this time or later.",
            show_default=False,
        ),
    ] = None,
    until: Annotated[
        datetime | None,
        typer.Option(
            metavar="TIME",
            parser=time_option,
            help="Only what was sealed before this time.",
            show_default=False,
        ),
    ] = None,
    shard: Shard = "",
    against: Against = None,
    key: Key = None,
    *,
    connection: Connection,
) -> None:
    """Compare the ledger with its seals: code 1, and what is wrong, when it is not what it was."""
    if key is not None and against is None:
        raise CommandError("--key is of the checkpoint: name that with --against.")
    kept = _kept(against, key, shard)
    request = VerifyAuditRequest(shard=shard)
    if since is not None:
        request.start_time.FromDatetime(since)
    if until is not None:
        request.end_time.FromDatetime(until)
    with connection.open() as service:
        last, found = _compare(service, request)
        rewritten = [it for it in kept if _is_rewritten(service, it)]
    for finding in found:
        typer.echo(_sentence(finding))
    for it in rewritten:
        typer.echo(_rewritten(it))
    where = "in all shards" if last.shard and not shard else f"up to number {last.sequence}"
    typer.echo(
        f"{last.row_count:,} rows in {last.seal_count:,} seals were compared, {where};"
        f" {last.unsealed_row_count:,} rows are not sealed yet."
    )
    if last.erased_row_count:
        typer.echo(f"{last.erased_row_count:,} of them were erased in part.")
    if last.archived_row_count:
        typer.echo(f"{last.archived_row_count:,} rows are in archives, which prove them.")
    if last.unnumbered_row_count:
        typer.echo(
            f"{last.unnumbered_row_count:,} rows are older than the seals: nothing proves them."
        )
    if found or rewritten:
        raise CommandError("The ledger is not what it was.")
    typer.echo("The ledger is what was sealed.")


@takes_connection
def checkpoint(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE", help="Where to. Default: standard output.", show_default=False
        ),
    ] = None,
    shard: Shard = "",
    against: Against = None,
    key: Key = None,
    *,
    connection: Connection,
) -> None:
    """Get a signed checkpoint of the ledger, to keep where nobody can change it.

    With several shards it has that of each, one after the other.
    """
    kept = _kept(against, key, shard)
    with connection.open() as service:
        newest = _checkpoint(service, shard)
        _checked(newest.checkpoint, key or newest.public_key)
        for it in kept:
            if _is_rewritten(service, it):
                raise CommandError(_rewritten(it))
    typer.echo(f"Public key: {newest.public_key}", err=True)
    if file is None:
        typer.echo(newest.checkpoint, nl=False)
    else:
        try:
            file.write_text(newest.checkpoint, encoding="utf-8")
        except OSError as error:
            raise CommandError(f"{file} cannot be written: {error.strerror}.") from error


def _compare(
    service: BlockingService, request: VerifyAuditRequest
) -> tuple[VerifyAuditResponse, list[AuditFinding]]:
    stub = AuditServiceStub(service.channel)
    last, found = VerifyAuditResponse(), list[AuditFinding]()
    answers: Iterable[VerifyAuditResponse] = stub.VerifyAudit(request, metadata=service.metadata)
    with progress("Verifying", "rows") as update:
        for last in answers:
            found += last.findings
            update(last.row_count, 0)
    if not last.done:
        raise CommandError("The service ended the stream early. Try again.")
    return last, found


def _sentence(finding: AuditFinding) -> str:
    fault = FAULTS.get(finding.fault, AuditFault.Name(finding.fault))
    where = f"{finding.shard}: " if finding.shard else ""
    if not finding.sequence:
        return f"{where}Seal {finding.seal_number} {fault}."
    event = f", event {finding.event_id}," if finding.event_id else ""
    return f"{where}Row {finding.sequence}{event} {fault}."


def _rewritten(kept: Checkpoint) -> str:
    where = f"{kept.shard}: " if kept.shard else ""
    return f"{where}The ledger is not the one of the checkpoint, at seal {kept.number}."


def _checkpoint(
    service: BlockingService, shard: str, number: int = 0
) -> GetAuditCheckpointResponse:
    """By default of the newest seal."""
    stub = AuditServiceStub(service.channel)
    return stub.GetAuditCheckpoint(
        GetAuditCheckpointRequest(number=number, shard=shard), metadata=service.metadata
    )


def _is_rewritten(service: BlockingService, kept: Checkpoint) -> bool:
    """Whether its ledger has another chain at the seal of the checkpoint, or none any more."""
    notes = split_notes(_checkpoint(service, kept.shard).checkpoint)
    newest = next((it for it in map(read_checkpoint, notes) if it.shard == kept.shard), None)
    if newest is None or newest.number < kept.number:
        return True
    return read_checkpoint(_checkpoint(service, kept.shard, kept.number).checkpoint) != kept


def _kept(file: Path | None, key: str | None, shard: str) -> list[Checkpoint]:
    """The checkpoints of a file: those of this shard, or all."""
    if file is None:
        return []
    kept = [it for it in kept_checkpoints(file, key) if shard in ("", it.shard)]
    if not kept:
        raise CommandError(f"{file} has no checkpoint of {shard}.")
    return kept


def kept_checkpoints(file: Path, key: str | None) -> list[Checkpoint]:
    """The checkpoints of a file, one or more, signed with this key. Raises CommandError."""
    try:
        return _checked(file.read_text(encoding="utf-8"), key)
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{file} cannot be read: {error}") from error
    except CommandError as error:
        raise CommandError(f"{file}: {error}") from error


def _checked(notes: str, key: str | None) -> list[Checkpoint]:
    try:
        return [
            read_checkpoint(it) if key is None else verify_checkpoint(it, key)
            for it in split_notes(notes)
        ]
    except (MalformedError, NotVerifiedError) as error:
        raise CommandError(str(error)) from error
