# syntax=docker/dockerfile:1
# MLflow as `npm start` runs it: the same pinned and checked packages, served by uvicorn directly.
FROM python:3.12-slim-bookworm
COPY deploy/setup/requirements.txt /tmp/requirements.txt
RUN pip install --no-cache-dir --no-deps --require-hashes --only-binary=:all: -r /tmp/requirements.txt \
 && rm /tmp/requirements.txt \
 && useradd --system --create-home mlflow
USER mlflow
ENV PYTHONUNBUFFERED=1 MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false \
    _MLFLOW_SGI_NAME=uvicorn _MLFLOW_IN_JOB_EXECUTOR=false _MLFLOW_SERVER_SERVE_ARTIFACTS=true _MLFLOW_SERVER_ARTIFACT_ROOT=mlflow-artifacts:/
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s --retries=6 \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen(r.Request('http://127.0.0.1:5000/api/2.0/mlflow/experiments/search', b'{\"max_results\":1}', {'content-type': 'application/json'}), timeout=4)"]
CMD ["python", "-m", "uvicorn", "--host", "0.0.0.0", "--port", "5000", "--workers", "1", "--log-level", "warning", "mlflow.server.fastapi_app:app"]
