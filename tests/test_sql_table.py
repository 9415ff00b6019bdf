"""The table of the SQL stores, as the server tells it."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from idempo.stores.sqlalchemy import SqlAlchemyStore
from tests.sql_support import URLS, Database, opened


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
