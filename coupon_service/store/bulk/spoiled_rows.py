"""What spreadsheets and programs make of codes, and what is no single code. Pure.

A spreadsheet takes a code of digits for a number, and one such as 2-3 for a date, and writes what
it made of it to the file. Left alone, that would become another code, which nobody has been given.
When a person types a code these texts mean nothing special: a dot may stand anywhere.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final


class Spoiled(StrEnum):
    """What became of a code; the names are kept in the ledger."""

    NUMBER = "number"
    DATE = "date"
    NO_VALUE = "no_value"
    SEVERAL = "several"


REASONS: Final = {
    Spoiled.NUMBER: "expected a code, not the number that a spreadsheet made of one:"
    " format the column as text and export the codes anew",
    Spoiled.DATE: "expected a code, not the date that a spreadsheet made of one:"
    " format the column as text and export the codes anew",
    Spoiled.NO_VALUE: "expected a code, not what programs write where they have no value",
    Spoiled.SEVERAL: "expected one code, not several cells or lines",
}

# 600519.0, 600.519,00; 9.91214E15, 1,23E+12, 1E+05. Codes such as 12E45 or 12E-345 are none: of all
# digits before the E a spreadsheet writes all but one after its decimal mark.
_NUMBER: Final = re.compile(
    r"""[+-]?(?:
        \d+ [.,] 0+
        | \d{1,3} (?: [.,'’\s\u00a0\u202f] \d{3} )+ [.,] 0{1,2}
        | \d+ (?: [.,] \d+ )? e \+ \d{1,3}
        | \d [.,] \d+ e -? \d{1,3}
        | \d e - \d{2,3}
    )""",
    re.ASCII | re.IGNORECASE | re.VERBOSE,
)

# 15-Mar, in English and German. With the month first the letters are those of the code.
_DATE: Final = re.compile(
    r"\d{1,2}(?:-|\.\s?)(?:Jan|Feb|Mar|Mrz|Mär|Apr|May|Mai|Jun|Jul|Aug|Sep|Oct|Okt|Nov|Dec|Dez)"
)

_NO_VALUE: Final = re.compile(
    r"NAN|NULL|\(NULL\)|NONE|UNDEFINED|N/A|<NA>|-?1\.\#(QNAN|IND|INF)|ERR:\d+|\#+"
)

# What a spreadsheet writes where it could not compute, in its languages.
_ERROR_VALUE: Final = re.compile(
    r"""\#[¡¿]?(?:
        BLOCKED | BUSY | CALC | CONNECT | DIV/0 | ERROR | EXTERNAL | FIELD | GETTING_DATA | N/A
        | NAME | NULL | NUM | PYTHON | REF | SPILL | TIMEOUT | UNKNOWN | VALUE
        | BEZUG | KALK | NV | WERT | ZAHL | ÜBERLAUF
        | EPARS | NOM | NOMBRE | NUL | PROPAGATION | VALEUR
        | DESBORDAMIENTO | N/D | NULO | VALOR
        | ESPANSIONE | NOME | NULLO | RIF | VALORE
        | DESPEJAR | NÚM
        | DEEL/0 | GETAL | LEEG | N/B | NAAM | VERW | WAARDE
        | DIVISION/0 | NAMN | OGILTIGT | REFERENS | SAKNAS | SKÄRNING | VÄRDEFEL
        | ADR | ARG | LICZBA | NAZWA | ZERO
    )[!?]?""",
    re.VERBOSE,
)

_CELLS: Final = re.compile(r"[,;|\t\n\v\f\r\x85\u2028\u2029]")


_PATTERNS: Final = (
    (_NUMBER, Spoiled.NUMBER),
    (_DATE, Spoiled.DATE),
    (_ERROR_VALUE, Spoiled.NO_VALUE),
)


def spoiled(text: str) -> Spoiled | None:
    """What was made of the code in a row of a file, if it is so; without spaces around it."""
    upper = text.upper()
    if _NO_VALUE.fullmatch(upper):
        return Spoiled.NO_VALUE
    if text.isalnum():
        return None  # nearly all of them, at once
    for pattern, what in _PATTERNS:
        if pattern.fullmatch(upper if what is Spoiled.NO_VALUE else text):
            return what
    return Spoiled.SEVERAL if _CELLS.search(text) else None
