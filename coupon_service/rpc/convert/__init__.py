"""Requests to values and values to answers; all validation of requests, and nothing else.

One module a service. A request with several bad fields is refused with all of them named; behind
this package, types are true and bounds hold.
"""
