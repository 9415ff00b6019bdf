"""The table of the SQL stores, as the server tells it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from idempo.errors import RecordError
from idempo.stores.sqlalchemy import SqlAlchemyStore
from idempo.stores.sqlite import SqliteStore
from tests.sql_support import URLS, Database, claimed, key, opened


def reflected(database: Database, table: str) -> dict[str, Any]:
    """Return what the server tells of a table, but for its name."""
    inspector = sa.inspect(database.engine())
    columns = [{**column, "type": repr(column["type"])} for column in inspector.get_columns(table)]
    key = inspector.get_pk_constraint(table)["constrained_columns"]
    indexes = [(index["column_names"], index["unique"]) for index in inspector.get_indexes(table)]
    return {"columns": columns, "key": key, "indexes": indexes}


@pytest.mark.parametrize("kind", URLS)
def test_a_migration_makes_the_same_table(request: pytest.FixtureRequest, kind: str) -> None:
    """`ddl` and `create_table` differ in nothing, and the comments tell of every state."""
    for database in opened(request, kind):
        other = f"{database.table}_b"
        with database.connected() as connection, SqlAlchemyStore(database.engine(), table=other) as store:
            for statement in store.ddl().split(";\n"):
                if statement:
                    connection.exec_driver_sql(statement)
            connection.commit()
            try:
                ours, theirs = reflected(database, database.table), reflected(database, other)
            finally:
                connection.exec_driver_sql(f"DROP TABLE {other}")
                connection.commit()
        assert ours == theirs
        told = {column["name"]: column["comment"] for column in ours["columns"]}
        assert all(f"{state} " in told["state"] for state in range(1, 6))
        assert told["expires"] == "microseconds since 1970"


def test_two_stores_of_one_file_are_told_apart(tmp_path: Path) -> None:
    """Whichever came first: the other says that a table of its own is due."""
    for name in ("first.db", "second.db"):
        file = tmp_path / name
        with SqlAlchemyStore(sa.create_engine(f"sqlite:///{file}")) as theirs:
            if name == "first.db":
                with SqliteStore(file) as ours:
                    assert ours.get(key()) is None
                with pytest.raises(
                    RecordError, match="a SqliteStore's in the same file is another: give each a table="
                ):
                    theirs.create_table()
            else:
                theirs.create_table()
                with (
                    SqliteStore(file) as ours,
                    pytest.raises(
                        RecordError, match="SqlAlchemyStore's in the same file is another: give each a table="
                    ),
                ):
                    claimed(ours, key())
        with (
            SqlAlchemyStore(sa.create_engine(f"sqlite:///{file}"), table="theirs") as theirs,
            SqliteStore(file, table="ours") as ours,
        ):
            theirs.create_table()
            assert claimed(theirs, key()).acquired
            assert claimed(ours, key()).acquired
