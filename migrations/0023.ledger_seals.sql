-- What proves the ledger. Everything about it is in coupon_service/audit.

-- What commitments to the personal values of a user's events are salted with. Who destroys the key erases them,
-- also where a copy of them is kept. The one of '' is for events that are about no user.
CREATE TABLE coupon_user_keys (
    user_id      text COLLATE "C" PRIMARY KEY,
    key          bytea NOT NULL,
    create_time  timestamptz NOT NULL
);

-- A range of numbers of the ledger: which of them are rows, and the hashes of those (leaves), the root of the
-- tree over the hashes, and the value that the chain of seals has with it.
CREATE TABLE coupon_audit_seals (
    number          bigint PRIMARY KEY,
    first_sequence  bigint NOT NULL,
    last_sequence   bigint NOT NULL,
    seal_time       timestamptz NOT NULL,
    row_count       integer NOT NULL,
    version         smallint NOT NULL,
    root            bytea NOT NULL,
    leaves_hash     bytea NOT NULL,
    chain           bytea NOT NULL,
    leaves          bytea NOT NULL
);
-- Hashes cannot be compressed. Citus has no such command, and there PostgreSQL finds that out each time.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_extension WHERE extname = 'citus') THEN
        ALTER TABLE coupon_audit_seals ALTER COLUMN leaves SET STORAGE EXTERNAL;
    END IF;
END
$$;
-- The seal of a number.
CREATE UNIQUE INDEX coupon_audit_seals_by_sequence ON coupon_audit_seals (last_sequence);

CREATE FUNCTION refuse_seal_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'coupon_audit_seals is append-only' USING ERRCODE = 'insufficient_privilege';
END
$$;
CREATE TRIGGER coupon_audit_seals_append_only
    BEFORE UPDATE OR DELETE ON coupon_audit_seals
    FOR EACH ROW EXECUTE FUNCTION refuse_seal_change();
CREATE TRIGGER coupon_audit_seals_no_truncate
    BEFORE TRUNCATE ON coupon_audit_seals
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_seal_change();

-- The newest seal, so that it cannot be dropped unnoticed either. Its row is locked by who adds one. erasures
-- grows with each transaction that erases values or destroys keys, so that no seal is made of what was read before.
CREATE TABLE coupon_audit_head (
    is_only_row    boolean PRIMARY KEY DEFAULT true CHECK (is_only_row),
    log_id         uuid NOT NULL,
    number         bigint NOT NULL DEFAULT 0,
    last_sequence  bigint NOT NULL DEFAULT 0,
    chain          bytea,
    erasures       bigint NOT NULL DEFAULT 0
);
INSERT INTO coupon_audit_head (log_id) VALUES (gen_random_uuid());

-- Whoever may add to the ledger may seal it, so that nothing fails until `migrate grants` has run.
DO $$
DECLARE
    grantee text;
BEGIN
    FOR grantee IN
        SELECT CASE acl.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(acl.grantee)) END
        FROM pg_class, aclexplode(relacl) AS acl
        WHERE pg_class.oid = 'redemption_audit'::regclass AND acl.privilege_type = 'INSERT'
    LOOP
        EXECUTE format('GRANT SELECT, INSERT ON coupon_user_keys, coupon_audit_seals TO %s', grantee);
        EXECUTE format('GRANT SELECT, UPDATE ON coupon_audit_head TO %s', grantee);
    END LOOP;
END
$$;

-- Of a row whose personal values were erased: the commitments to them, of which they cannot be made any more.
ALTER TABLE redemption_audit ADD COLUMN commitments bytea;
