-- PostgreSQL plans a table that it has never looked at as one of some size, so that rows are looked up by
-- their keys. One that it has looked at while it had ten rows it plans to read whole, and a plan is kept
-- until it looks again: a minute in which every batch reads all that has come since. So it looks when
-- there is something to see.
ALTER TABLE coupon_codes SET (
    autovacuum_analyze_threshold = 10000,
    autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_insert_threshold = 10000);
ALTER TABLE coupon_assignments SET (
    autovacuum_analyze_threshold = 10000,
    autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_insert_threshold = 10000);
ALTER TABLE coupon_user_counters SET (
    autovacuum_analyze_threshold = 10000,
    autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_insert_threshold = 10000);
ALTER TABLE redemption_audit SET (
    autovacuum_analyze_threshold = 10000,
    autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_insert_threshold = 10000);
