#!/bin/sh
# build.sh HERE TINY SCRATCH OUT MIRROR: makes the OCI layout OUT with the test images, from Debian packages. HERE has this script's files, TINY is the
# static program. Runs in its own mount namespace, as root.
#
# Each application image is its own layer over the same base layer, packed by umoci from what changed: real whiteouts where a package's
# installation or this script removed a file of the base.
set -eu
here=$1 tiny=$2 scratch=$3 out=$4 mirror=$5
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
created=2026-01-01T00:00:00Z

umoci init --layout "$out"

config() { # NAME OPTION...
	name=$1
	shift
	umoci config --image "$out:$name" --history.created "$created" --created "$created" --architecture amd64 --os linux \
		--author "nspawnd's tests" "$@"
}

# The base: Debian's essential packages and apt.
umoci new --image "$out:base"
umoci unpack --image "$out:base" "$scratch/base"
mmdebstrap --variant=apt --mode=root --components=main --format=directory --dpkgopt=force-unsafe-io \
	--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
	--dpkgopt='path-exclude=/usr/share/info/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
	--customize-hook='printf "#!/bin/sh\nexit 101\n" > "$1/usr/sbin/policy-rc.d"; chmod 755 "$1/usr/sbin/policy-rc.d"' \
	--customize-hook='rm -f "$1/etc/hostname" "$1/etc/resolv.conf"; : > "$1/etc/machine-id"' \
	trixie "$scratch/base/rootfs" "$mirror"
umoci repack --image "$out:base" --history.created "$created" "$scratch/base"
config base --config.env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin --config.cmd bash \
	--config.label org.opencontainers.image.title=base

application() { # NAME PACKAGE...: unpacks the base, installs, adds the files in HERE/NAME, runs HERE/NAME/customize in it
	name=$1
	shift
	umoci tag --image "$out:base" "$name"
	umoci unpack --image "$out:$name" "$scratch/$name"
	root=$scratch/$name/rootfs
	mount -t proc proc "$root/proc"
	mount --bind /dev "$root/dev"
	# Only for apt, and gone before the layer is packed.
	cat /etc/resolv.conf > "$root/etc/resolv.conf" || :
	chroot "$root" apt-get -qq -o Acquire::Check-Valid-Until=false update
	chroot "$root" apt-get -qq -o Dpkg::Options::=--force-unsafe-io install --yes --no-install-recommends "$@"
	rm -rf "$root/etc/resolv.conf" "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/* "$root"/tmp/*
	find "$root/var/log" -type f -delete
	tar -C "$here/$name/files" --owner=0 --group=0 -cf - . | tar -C "$root" -xpf -
	if [ -e "$here/$name/customize" ]; then
		sh -eu "$here/$name/customize" "$root"
	fi
	# Whiteouts: a file and a directory of the base that this image doesn't have.
	rm -rf "$root/usr/share/common-licenses" "$root/etc/issue"
	umount "$root/dev" "$root/proc"
	umoci repack --image "$out:$name" --history.created "$created" "$scratch/$name"
	rm -rf "$scratch/$name"
}

application nginx nginx-light
config nginx --config.entrypoint /docker-entrypoint.sh --clear=config.cmd \
	--config.cmd nginx --config.cmd=-g --config.cmd "daemon off;" \
	--config.stopsignal SIGQUIT --config.exposedports 80/tcp \
	--config.env NGINX_VERSION=debian --config.label org.opencontainers.image.title=nginx

# The same as it is on Docker Hub: it logs to files that are links to the standard streams.
umoci tag --image "$out:nginx" nginx-logs
umoci unpack --image "$out:nginx-logs" "$scratch/nginx-logs"
ln -s /dev/stdout "$scratch/nginx-logs/rootfs/var/log/nginx/access.log"
ln -s /dev/stderr "$scratch/nginx-logs/rootfs/var/log/nginx/error.log"
sed -i 's,error_log .*,error_log /var/log/nginx/error.log notice;,; s,access_log .*,access_log /var/log/nginx/access.log;,' \
	"$scratch/nginx-logs/rootfs/etc/nginx/nginx.conf"
umoci repack --image "$out:nginx-logs" --history.created "$created" "$scratch/nginx-logs"
rm -rf "$scratch/nginx-logs"

application httpd apache2
config httpd --clear=config.cmd --config.cmd apache2 --config.cmd=-DFOREGROUND --config.stopsignal SIGWINCH --config.exposedports 80/tcp \
	--config.label org.opencontainers.image.title=httpd

# What people use in a terminal.
application shell less procps vim-tiny
config shell --config.env EDITOR=vi --config.label org.opencontainers.image.title=shell

application redis redis-server
config redis --config.entrypoint docker-entrypoint.sh --clear=config.cmd --config.cmd redis-server \
	--config.user redis --config.volume /data --config.workingdir /data --config.exposedports 6379/tcp \
	--config.label org.opencontainers.image.title=redis

application python python3-minimal
config python --clear=config.cmd --config.cmd python3 --config.cmd server.py --config.workingdir /app --config.user 1234:2345 \
	--config.env PYTHONUNBUFFERED=1 --config.env GREETING="hello, 100% \$HOME" --config.exposedports 8000/tcp \
	--config.label org.opencontainers.image.title=python

application postgres postgresql gosu
config postgres --config.entrypoint docker-entrypoint.sh --clear=config.cmd --config.cmd postgres \
	--config.volume /var/lib/postgresql/data --config.stopsignal SIGINT --config.exposedports 5432/tcp \
	--config.env PGDATA=/var/lib/postgresql/data --config.label org.opencontainers.image.title=postgres

application node nodejs
config node --clear=config.cmd --config.cmd node --config.cmd server.js --config.workingdir /app --config.env PORT=3000 \
	--config.exposedports 3000/tcp --config.label org.opencontainers.image.title=node

# One program, no shell, no /etc, no directories but /bin; the links are a layer of their own.
umoci new --image "$out:tiny"
umoci unpack --image "$out:tiny" "$scratch/tiny"
mkdir "$scratch/tiny/rootfs/bin"
install -m 0755 "$tiny" "$scratch/tiny/rootfs/bin/tiny"
umoci repack --image "$out:tiny" --history.created "$created" --refresh-bundle "$scratch/tiny"
for link in true false echo cat env id ls sleep; do
	ln -s tiny "$scratch/tiny/rootfs/bin/$link"
done
umoci repack --image "$out:tiny" --history.created "$created" "$scratch/tiny"
config tiny --config.entrypoint /bin/tiny --config.cmd help --config.env PATH=/bin --config.env FROM=tiny \
	--config.label org.opencontainers.image.title=tiny

umoci gc --layout "$out"
