DROP TABLE coupon_code_spellings;
