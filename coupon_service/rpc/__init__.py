"""gRPC in, validated values inwards, one table from errors to statuses out."""
