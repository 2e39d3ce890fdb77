# Builds with the classic builder and with BuildKit, from Debian's archive and the Go module proxy.
# The stages kernel and debian read kernel-config/ and rootfs/ only, and stay cached while the Go code changes.
# Their order serves `docker build --target`: the classic builder builds all the stages above the target too.
ARG BASE_IMAGE=debian:trixie-slim
# What the guest has as its /: the stage debian, or any image; rootfs/README.md.
ARG USERLAND=debian

# --- What the building stages share: the suite that has the kernel's source and the Go compiler.
FROM ${BASE_IMAGE} AS backports
RUN sed -i 's/^Suites: trixie trixie-updates$/& trixie-backports/' /etc/apt/sources.list.d/debian.sources && \
    grep -q 'trixie-backports$' /etc/apt/sources.list.d/debian.sources

# --- /rootfs, unless USERLAND names something else: the default guest's root file system.
FROM ${BASE_IMAGE} AS debian
COPY rootfs/debian/ /recipe/
RUN /recipe/setup && rm -rf /recipe
# Not by the script: in a build container these three are mounts of the builder's.
COPY rootfs/debian/etc/hostname rootfs/debian/etc/hosts rootfs/debian/etc/resolv.conf /etc/

# --- /linux: the guest kernel.
FROM backports AS kernel
ARG KERNEL_SERIES=7.2
RUN apt-get update -qq && \
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends -o Dpkg::Use-Pty=0 \
        linux-source-${KERNEL_SERIES} gcc libc6-dev make flex bison bc libelf-dev xz-utils patch >/dev/null && \
    rm -rf /var/lib/apt/lists/*
COPY kernel-config/ /kernel-config/
# The classic builder mounts a directory of the disk there, and takes it away again: a quarter faster than on its layers.
# BuildKit does not, and makes no directory either.
VOLUME /build
RUN mkdir -p /build && TMPDIR=/build /kernel-config/build /usr/src /linux

# --- /entrypoint and /initramfs: the Go programs.
FROM backports AS go
RUN apt-get update -qq && \
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends -o Dpkg::Use-Pty=0 \
        golang-1.26-go ca-certificates libarchive-tools >/dev/null && \
    rm -rf /var/lib/apt/lists/*
ENV PATH=/usr/lib/go-1.26/bin:/usr/sbin:/usr/bin GOTOOLCHAIN=local CGO_ENABLED=0
# Extra authorities for networks whose proxy opens TLS; see certs/README.md.
COPY certs/ /usr/local/share/ca-certificates/
RUN update-ca-certificates >/dev/null
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY cmd/ cmd/
COPY internal/ internal/
# -E: signals count from the first instruction of process 1; internal/pid1.
RUN mkdir /image && \
    go build -trimpath -ldflags "-s -w -E pid1entry" -o /image/entrypoint ./cmd/entrypoint && \
    ln -s entrypoint /image/guest && \
    go build -trimpath -ldflags "-s -w" -o /guest ./cmd/guest
# bsdtar, because it takes owners, times and the device node from a list: as good without root, and the same each time.
COPY rootfs/initramfs.mtree ./
RUN bsdtar --format=newc -cf /image/initramfs @initramfs.mtree

# --- /rootfs. COPY --from= takes no variables, FROM does; the name of a stage wins over that of an image.
FROM ${USERLAND} AS userland

# --- The image. What changes least comes first.
FROM scratch
LABEL org.opencontainers.image.title="docker-usermode-linux" \
      org.opencontainers.image.description="A whole Linux kernel in an unprivileged container" \
      org.opencontainers.image.licenses="MIT AND GPL-2.0-only"
COPY --from=userland / /rootfs/
COPY --from=kernel /linux /linux
COPY --from=go /image/ /
# Each makes the directory: for the guest's devices where the userland has none, for the sockets between supervisor and
# kernel.
WORKDIR /rootfs/dev
WORKDIR /run
ENV PATH=/
EXPOSE 22
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=6s --start-period=60s --retries=3 CMD ["/entrypoint", "healthcheck"]
ENTRYPOINT ["/entrypoint"]
