#!/bin/sh
# image.sh ROOT KERNEL FILES SCRATCH OUT: makes OUT/root.img, an ext4 image of the lab's ROOT with the unpacked KERNEL package's
# modules and the VM's own FILES, and OUT/vmlinuz. Runs in its own mount namespace.
set -eu
root=$1 kernel=$2 files=$3 scratch=$4 out=$5

mkdir -p "$scratch/upper" "$scratch/work" "$scratch/tree" "$out"
mkdir -p "$kernel/etc/systemd/system" "$kernel/usr/local/lib"
install -m 0644 "$files/lab-vm.target" "$files/lab-vm.service" "$kernel/etc/systemd/system/"
install -m 0755 "$files/lab-vm" "$kernel/usr/local/lib/"
for unit in systemd-udev-trigger.service systemd-udev-load-credentials.service systemd-modules-load.service; do
	ln -s /dev/null "$kernel/etc/systemd/system/$unit"
done

# Older kernel packages have it in /boot, newer ones beside the modules.
set -- "$kernel"/boot/vmlinuz-* "$kernel"/usr/lib/modules/*/vmlinuz
for path; do
	[ ! -e "$path" ] || mv "$path" "$out/vmlinuz"
done
[ -e "$out/vmlinuz" ]
for modules in "$kernel"/usr/lib/modules/*; do
	version=${modules##*/}
done
rm -rf "$kernel/boot"

mount -t overlay overlay -o "lowerdir=$kernel:$root,upperdir=$scratch/upper,workdir=$scratch/work" "$scratch/tree"
chroot "$scratch/tree" depmod "$version"
# Sparse. No journal: a crash test would want one, and today each VM's disk is thrown away.
mke2fs -q -t ext4 -L lab -m 0 -O ^has_journal -E lazy_itable_init=1 -d "$scratch/tree" "$out/root.img" 8G
