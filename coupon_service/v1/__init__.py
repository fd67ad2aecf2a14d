"""Generated from proto/coupon_service/v1 by `make stubs`."""
