"""What the service tells of itself: metrics, logs, traces and readiness."""
