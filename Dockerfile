# syntax=docker/dockerfile:1

FROM rust:1.95.0-slim-bookworm AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ make pkg-config libssl-dev zlib1g-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# The caches keep crates and objects from one build to the next; the program must leave them.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin contrastream \
    && cp target/release/contrastream /usr/local/bin/contrastream

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libssl3 zlib1g \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --user-group --no-create-home contrastream \
    # Volumes mounted here begin with this owner.
    && install -d -o contrastream -g contrastream \
        /var/lib/contrastream/state /var/lib/contrastream/out
COPY --from=build /usr/local/bin/contrastream /usr/local/bin/contrastream
COPY pipelines /etc/contrastream/pipelines
# Else glibc keeps freed blocks of up to 32 MiB in every thread: docs/memory.md.
ENV MALLOC_MMAP_THRESHOLD_=131072
ENV CONTRASTREAM_STATE=/var/lib/contrastream/state \
    CONTRASTREAM_OUT=/var/lib/contrastream/out \
    CONTRASTREAM_LISTEN=0.0.0.0:8080
USER contrastream
WORKDIR /var/lib/contrastream
EXPOSE 8080
# The image has no HTTP client; bash can speak enough of it.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD [ \
    "bash", "-c", \
    "exec 3<>/dev/tcp/127.0.0.1/8080 && printf 'GET /healthz HTTP/1.0\\r\\n\\r\\n' >&3 && read -r status <&3 && [[ $status == *' 200 '* ]]" \
]
ENTRYPOINT ["contrastream"]
CMD ["--help"]
