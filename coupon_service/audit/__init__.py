"""What proves the ledger: leaves, trees, seals, proofs and checkpoints. Pure, and without a server.

A client that installed `coupon-service` alone can import all of it. Only to sign or verify
checkpoints it needs `cryptography`, which `coupon-service[proofs]` and the service bring.
"""
