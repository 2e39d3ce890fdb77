# What bench/guest runs: the peers from Debian's archive, ours from the image under test. The build's context is what
# bench/guest has compiled.
ARG BASE_IMAGE=debian:trixie-slim
ARG IMAGE=docker-usermode-linux
FROM ${IMAGE} AS ours

# --- The root file system that all get: what people work with, and a package to install.
FROM ${BASE_IMAGE} AS guest
RUN apt-get update -qq && \
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends -o Dpkg::Use-Pty=0 \
        gcc libc6-dev git >/dev/null && \
    mkdir /bench && cd /bench && apt-get download -qq hello && \
    rm -rf /var/lib/apt/lists/*
COPY micro.c /tmp/
RUN gcc -O2 -static -o /bench/micro /tmp/micro.c && rm /tmp/micro.c

# --- The peers. UML is bookworm's, from where trixie comes from: the first stanza of the sources is the archive. The
# kernel for QEMU is unpacked only: it is not for this container. A peer that there is not has an empty column.
FROM ${BASE_IMAGE}
RUN set -e; \
    sed '/^$/,$d; s/^Suites: .*/Suites: bookworm/' /etc/apt/sources.list.d/debian.sources \
        >/etc/apt/sources.list.d/bookworm.sources; \
    apt-get update -qq; \
    get() { \
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends -o Dpkg::Use-Pty=0 "$1" >/dev/null; \
    }; \
    get e2fsprogs; \
    for peer in user-mode-linux/bookworm runsc qemu-system-x86; do get "$peer" || echo "no $peer"; done; \
    mkdir /qemu; cd /tmp; \
    kernel=$(apt-cache depends -i linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9]\)/\1/p' | head -n 1); \
    { apt-get download -qq "$kernel" && dpkg-deb -x linux-image-*.deb /qemu; } || echo 'no kernel for QEMU'; \
    rm -rf /tmp/* /var/lib/apt/lists/*
COPY --from=guest / /guest
COPY --from=ours /linux /initramfs /entrypoint /
COPY . /
ENTRYPOINT ["/kernels"]
