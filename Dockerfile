# The service alone: PostgreSQL and Redis are elsewhere (DATABASE_URL, REDIS_URL).
#   docker build --tag coupon-service .
#   docker run --env-file .env --publish 50051:50051 coupon-service

FROM python:3.13-slim AS build
RUN python -m venv /venv
COPY requirements.lock /
RUN /venv/bin/pip install --no-cache-dir --only-binary :all: --require-hashes -r /requirements.lock
COPY coupon_service /app/coupon_service
COPY migrations /app/migrations
RUN python -m compileall -q /app/coupon_service

FROM python:3.13-slim
COPY --from=build /venv /venv
COPY --from=build /app /app
WORKDIR /app
USER 10001:10001
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    COUPON_HOST=0.0.0.0 \
    COUPON_METRICS_HOST=0.0.0.0
EXPOSE 50051 9464
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s CMD \
    ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:9464/healthz', timeout=2)"]
ENTRYPOINT ["python", "-m", "coupon_service"]
CMD ["serve"]
