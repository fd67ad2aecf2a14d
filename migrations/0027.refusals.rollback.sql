DROP TABLE coupon_refusals;
