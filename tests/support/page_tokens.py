"""Page tokens of a secret that only tests know."""

from coupon_service.rpc.paging import PageTokens

PAGES = PageTokens([b"only the tests sign with this one"])
