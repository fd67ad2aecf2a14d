"""Work in the background: expired locks, stock levels, readiness."""
