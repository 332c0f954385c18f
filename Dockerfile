# ply from its source, as an image: the engine, its command line and the registry.
#
#   ply build -t ply .          # docker build makes the same
#   ply run -d --privileged --name engine -v ply:/var/lib/ply ply
#   ply exec engine ply version
#
# The stages golang and debian are the images of those names. Where there is no Docker Hub, a context takes the place of either:
#   --build-context golang=docker-image://IMAGE    has Go and Debian's apt
#   --build-context debian=docker-image://IMAGE    has Debian's apt
# Both may be directories with a root file system, too. A directory "vendor", which "go mod vendor" makes, takes the place of the module proxy.

FROM golang:1.26-bookworm AS golang
FROM debian:bookworm-slim AS debian

FROM golang AS compiled
ENV PATH=/usr/local/go/bin:$PATH
COPY test/setup/packages /usr/local/sbin/
RUN packages gcc libc6-dev make pkg-config libseccomp-dev libisal-dev && rm -rf /var/lib/apt/lists/*
RUN --mount=target=/src --mount=type=cache,target=/root/.cache/go-build --mount=type=cache,target=/root/go \
    GOPATH=/root/go make -C /src build BIN=/out

FROM debian AS ply
COPY test/setup/packages /usr/local/sbin/
RUN packages ca-certificates git iproute2 libisal2 nftables procps && rm -rf /var/lib/apt/lists/* /usr/local/sbin/packages
COPY --link --from=compiled /out/ /usr/local/bin/
VOLUME /var/lib/ply
ENTRYPOINT ["plyd"]
