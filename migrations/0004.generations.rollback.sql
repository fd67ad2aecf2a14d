DROP TABLE coupon_generations;
