#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Usage: build_template.sh lite|cloud ROOT.tar CLIENT_KEY.pub OUT.qcow2
#
# Makes a template from the root file system that build_root.sh made: adds the
# files in guest/, and puts all on a disk that BIOS and EFI boot. Everything is
# written straight into a file: no loop device, no nbd, no mount.

set -euo pipefail

readonly NAME=$1 ROOT_TAR=$2 CLIENT_KEY=$3 OUT=$4

readonly DISK_MIB=4096 BOOT_AT_MIB=1 ROOT_AT_MIB=65
readonly MIB=$((1024 * 1024)) SECTORS_PER_MIB=2048

main() {
  guest=$(dirname "$(realpath "$0")")/guest
  work=$(mktemp --directory --tmpdir="$(dirname "$OUT")")
  trap 'rm -rf "$work"' EXIT
  root=$work/root
  disk=$work/disk

  mkdir "$root"
  tar --extract --file "$ROOT_TAR" --directory "$root"
  add_files "$guest/$NAME"
  "set_up_$NAME"
  make_initramfs
  make_disk
  qemu-img convert -O qcow2 "$disk" "$OUT.new"
  mv "$OUT.new" "$OUT"
}

# Owner and mode must not follow from who checked out the sources, and how.
add_files() {
  tar --create --owner=0 --group=0 --mode=go-w --directory "$1" . |
    tar --extract --no-overwrite-dir --directory "$root"
}

# busybox is the init; root and gitlab-runner accept the key.
set_up_lite() {
  kernel=$(basename "$root"/boot/vmlinuz-*-cloud-amd64)
  boot_modules=(virtio_pci virtio_blk ext4
    virtio_net virtio_console virtio_rng button evdev pvpanic_mmio)

  for applet in init poweroff reboot halt; do
    ln --symbolic --force /bin/busybox "$root/sbin/$applet"
  done
  # Without PAM, sshd takes "!" for a locked account, which is the default.
  chroot "$root" useradd --create-home --uid 1000 --shell /bin/bash \
    --password '*' gitlab-runner
  for home in root home/gitlab-runner; do
    install --mode=600 -D "$CLIENT_KEY" "$root/$home/.ssh/authorized_keys"
  done
  chroot "$root" chown --recursive gitlab-runner: /home/gitlab-runner
}

# systemd is the init; the user and the key come from a seed for cloud-init.
set_up_cloud() {
  kernel=$(basename "$root"/boot/vmlinuz-*[0-9]-amd64)
  boot_modules=(virtio_pci virtio_blk ext4 ahci sr_mod)

  chroot "$root" systemctl enable systemd-networkd
  echo "nameserver 192.168.213.1" >"$root/etc/resolv.conf"

  # What no test needs and emulation makes slow: cloud-init's check of its input,
  # systemd's housekeeping, most of udev's naming and the data base behind it.
  rm -r "$root"/usr/lib/python3/dist-packages/jsonschema*
  rm "$root/usr/lib/udev/hwdb.bin"
  chroot "$root" systemctl mask \
    cloud-init-hotplugd.socket dpkg-db-backup.timer fstrim.timer getty@tty1 \
    dev-{hugepages,mqueue}.mount proc-sys-fs-binfmt_misc.automount \
    sys-fs-fuse-connections.mount sys-kernel-{config,debug,tracing}.mount \
    modprobe@{configfs,dm_mod,drm,efi_pstore,fuse,loop} kmod-static-nodes ldconfig \
    systemd-{ask-password-console.path,ask-password-wall.path,binfmt,firstboot} \
    systemd-{hwdb-update,journal-catalog-update,journal-flush,machine-id-commit} \
    systemd-{modules-load,network-generator,networkd-wait-online} \
    systemd-{pcrphase,pcrphase-sysinit,pstore,random-seed,remount-fs,repart} \
    systemd-{sysctl,sysusers,tmpfiles-clean.timer,update-done} \
    systemd-{update-utmp,update-utmp-runlevel}
  mask_all_but systemd/system-generators cloud-init-generator systemd-getty-generator
  mask_all_but udev/rules.d 50-udev-default.rules 60-block.rules \
    60-cdrom_id.rules 60-input-id.rules 60-persistent-storage.rules \
    60-qemu-guest-agent.rules 70-power-switch.rules 80-drivers.rules \
    99-systemd.rules
}

# An /etc/DIR/FILE that leads nowhere hides /usr/lib/DIR/FILE.
mask_all_but() {
  local dir=$1 file
  shift
  mkdir --parents "$root/etc/$dir"
  for file in "$root/usr/lib/$dir"/*; do
    file=${file##*/}
    [[ " $* " == *" $file "* ]] || ln --symbolic /dev/null "$root/etc/$dir/$file"
  done
}

make_initramfs() {
  local tree=$work/initramfs
  mkdir --parents "$tree"/{bin,dev,root}
  cp "$root/bin/busybox" "$tree/bin"
  cp "$guest/initramfs_init" "$tree/init"
  for module in "${boot_modules[@]}"; do
    chroot "$root" modprobe --set-version "${kernel#vmlinuz-}" --show-depends "$module"
  done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' >"$tree/modules"
  sed 's|^/||' "$tree/modules" |
    (cd "$root" && xargs cp --parents --target-directory="$tree")
  (cd "$tree" && find . | bin/busybox cpio -o -H newc) >"$work/initramfs.img"
}

# One partition for the boot loader, which reads FAT only, and one for the rest.
make_disk() {
  truncate --size="${DISK_MIB}M" "$disk"
  sfdisk --quiet "$disk" <<EOT
label: dos
start=${BOOT_AT_MIB}MiB, size=$((ROOT_AT_MIB - BOOT_AT_MIB))MiB, type=c, bootable
start=${ROOT_AT_MIB}MiB, type=83
EOT
  dd if=/usr/lib/syslinux/mbr/mbr.bin of="$disk" conv=notrunc status=none

  # Random numbers of the processor, or SSH's keys would wait for others; and no
  # watchdog that takes a busy host for a broken clock.
  local options="console=ttyS0 mitigations=off random.trust_cpu=on tsc=reliable panic=-1"
  cat >"$work/syslinux.cfg" <<EOT
default linux
label linux
  kernel vmlinuz
  initrd initramfs.img
  append $options
EOT
  mkdir --parents "$work"/{EFI/BOOT,loader/entries}
  cp /usr/lib/systemd/boot/efi/systemd-bootx64.efi "$work/EFI/BOOT/BOOTX64.EFI"
  cat >"$work/loader/entries/linux.conf" <<EOT
linux /vmlinuz
initrd /initramfs.img
options $options
EOT
  mkfs.fat -F 16 --offset=$((BOOT_AT_MIB * SECTORS_PER_MIB)) "$disk" \
    $(((ROOT_AT_MIB - BOOT_AT_MIB) * 1024))
  syslinux --install --offset=$((BOOT_AT_MIB * MIB)) "$disk"
  mcopy -i "$disk@@${BOOT_AT_MIB}M" "$root/boot/$kernel" ::vmlinuz
  mcopy -s -i "$disk@@${BOOT_AT_MIB}M" \
    "$work"/{initramfs.img,syslinux.cfg,EFI,loader} ::
  rm -r "${root:?}"/boot/*

  # No journal: a machine that lost its power is thrown away.
  mke2fs -q -t ext4 -O ^has_journal -N 65536 -d "$root" \
    -E "offset=$((ROOT_AT_MIB * MIB)),lazy_itable_init=0" \
    "$disk" $((DISK_MIB - ROOT_AT_MIB))M
}

main
