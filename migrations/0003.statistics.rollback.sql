ALTER TABLE redemption_audit RESET (
    autovacuum_analyze_threshold, autovacuum_vacuum_threshold, autovacuum_vacuum_insert_threshold);
ALTER TABLE coupon_user_counters RESET (
    autovacuum_analyze_threshold, autovacuum_vacuum_threshold, autovacuum_vacuum_insert_threshold);
ALTER TABLE coupon_assignments RESET (
    autovacuum_analyze_threshold, autovacuum_vacuum_threshold, autovacuum_vacuum_insert_threshold);
ALTER TABLE coupon_codes RESET (
    autovacuum_analyze_threshold, autovacuum_vacuum_threshold, autovacuum_vacuum_insert_threshold);
