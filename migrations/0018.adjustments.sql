-- Redemptions whose order got another amount, and the terms on which a discount is computed again.

-- What a book took off, and since which version. Written by a trigger, so that whatever version of the service
-- changes a book, no terms on which something was redeemed are lost.
CREATE TABLE coupon_book_terms (
    book_id                   uuid NOT NULL,
    since_time                timestamptz NOT NULL,
    version                   integer NOT NULL,
    percent_off_basis_points  integer,
    max_discount_minor        bigint NOT NULL,
    amount_off_minor          bigint,
    benefit                   text,
    discount_tiers            jsonb,
    currency_code             text NOT NULL,
    min_order_amount_minor    bigint NOT NULL,
    PRIMARY KEY (book_id, version)
);

CREATE FUNCTION keep_book_terms() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO coupon_book_terms VALUES (
        NEW.book_id, NEW.update_time, NEW.version, NEW.percent_off_basis_points, NEW.max_discount_minor,
        NEW.amount_off_minor, NEW.benefit, NEW.discount_tiers, NEW.currency_code, NEW.min_order_amount_minor)
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END
$$;

CREATE TRIGGER coupon_books_first_terms AFTER INSERT ON coupon_books
    FOR EACH ROW EXECUTE FUNCTION keep_book_terms();
CREATE TRIGGER coupon_books_changed_terms AFTER UPDATE ON coupon_books
    FOR EACH ROW WHEN ((
        OLD.percent_off_basis_points, OLD.max_discount_minor, OLD.amount_off_minor, OLD.benefit,
        OLD.discount_tiers, OLD.currency_code, OLD.min_order_amount_minor
    ) IS DISTINCT FROM (
        NEW.percent_off_basis_points, NEW.max_discount_minor, NEW.amount_off_minor, NEW.benefit,
        NEW.discount_tiers, NEW.currency_code, NEW.min_order_amount_minor
    )) EXECUTE FUNCTION keep_book_terms();

-- The terms of before are not known: those of now stand for them.
INSERT INTO coupon_book_terms
SELECT book_id, create_time, version, percent_off_basis_points, max_discount_minor, amount_off_minor, benefit,
    discount_tiers, currency_code, min_order_amount_minor
FROM coupon_books
ON CONFLICT DO NOTHING;

-- The version of the book on whose terms a code was redeemed; NULL: that of the time.
ALTER TABLE redemption_audit ADD COLUMN book_version integer;

-- What an order comes to now: a row for each redemption that was ever adjusted. adjustments: how often.
CREATE TABLE coupon_adjustments (
    redemption_id       uuid NOT NULL,
    book_id             uuid NOT NULL,
    order_amount_minor  bigint NOT NULL,
    discount_minor      bigint,
    adjustments         integer NOT NULL,
    bucket              smallint NOT NULL,
    PRIMARY KEY (bucket, redemption_id)
);
