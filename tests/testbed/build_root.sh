#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Usage: build_root.sh ROOT.tar
#
# Makes the root file system that all templates start from, of the host's own
# Debian release: Debian's packages, and two kernels with only the modules that
# a VM needs. Run as root; mounts no image.

set -euo pipefail

readonly OUT=${1:?which tar file to make}

readonly PACKAGES=(
  # What a job needs of its guest, and what makes the guest reachable.
  bash git hostname openssh-server sudo qemu-guest-agent
  iproute2 kmod procps libnss-myhostname
  busybox-static                    # the initramfs of both, and lite's init
  systemd-sysv udev dbus cloud-init # cloud's init; dbus for the power button
)

# Debian's "cloud" kernel boots 2 s faster than the other one under emulation,
# since it is packed with LZ4, but it has no AHCI for a CD-ROM.
readonly KERNELS=(linux-image-cloud-amd64 linux-image-amd64)
readonly MODULES=(
  virtio_pci virtio_blk virtio_net virtio_console virtio_rng
  ext4 vfat nls_ascii nls_cp437 nls_utf8
  button evdev # ACPI's power button
  qemu_fw_cfg  # systemd's credentials
  pvpanic_mmio # tells the host of a panic
)
readonly AHCI_MODULES=(ahci sr_mod isofs autofs4)

main() {
  work=$(mktemp --directory --tmpdir="$(dirname "$OUT")")
  trap 'rm -rf "$work"' EXIT
  root=$work/root

  make_root
  for image in "$root"/boot/*.deb; do
    unpack_kernel "$image"
  done

  # Clones with one machine-id would get one lease, even with different MACs.
  : >"$root/etc/machine-id"
  rm -f "$root"/etc/ssh/ssh_host_* "$root"/etc/{hostname,resolv.conf}

  tar --create --file "$OUT.new" --directory "$root" .
  mv "$OUT.new" "$OUT"
}

make_root() {
  local suite fetch_kernels
  # shellcheck source=/dev/null
  suite=$(. /etc/os-release && echo "$VERSION_CODENAME")

  # Kernels are fetched but not installed: the scripts of their packages would
  # make an initramfs that is large and slow.
  # shellcheck disable=SC2016 # the hook's shell expands its variables
  fetch_kernels='export APT_CONFIG=$MMDEBSTRAP_APT_CONFIG
    images=$(apt-cache depends '"${KERNELS[*]}"' |
      sed -n "s/.*Depends: \(linux-image-[^ ]*\).*/\1/p")
    cd "$1/boot" && apt-get download $images'

  # The host's own settings for downloads, such as a proxy, hold here too.
  apt-config dump | grep '^Acquire::.* "..*";' >"$work/apt.conf"

  mmdebstrap --mode=root --variant=essential --format=directory \
    --include="$(IFS=, && echo "${PACKAGES[*]}")" \
    --aptopt="$work/apt.conf" \
    --dpkgopt=force-unsafe-io \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/i18n/*' \
    --dpkgopt='path-exclude=/usr/share/info/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --customize-hook="$fetch_kernels" \
    "$suite" "$root"
}

unpack_kernel() {
  local image=$1 release modules=("${MODULES[@]}")
  release=$(dpkg-deb --field "$image" Package)
  release=${release#linux-image-}
  [[ $release == *-cloud-* ]] || modules+=("${AHCI_MODULES[@]}")

  # The package may hold /lib, which is a symbolic link in the root.
  dpkg-deb --fsys-tarfile "$image" |
    tar --extract --keep-directory-symlink --exclude ./usr/share --directory "$root"
  rm "$image" "$root"/boot/{System.map,config}-"$release"

  # Newer releases pack the modules, which would only cost time at boot.
  find "$root/lib/modules/$release" -name '*.ko.xz' -exec unxz {} +
  chroot "$root" depmod "$release"
  for module in "${modules[@]}"; do
    chroot "$root" modprobe --set-version "$release" --show-depends "$module"
  done | sed -n 's|^insmod \([^ ]*\).*|\1|p' >"$work/needed"
  chroot "$root" find "/lib/modules/$release/" -name '*.ko' |
    grep --invert-match --line-regexp --fixed-strings --file="$work/needed" |
    sed "s|^|$root|" | xargs rm
  chroot "$root" depmod "$release"
}

main
