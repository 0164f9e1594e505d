# Builds the bridge, then keeps the program and the few files that it needs: no shell, no root.

FROM rust:1.95-slim-bookworm AS build
WORKDIR /build
# The image has the C compiler that aws-lc-sys needs; it is built without cmake and make.
#
# The dependencies come first, in a layer of their own that lasts until Cargo.lock changes.
# What was built in the crate's name is thrown away again: cargo goes by the age of files, and
# would take the empty program for newer than the sources.
COPY Cargo.toml Cargo.lock ./
RUN mkdir -p src benches/load \
    && touch src/lib.rs benches/load/main.rs \
    && echo 'fn main() {}' > src/main.rs \
    && cargo build --release --locked \
    && cargo clean --release --locked --package tidings
COPY . .
RUN cargo build --release --locked
# What it opens: its libraries, the authorities that it believes (Postgres, key sets), how names are
# resolved, and who it is.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && mkdir -p /image/etc/ssl/certs /image/usr/local/bin \
    && cp target/release/tidings /image/usr/local/bin \
    && ldd target/release/tidings | grep -o '/[^ ]*' | xargs -I '{}' cp --parents -L '{}' /image \
    && cp /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs \
    && echo 'hosts: files dns' > /image/etc/nsswitch.conf \
    && echo 'tidings:x:10001:10001::/:/nonexistent' > /image/etc/passwd \
    && echo 'tidings:x:10001:' > /image/etc/group

FROM scratch
COPY --from=build /image /
# A number, so that a cluster can tell that it is not root's.
USER 10001:10001
EXPOSE 8080 8081
ENV PATH=/usr/local/bin
# On SIGTERM the bridge closes its streams, so that browsers reconnect elsewhere.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=6s --start-period=40s --retries=3 \
    CMD ["/usr/local/bin/tidings", "health"]
ENTRYPOINT ["/usr/local/bin/tidings"]
CMD ["serve"]
