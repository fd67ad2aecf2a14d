-- Refused attempts, for support (ListRefusals): written beside the calls, many at a time; deleted after some
-- days. Nothing is decided on them.
--
-- Not partitioned by day: who makes and drops partitions has to own the table, and the role of the service
-- does not. Rows are deleted in the order in which they were written, so that whole pages become free.
--
-- told: the reasons that the caller was told; untold: those that held as well. Both are a JSON array of objects
-- with a reason and its metadata. code: the code; of one that is not known a mask, a ? (which no code has), and a
-- keyed hash. business_id: '' where neither book nor call has one. For ValidateCode (kind 3) refuse_time is a
-- minute, and refusal_id a hash of what is listed once in it.
CREATE TABLE coupon_refusals (
    refusal_id          uuid NOT NULL,
    refuse_time         timestamptz NOT NULL,
    book_id             uuid,
    order_amount_minor  bigint,
    kind                smallint NOT NULL,
    business_id         text COLLATE "C" NOT NULL,
    code                text COLLATE "C" NOT NULL,
    user_id             text COLLATE "C" NOT NULL,
    order_id            text COLLATE "C",
    currency_code       text,
    caller              text COLLATE "C" NOT NULL,
    request_id          text NOT NULL,
    told                text NOT NULL,
    untold              text,
    PRIMARY KEY (business_id, refuse_time, refusal_id)
) WITH (
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_insert_scale_factor = 0.1);

CREATE INDEX coupon_refusals_by_user ON coupon_refusals (user_id, refuse_time);
CREATE INDEX coupon_refusals_by_code ON coupon_refusals (code, refuse_time);
-- An order has few: they are sorted when they are read. A hash costs half as much for each row.
CREATE INDEX coupon_refusals_by_order ON coupon_refusals USING hash (order_id) WHERE order_id IS NOT NULL;

-- Whoever may add to the ledger may keep refusals, so that a service keeps them before `migrate grants` has run.
DO $$
DECLARE
    grantee text;
BEGIN
    FOR grantee IN
        SELECT CASE acl.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(acl.grantee)) END
        FROM pg_class, aclexplode(relacl) AS acl
        WHERE pg_class.oid = 'redemption_audit'::regclass AND acl.privilege_type = 'INSERT'
    LOOP
        EXECUTE format('GRANT SELECT, INSERT, DELETE ON coupon_refusals TO %s', grantee);
    END LOOP;
END
$$;
