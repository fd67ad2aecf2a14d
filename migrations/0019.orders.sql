-- Coupons that may not be on an order beside others. Only books that are not INDEPENDENT (1) have rows of orders:
-- those are what redemptions for one order wait for. order_user_id is empty for an order of the business.

ALTER TABLE coupon_books
    ADD COLUMN order_policy smallint NOT NULL DEFAULT 1,
    ADD COLUMN exclusive_group text NOT NULL DEFAULT '',
    ADD COLUMN max_redemptions_per_order integer NOT NULL DEFAULT 0;

ALTER TABLE coupon_books
    ADD CONSTRAINT coupon_books_order_policy_check CHECK (order_policy BETWEEN 1 AND 3);

ALTER TABLE coupon_books
    ADD CONSTRAINT coupon_books_max_redemptions_per_order_check CHECK (max_redemptions_per_order >= 0);

-- discount_limit_minor is the amount of the order when something was last taken off it; NULL: not known.
CREATE TABLE coupon_orders (
    discount_minor        bigint NOT NULL DEFAULT 0,
    discount_limit_minor  bigint,
    business_id           text COLLATE "C" NOT NULL,
    order_id              text COLLATE "C" NOT NULL,
    order_user_id         text COLLATE "C" NOT NULL,
    currency_code         text NOT NULL DEFAULT '',
    PRIMARY KEY (business_id, order_id, order_user_id),
    CONSTRAINT order_discount CHECK (
        discount_minor >= 0 AND (discount_limit_minor IS NULL OR discount_minor <= discount_limit_minor))
) WITH (fillfactor = 85);

CREATE TABLE coupon_order_books (
    book_id           uuid NOT NULL,
    redemptions       integer NOT NULL,
    redemption_limit  integer NOT NULL,
    business_id       text COLLATE "C" NOT NULL,
    order_id          text COLLATE "C" NOT NULL,
    order_user_id     text COLLATE "C" NOT NULL,
    PRIMARY KEY (business_id, order_id, order_user_id, book_id),
    CONSTRAINT order_cap CHECK (
        redemptions >= 0 AND (redemption_limit = 0 OR redemptions <= redemption_limit))
) WITH (fillfactor = 85);
