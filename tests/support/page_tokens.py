"""Page tokens that are signed with a secret of the tests."""

from coupon_service.rpc.paging import PageTokens

PAGES = PageTokens([b"only the tests sign with this one"])
