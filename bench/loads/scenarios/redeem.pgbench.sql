-- One redemption: what the transaction-a-request server does, and nothing else on top.
\set number random(0, :codes - 1)
\set user random(1, 1000000000)
BEGIN;
SELECT 'BENCHPG' || :number::text AS code,
       crc32(convert_to('BENCHPG' || :number::text, 'UTF8')) & 63 AS bucket \gset
SELECT c.state, c.redemptions, b.book_id
FROM coupon_codes AS c JOIN coupon_books AS b USING (book_id)
WHERE c.bucket = :bucket AND c.code = :code
FOR NO KEY UPDATE OF c \gset
SELECT count(*) AS attempts
FROM redemption_audit WHERE event_id = (SELECT gen_random_uuid()) AND bucket = :bucket \gset
SELECT count(*) AS orders
FROM redemption_audit WHERE order_id = 'order-' || :user::text AND code = :code \gset
UPDATE coupon_codes SET redemptions = redemptions + 1 WHERE bucket = :bucket AND code = :code;
INSERT INTO coupon_book_counters AS s (
    book_id, bucket, available, assigned, redeemed, disabled, assignments, redemptions, rollbacks,
    discount_minor)
VALUES (:book_id, :bucket, 0, 0, 0, 0, 0, 1, 0, 400)
ON CONFLICT (book_id, bucket) DO UPDATE
SET redemptions = s.redemptions + 1, discount_minor = s.discount_minor + 400;
INSERT INTO redemption_audit (
    event_id, bucket, type, event_time, book_id, code, user_id, order_id, caller, peer, user_agent,
    request_id, fingerprint, state_before, state_after, order_amount_minor, discount_minor,
    currency_code, code_redemptions, code_redemption_limit)
VALUES (
    gen_random_uuid(), :bucket, 16, now(), :book_id, :code, 'user-' || :user::text,
    'order-' || :user::text, 'pgbench', 'ipv4:127.0.0.1:40000', 'pgbench', gen_random_uuid()::text,
    :user, :state, :state, 4000, 400, 'EUR', :redemptions + 1, 0);
COMMIT;
