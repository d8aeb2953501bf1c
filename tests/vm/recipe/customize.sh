#!/bin/sh
# Runs on the host, with the freshly unpacked root as $1, as mmdebstrap's last hook: turns a Debian root into one
# that boots quickly, quietly and to the state "running" in the lab and in the VM alike.
set -eu
root=$1

# A unit that is masked does not have to be waited for, explained or skipped.
for unit in \
	console-getty.service getty.target getty@tty1.service getty-static.service \
	serial-getty@ttyS0.service container-getty@.service \
	apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer fstrim.timer \
	systemd-networkd.service systemd-networkd.socket systemd-networkd-wait-online.service \
	systemd-networkd-varlink.socket systemd-networkd-resolve-hook.socket systemd-networkd-varlink-metrics.socket \
	systemd-network-generator.service \
	systemd-pstore.service systemd-firstboot.service systemd-update-done.service \
	systemd-hwdb-update.service systemd-journal-catalog-update.service ldconfig.service \
	systemd-pcrphase.service systemd-pcrphase-sysinit.service systemd-pcrmachine.service \
	systemd-boot-update.service systemd-random-seed.service systemd-machine-id-commit.service \
	systemd-journal-flush.service systemd-binfmt.service \
	proc-sys-fs-binfmt_misc.automount proc-sys-fs-binfmt_misc.mount \
	dev-hugepages.mount sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount \
	sys-fs-fuse-connections.mount tmp.mount \
	modprobe@configfs.service modprobe@drm.service modprobe@efi_pstore.service modprobe@fuse.service \
	modprobe@dm_mod.service modprobe@loop.service \
	docker-registry.service nftables.service \
	podman.service podman.socket podman-auto-update.timer podman-auto-update.service \
	podman-restart.service podman-clean-transient.service netavark-dhcp-proxy.service netavark-dhcp-proxy.socket
do
	ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
ln -sf /usr/lib/systemd/system/multi-user.target "$root/etc/systemd/system/default.target"

# What only the tests that want it start. Without polkit nobody but root may do what needs leave, and a shell has no agent to wait for.
rm -f "$root"/etc/systemd/system/*.wants/ssh.service "$root"/etc/systemd/system/*.wants/ssh.socket "$root/etc/systemd/system/sshd.service" "$root"/etc/systemd/system/sockets.target.wants/polkit-agent-helper.socket
mv "$root/usr/share/dbus-1/system-services/org.freedesktop.PolicyKit1.service" "$root/usr/share/polkit-1/"
mkdir -p "$root/etc/systemd/system-generators"
ln -sf /dev/null "$root/etc/systemd/system-generators/systemd-ssh-generator"

# Volatile: a journal file on overlayfs or in an image nobody reads again is only work.
mkdir -p "$root/etc/systemd/journald.conf.d"
cat > "$root/etc/systemd/journald.conf.d/lab.conf" <<-EOF
	[Journal]
	Storage=volatile
	RateLimitIntervalSec=0
	ForwardToConsole=no
EOF

# The cgroup that commands from outside are put into: a real unit, so that a process of such a command has one, as it has
# when a person logs in, and GetUnitByPID, systemd-run --scope and podman find themselves at home.
cat > "$root/etc/systemd/system/lab-shell.service" <<-EOF
	[Unit]
	Description=Commands that enter the lab from outside
	[Service]
	Type=exec
	ExecStart=/usr/bin/sleep infinity
	Delegate=yes
	TasksMax=infinity
	OOMPolicy=continue
	[Install]
	WantedBy=multi-user.target
EOF
mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
ln -sf ../lab-shell.service "$root/etc/systemd/system/multi-user.target.wants/lab-shell.service"

printf '127.0.0.1 localhost\n::1 localhost ip6-localhost\n127.0.0.1 registry.test\n' > "$root/etc/hosts"
: > "$root/etc/resolv.conf"
: > "$root/etc/fstab"
rm -f "$root/etc/hostname"
# Not "uninitialized": that would be a first boot, with presets for every unit. Each boot gets its own id.
: > "$root/etc/machine-id"
rm -f "$root/var/lib/dbus/machine-id"

rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*.bin "$root"/var/log/* "$root"/usr/share/doc/*
mkdir -p "$root/usr/local/lib/nspawnd" "$root/var/lib/nspawnd" "$root/var/lib/containers" "$root/var/lib/machines"
