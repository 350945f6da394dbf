# syntax=docker/dockerfile:1
# All processes of frameloop in one image (target `frameloop`), and the edge agent alone in a small one (target `agent`).
# Build from the checkout's root: docker build -f deploy/docker/frameloop.Dockerfile --target frameloop -t frameloop .

FROM node:22-bookworm AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 python3-pip python3-venv cmake zlib1g-dev libssl-dev libsasl2-dev libzstd-dev \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /app
# packages first: they change seldom
COPY package.json package-lock.json .npmrc ./
COPY kit/package.json kit/
COPY schemas/package.json schemas/
COPY edge-agent/package.json edge-agent/
COPY stream-processors/package.json stream-processors/
COPY cloud/package.json cloud/
COPY cloud/client/package.json cloud/client/
COPY deploy/package.json deploy/
COPY bench/package.json bench/
COPY deploy/setup deploy/setup
RUN node deploy/setup/setup.mjs --only packages
COPY . .
RUN node deploy/setup/build.mjs \
 && mkdir -p .frameloop/tools/tensorflow \
 && npm prune --omit=dev --ignore-scripts --no-audit --no-fund

FROM node:22-bookworm-slim AS runtime
ENV NODE_ENV=production HOST=0.0.0.0 PORT=8080 TF_CPP_MIN_LOG_LEVEL=2 NODE_OPTIONS="--enable-source-maps --max-semi-space-size=32"
RUN apt-get update \
 # librdkafka is linked with what the build stage has of SASL and curl
 && apt-get install -y --no-install-recommends ffmpeg tini libsasl2-2 libcurl4 \
 && rm -rf /var/lib/apt/lists/* \
 && mkdir -p /var/lib/frameloop/spool /var/cache/frameloop/models \
 && chown -R node:node /var/lib/frameloop /var/cache/frameloop
WORKDIR /app
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=6 \
  CMD ["node", "-e", "fetch('http://127.0.0.1:8080/readyz').then((answer) => process.exit(answer.ok ? 0 : 1), () => process.exit(1))"]
ENTRYPOINT ["tini", "--", "node"]

FROM runtime AS frameloop
COPY --from=build /app/node_modules node_modules
COPY --from=build /app/.frameloop/tools/tensorflow .frameloop/tools/tensorflow
COPY --from=build /app/.frameloop/build .frameloop/build
COPY --from=build /app/package.json package.json
COPY --from=build /app/deploy/migrations deploy/migrations
COPY --from=build /app/deploy/bin deploy/bin
USER node
CMD ["deploy/bin/frameloop.mjs", "--help"]

# the agent needs sharp and ffmpeg; everything else of it is in its bundle
FROM build AS agent-build
WORKDIR /agent
RUN node -e "const { dependencies } = require('/app/edge-agent/package.json'); require('fs').writeFileSync('package.json', JSON.stringify({ private: true, dependencies: { sharp: dependencies.sharp } }))" \
 && npm install --no-audit --no-fund --ignore-scripts

FROM runtime AS agent
COPY --from=agent-build /agent/node_modules node_modules
COPY --from=build /app/.frameloop/build .frameloop/build
USER node
CMD [".frameloop/build/agent.mjs", "run"]
