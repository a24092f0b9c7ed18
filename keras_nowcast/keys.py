"""How a key of record.json or a column of a CSV file is described: name, type, unit, meaning."""

from dataclasses import dataclass

TEXT, INTEGER, NUMBER, BOOLEAN, OBJECT = "text", "integer", "number", "true or false", "object"
TEXTS, NUMBERS, OBJECTS = "list of texts", "list of numbers", "list of objects"
FRACTION = "fraction, 0 to 1"


@dataclass(frozen=True)
class Key:
    """A key of record.json, or a column of a CSV file.

    Attributes:
      name: its name; `<...>` in it stands for a number or a name.
      type: one of the types above.
      unit: its unit, "" if it has none.
      meaning: what it is, a noun phrase.
      null: when it is null, a clause that follows "if", or "" if it never is in the record of a run
        that measured everything it could.
      choices: the texts that are allowed, () if any is.
      members: the Keys of an object, or of each object in a list.
      in_table: whether the study's table has it.
      since: the version of the schema that introduced it.
      needed: whether a completed run is of no use without it; a number is then above 0.
      signed: whether a number may be below 0, or a fraction outside 0 to 1. No other may.
    """

    name: str
    type: str
    unit: str
    meaning: str
    null: str = ""
    choices: tuple = ()
    members: tuple = ()
    in_table: bool = False
    since: int = 1
    needed: bool = False
    signed: bool = False
