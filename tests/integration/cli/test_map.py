"""`coupon-service import --map` and `export --details`, against a real server."""

from __future__ import annotations

import csv
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.command_line import run
from support.service import Api, books, codes, euros, new_codes, struct

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def command(server_address: str, tmp_path: Path) -> Command:
    """Run a command against the shared server, in a folder of the test's own."""

    def command(*arguments: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
        return run(tmp_path, *arguments, "--address", server_address, stdin=stdin)

    return command


def test_columns_become_terms_and_users(api: Api, command: Command, tmp_path: Path) -> None:
    one, two = new_codes(2)
    book = api.book()
    (tmp_path / "codes.csv").write_text(
        "Voucher;customer;valid until;Rabatt;uses;note;letter\n"
        f"{one};ann;2030-12-31;12,5;3;for Ann;2026-11\n"
        f"{two};;;;;;\n"
    )
    done = command(
        *("import", book.book_id, "codes.csv", "--column", "voucher"),
        *("--map", "user_id=customer", "--map", "end_time=valid until"),
        *("--map", "percent_off=rabatt", "--map", "max_redemptions=5"),
        *("--map", "metadata.letter=letter"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "2 created, 0 twice in the file, 0 there already, 0 invalid, 1 assigned\n"
    )
    found = api.get_code(one)
    assert (found.state, found.max_redemptions) == (codes.COUPON_CODE_STATE_ASSIGNED, 3)
    assert found.terms.end_time.ToJsonString() == "2030-12-31T00:00:00Z"
    assert found.terms.discount.percent_off.basis_points == 1_250
    assert found.terms.metadata == struct(letter="2026-11")
    assert not api.get_code(two).HasField("terms")
    api.redeem(one, "ann", order_amount=euros(1_000))


def test_what_columns_are_taken_for_is_told_before_anything_is_sent(
    api: Api, command: Command, tmp_path: Path
) -> None:
    (code,) = new_codes(1)
    book = api.book()
    (tmp_path / "codes.csv").write_text(f"code,user_id,end_time,note\n{code},ann,2030-12-31,x\n")
    done = command("import", book.book_id, "codes.csv", "--map", "all", "--dry-run")
    assert done.returncode == 0, done.stderr
    told = done.stderr.splitlines()
    assert any("user_id" in line and "ann" in line for line in told)
    assert any("end_time" in line and "2030-12-31" in line for line in told)
    assert 'Not imported: "note".' in told
    assert any("taken as UTC" in line for line in told)
    assert api.stats(book.book_id).code_count == 0


def test_a_row_whose_cells_cannot_be_read_is_rejected_with_all_that_is_wrong(
    api: Api, command: Command, tmp_path: Path
) -> None:
    made = new_codes(4)
    book = api.book(limits=books.BookLimits(max_assignments_per_user=1))
    (tmp_path / "codes.csv").write_text(
        "code,user_id,end_time,max_redemptions\n"
        f"{made[0]},ann,12/31/2030,many\n"
        f"{made[1]},ann,2030-12-31,2\n"
        f"{made[2]},ann,,0000000000\n"
        f"{made[3]},ann,,\n"
    )
    done = command("import", book.book_id, "codes.csv", "--map", "all", "--rejects", "bad.csv")
    assert done.returncode == 3
    assert done.stdout == (
        "1 created, 0 twice in the file, 0 there already, 2 invalid, 1 not assigned, 1 assigned\n"
    )
    with (tmp_path / "bad.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(it["line"], it["outcome"], it["reason"]) for it in rows] == [
        ("2", "INVALID", "INVALID_ARGUMENT"),
        ("4", "INVALID", "INVALID_ARGUMENT"),
        ("5", "NOT_ASSIGNED", "USER_LIMIT_EXCEEDED"),
    ]
    assert "end_time: expected a time such as 2026-12-31" in rows[0]["message"]
    assert "max_redemptions: expected a whole number, not many" in rows[0]["message"]


def test_a_file_in_which_no_row_can_be_read_sends_nothing(
    api: Api, command: Command, tmp_path: Path
) -> None:
    book = api.book()
    (tmp_path / "codes.csv").write_text(f"code,end_time\n{new_codes(1)[0]},soon\n")
    done = command("import", book.book_id, "codes.csv", "--map", "all")
    assert done.returncode == 3
    assert done.stdout == "0 created, 0 twice in the file, 0 there already, 1 invalid\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--map", "user=customer"], "Did you mean user_id?"),
        (["--map", "user_id=costumer"], 'Did you mean "customer"?'),
        (["--map", "user_id=customer", "--map", "user_id=note"], "user_id is mapped twice."),
        (["--map", "user_id=customer", "--map", "benefit=customer"], "at once"),
        (["--map", "user_id=note"], 'Several columns are called "note"'),
    ],
)
def test_a_map_that_does_not_fit_the_file_is_explained(
    api: Api, command: Command, tmp_path: Path, options: list[str], message: str
) -> None:
    (tmp_path / "codes.csv").write_text("code,customer,note,note\nABCD1,ann,x,y\n")
    done = command("import", api.book().book_id, "codes.csv", "--column", "code", *options)
    assert done.returncode == 1
    assert message in done.stderr


def test_an_import_with_users_is_resumed_without_repeating_anything(
    api: Api, command: Command, tmp_path: Path
) -> None:
    made = new_codes(2_500)
    book = api.book()
    (tmp_path / "codes.csv").write_text(
        "code,user_id\n" + "".join(f"{code},user-{code}\n" for code in made)
    )
    asked = ("import", book.book_id, "codes.csv", "--map", "all", "--request-id", "mine")
    first, second = command(*asked), command(*asked)
    assert first.stdout == second.stdout
    assert first.stdout.startswith("2,500 created")
    assert api.stats(book.book_id).assignment_count == 2_500
    assert len(api.events(code=made[0])) == 1


def test_what_is_exported_with_details_can_be_imported_again(
    api: Api, command: Command, tmp_path: Path
) -> None:
    made = new_codes(5)
    amount, percent = books.AmountOff(amount_minor=700), books.PercentOff(basis_points=1_250)
    percent.max_discount_minor = 900
    mug = books.Benefit(description="a mug")
    terms = {
        made[0]: codes.CodeTerms(max_redemptions=3, metadata=struct(letter="a, b")),
        made[1]: codes.CodeTerms(discount=books.Discount(amount_off=amount)),
        made[2]: codes.CodeTerms(
            discount=books.Discount(
                percent_off=books.PercentOff(basis_points=1_250, max_discount_minor=900)
            )
        ),
        made[3]: codes.CodeTerms(discount=books.Discount(benefit=mug)),
    }
    for it in terms.values():
        it.start_time.FromJsonString("2026-01-01T00:00:00.000001Z")
        it.end_time.FromJsonString("2036-01-01T00:00:00Z")
    book = api.book()
    rows = [
        codes.NewCode(code=f"{code[:4]}-{code[4:]}", terms=terms.get(code), user_id=f"u-{code}")
        for code in made
    ]
    api.import_codes(book.book_id, rows)
    api.redeem(made[1], f"u-{made[1]}", order_id="order-1", order_amount=euros(1_000))
    done = command("export", book.book_id, "out.csv", "--details")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "out.csv").open(newline="") as file:
        exported = {row["code"].replace("-", ""): row for row in csv.DictReader(file)}
    redeemed = exported[made[1]]
    assert (redeemed["order_id"], redeemed["state"]) == ("order-1", "REDEEMED")
    assert (redeemed["redeem_discount_minor"], redeemed["redeem_currency_code"]) == ("700", "EUR")
    assert (redeemed["redemption_count"], redeemed["redemption_limit"]) == ("1", "1")
    assert exported[made[2]]["percent_off"] == "12.5"

    # Other codes that say the same, since codes are unique.
    text = (tmp_path / "out.csv").read_text()
    (tmp_path / "again.csv").write_text(text.replace(f"{made[0][:4]}-", "ZZZZ-"))
    other = api.book()
    again = command("import", other.book_id, "again.csv", "--map", "all")
    assert again.stdout.startswith("5 created"), again.stderr
    for code, said in terms.items():
        found = api.get_code(f"ZZZZ{code[4:]}")
        assert found.terms == said
        assert found.state == codes.COUPON_CODE_STATE_ASSIGNED
