#!/bin/sh
# Installs what the lab and the VM need on Debian 12 or 13, if it is missing. To be run as root.
set -eu
missing=
need() { # COMMAND PACKAGE
	PATH="$PATH:/usr/sbin:/sbin" command -v "$1" > /dev/null || missing="$missing $2"
}
need mmdebstrap mmdebstrap
need umoci umoci
need qemu-system-x86_64 qemu-system-x86
need mke2fs e2fsprogs
need mount mount
[ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || missing="$missing debian-archive-keyring"
[ -n "$missing" ] || exit 0
apt-get update
# Unquoted: a list of words.
DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends $missing
