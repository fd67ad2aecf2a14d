-- The tables of the coupon service. Small numbers (state, type, policy) are those of the enums in
-- coupon_service/model/enums.py and in the proto. Every row that belongs to a code carries its bucket, a
-- stable hash of the code: it spreads the random picks, and is the order in which codes are locked.

CREATE TABLE coupon_books (
    book_id                            uuid PRIMARY KEY,
    business_id                        text NOT NULL,
    name                               text NOT NULL,
    description                        text NOT NULL,
    state                              smallint NOT NULL CHECK (state BETWEEN 1 AND 4),
    percent_off_basis_points           integer CHECK (percent_off_basis_points BETWEEN 1 AND 10000),
    max_discount_minor                 bigint NOT NULL DEFAULT 0 CHECK (max_discount_minor >= 0),
    amount_off_minor                   bigint CHECK (amount_off_minor > 0),
    benefit                            text,
    currency_code                      text NOT NULL CHECK (currency_code ~ '^([A-Z]{3})?$'),
    min_order_amount_minor             bigint NOT NULL CHECK (min_order_amount_minor >= 0),
    max_redemptions                    bigint NOT NULL CHECK (max_redemptions >= 0),
    max_redemptions_per_code           integer NOT NULL CHECK (max_redemptions_per_code >= 0),
    max_redemptions_per_user_per_code  integer NOT NULL CHECK (max_redemptions_per_user_per_code >= 0),
    max_redemptions_per_user           integer NOT NULL CHECK (max_redemptions_per_user >= 0),
    max_assignments_per_user           integer NOT NULL CHECK (max_assignments_per_user >= 0),
    assignment_policy                  smallint NOT NULL CHECK (assignment_policy BETWEEN 1 AND 2),
    lock_policy                        smallint NOT NULL CHECK (lock_policy BETWEEN 1 AND 3),
    default_lock_ttl_ms                bigint NOT NULL CHECK (default_lock_ttl_ms >= 0),
    max_lock_ttl_ms                    bigint NOT NULL CHECK (max_lock_ttl_ms >= 0),
    start_time                         timestamptz,
    end_time                           timestamptz CHECK (end_time > start_time),
    assigned_code_validity_s           bigint NOT NULL CHECK (assigned_code_validity_s >= 0),
    code_length                        smallint NOT NULL,
    code_alphabet                      text NOT NULL,
    code_prefix                        text NOT NULL,
    code_suffix                        text NOT NULL,
    code_separator                     text NOT NULL,
    code_group_size                    smallint NOT NULL,
    code_check_character               boolean NOT NULL,
    metadata                           jsonb,
    version                            integer NOT NULL,
    create_time                        timestamptz NOT NULL,
    update_time                        timestamptz NOT NULL,
    CHECK (num_nonnulls(percent_off_basis_points, amount_off_minor, benefit) = 1)
);

-- ListCouponBooks, newest first.
CREATE INDEX coupon_books_by_time ON coupon_books (create_time, book_id);
CREATE INDEX coupon_books_by_business ON coupon_books (business_id, create_time, book_id);

-- redemption_limit is the book's limit at the last redemption, so that the database itself refuses
-- one too many. source_tag is a hash of the upload or generation that made the code: it tells a
-- duplicate in an upload from a code that was there before.
CREATE TABLE coupon_codes (
    book_id           uuid NOT NULL,
    redemptions       integer NOT NULL DEFAULT 0,
    redemption_limit  integer NOT NULL DEFAULT 0,
    assignments       integer NOT NULL DEFAULT 0 CHECK (assignments >= 0),
    source_tag        integer NOT NULL DEFAULT 0,
    bucket            smallint NOT NULL,
    state             smallint NOT NULL DEFAULT 1 CHECK (state BETWEEN 1 AND 4),
    code              text COLLATE "C" NOT NULL,
    PRIMARY KEY (bucket, code),
    CONSTRAINT code_cap CHECK (
        redemptions >= 0 AND (redemption_limit = 0 OR redemptions <= redemption_limit))
) WITH (fillfactor = 85);

-- AssignRandomCode, ListCodes, ExportCodes.
CREATE INDEX coupon_codes_by_state ON coupon_codes (book_id, state, bucket, code);

-- The link between user and code. assign_time is NULL for a bearer who only redeemed. fence is the
-- newest lock with which this user redeemed this code.
CREATE TABLE coupon_assignments (
    book_id           uuid NOT NULL,
    fence             bigint NOT NULL DEFAULT 0,
    assign_time       timestamptz,
    expire_time       timestamptz,
    redemptions       integer NOT NULL DEFAULT 0,
    redemption_limit  integer NOT NULL DEFAULT 0,
    bucket            smallint NOT NULL,
    state             smallint NOT NULL CHECK (state BETWEEN 0 AND 3),
    code              text COLLATE "C" NOT NULL,
    user_id           text COLLATE "C" NOT NULL,
    metadata          jsonb,
    PRIMARY KEY (bucket, code, user_id),
    CONSTRAINT user_code_cap CHECK (
        redemptions >= 0 AND (redemption_limit = 0 OR redemptions <= redemption_limit))
) WITH (fillfactor = 85);

-- ListUserCoupons, newest first.
CREATE INDEX coupon_assignments_by_user ON coupon_assignments (user_id, assign_time, code)
    WHERE assign_time IS NOT NULL;

-- What one user has done in one book; only for books with a limit a user. bucket: of the user.
CREATE TABLE coupon_user_counters (
    book_id           uuid NOT NULL,
    redemptions       integer NOT NULL DEFAULT 0,
    redemption_limit  integer NOT NULL DEFAULT 0,
    assignments       integer NOT NULL DEFAULT 0,
    assignment_limit  integer NOT NULL DEFAULT 0,
    bucket            smallint NOT NULL,
    user_id           text COLLATE "C" NOT NULL,
    PRIMARY KEY (bucket, book_id, user_id),
    CONSTRAINT user_cap CHECK (
        redemptions >= 0 AND (redemption_limit = 0 OR redemptions <= redemption_limit)),
    CONSTRAINT user_assignment_cap CHECK (
        assignments >= 0 AND (assignment_limit = 0 OR assignments <= assignment_limit))
) WITH (fillfactor = 85);

-- Redemptions of a whole book; only for books with a limit for it, which everyone then waits for.
CREATE TABLE coupon_book_totals (
    book_id           uuid PRIMARY KEY,
    redemptions       bigint NOT NULL DEFAULT 0,
    redemption_limit  bigint NOT NULL DEFAULT 0,
    CONSTRAINT book_cap CHECK (
        redemptions >= 0 AND (redemption_limit = 0 OR redemptions <= redemption_limit))
) WITH (fillfactor = 50);

-- Statistics, spread over a row a bucket so that none is hot; the sum over a book's rows is what
-- holds, a single row may be negative.
CREATE TABLE coupon_book_counters (
    book_id         uuid NOT NULL,
    available       bigint NOT NULL,
    assigned        bigint NOT NULL,
    redeemed        bigint NOT NULL,
    disabled        bigint NOT NULL,
    assignments     bigint NOT NULL,
    redemptions     bigint NOT NULL,
    rollbacks       bigint NOT NULL,
    discount_minor  bigint NOT NULL,
    bucket          smallint NOT NULL,
    PRIMARY KEY (book_id, bucket)
) WITH (fillfactor = 50);

-- The ledger: one row a change, never altered. event_id is a hash of caller, request_id and
-- resource, and leads to the bucket; so the primary key is what makes each attempt happen once, and
-- a redemption or lock is found by its id alone.
CREATE TABLE redemption_audit (
    event_id               uuid NOT NULL,
    book_id                uuid NOT NULL,
    event_time             timestamptz NOT NULL,
    fingerprint            bigint NOT NULL,
    bucket                 smallint NOT NULL,
    type                   smallint NOT NULL,
    state_before           smallint,
    state_after            smallint,
    code_redemptions       integer,
    code_redemption_limit  integer,
    user_code_redemptions  integer,
    order_amount_minor     bigint,
    discount_minor         bigint,
    fence                  bigint,
    expire_time            timestamptz,
    redemption_id          uuid,
    lock_id                uuid,
    code                   text COLLATE "C",
    user_id                text COLLATE "C",
    order_id               text COLLATE "C",
    caller                 text NOT NULL,
    peer                   text NOT NULL,
    user_agent             text NOT NULL,
    request_id             text NOT NULL,
    currency_code          text,
    benefit                text,
    metadata               jsonb,
    PRIMARY KEY (event_id, bucket)
);

-- At most one live redemption of a code an order; ListRedemptions by order.
CREATE INDEX redemption_audit_by_order ON redemption_audit (order_id, code)
    WHERE order_id IS NOT NULL;
-- The life of a lock.
CREATE INDEX redemption_audit_by_lock ON redemption_audit (lock_id) WHERE lock_id IS NOT NULL;
-- Lists, newest first.
-- By code as an expression, so that only the list is read through it: the planner, which does not
-- know how many events a hot code has, would otherwise look for an order among all of them.
CREATE INDEX redemption_audit_by_code ON redemption_audit ((code || ''), event_time, event_id)
    WHERE code IS NOT NULL;
CREATE INDEX redemption_audit_by_user ON redemption_audit (user_id, event_time, event_id)
    WHERE user_id IS NOT NULL;
-- By type as well: the few redemptions among the many assignments of a book.
CREATE INDEX redemption_audit_by_book ON redemption_audit (book_id, type, event_time, event_id);
-- The whole ledger, by type. An expression, so that no other list is ever read through it.
CREATE INDEX redemption_audit_by_time
    ON redemption_audit ((type::integer), event_time, event_id);

CREATE FUNCTION refuse_ledger_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'redemption_audit is append-only' USING ERRCODE = 'insufficient_privilege';
END
$$;

CREATE TRIGGER redemption_audit_append_only
    BEFORE UPDATE OR DELETE ON redemption_audit
    FOR EACH ROW EXECUTE FUNCTION refuse_ledger_change();
CREATE TRIGGER redemption_audit_no_truncate
    BEFORE TRUNCATE ON redemption_audit
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_ledger_change();

-- Fencing numbers of locks.
CREATE SEQUENCE lock_fences;
