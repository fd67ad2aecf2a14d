# syntax=docker/dockerfile:1
# The service alone: PostgreSQL and Redis run elsewhere (COUPON_DATABASE_URL, COUPON_REDIS_URL).
#   docker build --tag coupon-service .
#   docker run --read-only --env-file .env --publish 50051:50051 coupon-service
# For a private package index: --secret id=pip.conf,src=<a pip.conf>. It does not stay in the image.

ARG PYTHON_IMAGE=python:3.13-slim

FROM ${PYTHON_IMAGE} AS build
# pip runs from a second environment, so that the image has none.
RUN python3 -m venv /pip && python3 -m venv --without-pip /venv
COPY requirements.lock /
RUN --mount=type=secret,id=pip.conf,target=/run/secrets/pip.conf \
    PIP_CONFIG_FILE=/run/secrets/pip.conf /pip/bin/pip --python /venv/bin/python install \
        --no-cache-dir --no-compile --only-binary :all: --require-hashes -r /requirements.lock
COPY coupon_service /app/coupon_service
COPY migrations /app/migrations
COPY proto /app/proto
# Compiled now, since the root file system may be read-only.
RUN printf '#!/bin/sh\nexec python -m coupon_service "$@"\n' > /venv/bin/coupon-service && \
    chmod 755 /venv/bin/coupon-service && \
    /venv/bin/python -m compileall -q -j 0 /venv/lib /app

FROM ${PYTHON_IMAGE}
COPY --from=build /venv /venv
COPY --from=build /app /app
WORKDIR /app
ENV PATH=/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    COUPON_HOST=0.0.0.0 \
    COUPON_METRICS_HOST=0.0.0.0
# A user that owns no file of the image.
USER 10001:10001
# The metrics of the workers; the only folder that is written to.
VOLUME /tmp
EXPOSE 50051 9464
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["coupon-service", "health"]
ENTRYPOINT ["coupon-service"]
CMD ["serve"]
