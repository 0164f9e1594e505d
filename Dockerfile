# Builds the bridge. The image contains only the program and the few files that it needs: no shell, no root.

FROM rust:1.95-slim-bookworm AS build
WORKDIR /build
# The base image has the C compiler that aws-lc-sys needs, which is built without cmake and make.
#
# The dependencies are built first, in a separate layer that is reused until Cargo.lock changes. The build
# of the crate itself is then deleted: cargo compares the files' ages, and would consider the empty program
# newer than the sources. The benchmark and the tests that Cargo.toml names must exist.
COPY Cargo.toml Cargo.lock ./
COPY private_postgres private_postgres
RUN mkdir -p src benches/load tests/attacks tests/clients \
    && touch src/lib.rs benches/load/main.rs tests/attacks/main.rs tests/clients/main.rs \
    && echo 'fn main() {}' > src/main.rs \
    && cargo build --release --locked \
    && cargo clean --release --locked --package tidings
COPY . .
RUN cargo build --release --locked

# A release takes the program that it has built already from a folder, and the stage above isn't run:
#
#   docker build --build-context program=FOLDER -t tidings .
FROM scratch AS program
COPY --from=build /build/target/release/tidings /

# The files that the program needs: its libraries, the trusted CA certificates (for Postgres and key sets), the
# configuration of name resolution, and its user.
FROM rust:1.95-slim-bookworm AS files
COPY --from=program /tidings /program/
RUN install -D -m 755 /program/tidings /image/usr/local/bin/tidings \
    && ldd /image/usr/local/bin/tidings | grep -o '/[^ ]*' | xargs -I '{}' cp --parents -L '{}' /image \
    && install -D -m 644 /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ca-certificates.crt \
    && echo 'hosts: files dns' > /image/etc/nsswitch.conf \
    && echo 'tidings:x:10001:10001::/:/nonexistent' > /image/etc/passwd \
    && echo 'tidings:x:10001:' > /image/etc/group

FROM scratch
COPY --from=files /image /
# Numeric, so that Kubernetes can verify that it isn't root.
USER 10001:10001
EXPOSE 8080 8081
ENV PATH=/usr/local/bin
# On SIGTERM the bridge ends its streams, so that browsers reconnect elsewhere.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=6s --start-period=40s --retries=3 \
    CMD ["/usr/local/bin/tidings", "health"]
ENTRYPOINT ["/usr/local/bin/tidings"]
CMD ["serve"]
