"""PostgreSQL: the only place with SQL. Functions take a connection and never commit."""
