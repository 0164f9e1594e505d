# Builds the bridge, then keeps nothing but the program.

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

FROM debian:bookworm-slim
# A number that a cluster can tell is not root's, and a name for the people who read ps.
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin tidings
COPY --from=build /build/target/release/tidings /usr/local/bin/tidings
USER 10001
EXPOSE 8080
# On SIGTERM the bridge closes its streams, so that browsers reconnect elsewhere.
STOPSIGNAL SIGTERM
ENTRYPOINT ["tidings"]
CMD ["serve"]
