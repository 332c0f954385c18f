# The registry as an image that has nothing but it.
#
#   ply build -t ply-registry -f packaging/ply-registry.Dockerfile .     # docker build makes the same
#   ply run -d -p 5000:5000 -v /srv/registry:/var/lib/registry --name registry ply-registry
#   ply exec registry ply-registry user add alice
#
# "make registry-image" needs no image to begin with: two contexts take the place of what the stages compiled and certificates make,
#   --build-context compiled=DIRECTORY        has ply-registry
#   --build-context certificates=DIRECTORY    has ca-certificates.crt

FROM golang:1.26-bookworm AS golang

FROM golang AS compiled
RUN --mount=target=/src --mount=type=cache,target=/root/.cache/go-build --mount=type=cache,target=/go/pkg \
    cd /src && CGO_ENABLED=0 go build -buildvcs=false -trimpath -ldflags '-s -w' -o /ply-registry ./cmd/ply-registry

FROM golang AS certificates
RUN cp /etc/ssl/certs/ca-certificates.crt /

FROM scratch
COPY --from=certificates ca-certificates.crt /etc/ssl/certs/
COPY --from=compiled ply-registry /usr/local/bin/
# The variable makes the volumes and files of the reference registry's image work, see docs/registry.md. There is no VOLUME: an anonymous one at
# /var/lib/registry would hide that the user has mounted another place.
ENV PATH=/usr/local/bin PLY_REGISTRY_IMAGE=1
# Parts of uploads to S3 are spooled there.
WORKDIR /tmp
WORKDIR /
EXPOSE 5000
ENTRYPOINT ["ply-registry"]
CMD ["serve"]
