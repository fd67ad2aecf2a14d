"""`coupon-service token`: a token for development, signed with the secret of the settings."""

# The code that verifies tokens takes longer to import than most commands take to run.
# ruff: noqa: PLC0415

from __future__ import annotations

from typing import Annotated, Final

import typer

from coupon_service.cli.failure import CommandError
from coupon_service.settings import Settings, load_settings

SECRET_FILE: Final = "jwt-secret"  # noqa: S105 - its name
"""The file in the data folder with the secret that coupon-service dev made."""

Seconds = Annotated[int, typer.Option(metavar="SECONDS", min=1, help="Lifetime of the token.")]


def token(
    *,
    role: Annotated[
        list[str],
        typer.Option(
            metavar="ROLE",
            help="Role of the token: admin, issuer, redeemer, auditor, or self, for an end user"
            " whose user_id is the subject. Can be given several times.",
        ),
    ],
    subject: Annotated[str, typer.Option(help="Subject: the name of the caller.")] = "developer",
    business: Annotated[
        str,
        typer.Option(
            help="The only business that the token gives access to. Default: all; self needs one.",
            show_default=False,
        ),
    ] = "",
    expires_in: Seconds = 3_600,
) -> None:
    """Make a bearer token, for trying and developing.

    It is signed with COUPON_JWT_SECRET, or with the secret that coupon-service dev made in
    COUPON_DATA_DIR when it was started with COUPON_AUTH=jwt.

    export COUPON_TOKEN=$(coupon-service token --role admin)
    """
    from coupon_service.rpc.methods import Role

    known = [str(each) for each in Role]
    if unknown := [name for name in role if name not in known]:
        raise CommandError(f"{unknown[0]} is no role. Roles: {', '.join(known)}.")
    if "self" in role and not business:
        raise CommandError("The role self needs a business: --business.")
    typer.echo(new_token(load_settings(), role, subject, business, expires_in))


def new_token(
    settings: Settings,
    roles: list[str],
    subject: str,
    business_id: str = "",
    expires_in_s: int = 60,
) -> str:
    """A token for a service with these settings. Raises CommandError."""
    from coupon_service.security.bearer_tokens import make_token

    return make_token(
        _secret(settings),
        issuer=settings.jwt_issuer,
        audience=settings.jwt_audience.split()[0],
        subject=subject,
        roles=roles,
        business_id=business_id,
        expires_in_s=expires_in_s,
        roles_claim=settings.jwt_roles_claim,
        business_claim=settings.jwt_business_claim,
    )


def _secret(settings: Settings) -> str:
    if settings.jwt_secret is not None:
        return settings.jwt_secret.get_secret_value()
    kept = settings.data_dir / SECRET_FILE
    try:
        return kept.read_text(encoding="ascii")
    except OSError as error:
        raise CommandError(
            "There is no secret to sign with: set COUPON_JWT_SECRET, or start coupon-service dev"
            f" with COUPON_AUTH=jwt, which makes {kept}."
        ) from error
