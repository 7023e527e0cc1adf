#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# A libvirt with a network, two storage pools and two templates, for the tests
# that need real machines. Needs Debian 12 or newer and root, but neither KVM
# nor systemd.

set -euo pipefail
umask 022
export LC_ALL=C PATH=$PATH:/usr/sbin:/sbin
export LIBVIRT_DEFAULT_URI=qemu:///system

here=$(dirname "$(realpath "$0")")
readonly here
readonly STATE=${GCI_TESTBED_STATE:-/var/lib/libvirt-gci-testbed}
readonly CACHE=${GCI_TESTBED_CACHE:-/var/cache/libvirt-gci-testbed}

readonly NETWORK=gci-testbed     # as in network.xml
readonly POOL_PREFIX=gci-testbed # …-templates and …-overlays
readonly TEMPLATES=(lite cloud)
readonly UNPRIVILEGED=gci-testbed # a user of the group libvirt

usage() {
  cat <<EOT
Usage: testbed.sh COMMAND

Commands:
  install  Install the Debian packages that the test bed needs
  install-all
           Also those that its tests of make_base_image.sh and of packages need
  up       Start what is not running, build what is missing; may be repeated
  status   Show what there is
  down     Remove all but the cache; stop libvirtd if "up" started it
  clean    The same, and remove the cache

What "up" makes:
  network "$NETWORK"            192.168.213.0/24, NAT, DHCP
  pool "$POOL_PREFIX-templates"     lite.qcow2, cloud.qcow2
  pool "$POOL_PREFIX-overlays"      empty
  $STATE/id_ed25519
                                   the key that lite's users root and
                                   gitlab-runner let in; cloud has no key,
                                   its user comes from a cloud-init seed
  user "$UNPRIVILEGED"               may use libvirt, and nothing else

Environment:
  GCI_TESTBED_STATE  $STATE
  GCI_TESTBED_CACHE  $CACHE
EOT
}

main() {
  case ${1:-} in
    -h | --help | help) usage ;;
    install | install-all | up | status | down | clean)
      (($# == 1)) || fail "Too many arguments. Try: testbed.sh --help"
      ((EUID == 0)) || fail "The test bed needs root. Try: sudo $0 $1"
      "${1/-/_}"
      ;;
    *)
      usage >&2
      exit 2
      ;;
  esac
}

fail() {
  echo "$*" >&2
  exit 1
}

install() {
  install_packages \
    libvirt-daemon-system libvirt-daemon-driver-qemu libvirt-clients \
    qemu-system-x86 qemu-utils ovmf dnsmasq-base iptables \
    mmdebstrap syslinux syslinux-common systemd-boot-efi mtools dosfstools fdisk e2fsprogs xz-utils \
    openssh-client tini libvirt-dev procps iproute2 git strace \
    docker-registry skopeo openssl zstd
}

# libguestfs needs a kernel in /boot, and packages are made by a program from PyPI.
install_all() {
  install
  install_packages guestfs-tools libxml2-utils linux-image-cloud-amd64 python3-pip
}

# install_packages PACKAGE...: those that are not there yet
install_packages() {
  local missing=()
  for package in "$@"; do
    is_installed "$package" || missing+=("$package")
  done
  if ((${#missing[@]} == 0)); then
    echo "All $# packages are installed"
    return
  fi
  echo "Installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get --quiet=2 update
  apt-get --quiet=2 install --no-install-recommends "${missing[@]}" >/dev/null
}

is_installed() {
  [[ $(dpkg-query --show --showformat='${db:Status-Status}' "$1" 2>/dev/null) == installed ]]
}

up() {
  type virsh mmdebstrap syslinux &>/dev/null ||
    fail "Packages are missing. Try: $0 install"
  # QEMU's own user searches these, so they are open to all but not writable.
  mkdir --parents "$STATE"/{templates,overlays} "$CACHE"
  take_turns

  step "libvirt" start_libvirt
  step "network $NETWORK" start_network
  for pool in templates overlays; do
    step "pool $POOL_PREFIX-$pool" start_pool "$pool"
  done
  step "client key" provide_key
  step "user $UNPRIVILEGED" provide_user
  for template in "${TEMPLATES[@]}"; do
    step "template $template" provide_template "$template"
  done
}

# Two "up" at once must not build the same files.
take_turns() {
  exec {lock}<"$CACHE"
  flock "$lock"
}

# step TITLE COMMAND…: prints what is done, before it is done on a terminal, and how long it took.
step() {
  local title=$1 start=${EPOCHREALTIME/./}
  shift
  [[ ! -t 1 ]] || printf '%-32s ...\r' "$title"
  "$@"
  local ms=$(((${EPOCHREALTIME/./} - start) / 1000))
  printf '%-32s %4d.%d s\n' "$title" $((ms / 1000)) $((ms % 1000 / 100))
}

libvirt_answers() {
  timeout 5 virsh --quiet version >/dev/null 2>&1
}

start_libvirt() {
  open_kvm
  if libvirt_answers; then
    [[ -z $(pid_of libvirtd) ]] || start_daemon virtlogd # or it may have died alone
    return
  fi
  if [[ -d /run/systemd/system ]]; then
    systemctl start libvirtd.service
  else
    [[ -f $STATE/chains ]] || count_chains >"$STATE/chains"
    # libvirtd does not start if this is empty, as it is in some containers.
    [[ -s /etc/machine-id ]] ||
      tr --delete - </proc/sys/kernel/random/uuid >/etc/machine-id
    start_daemon virtlogd
    # Without D-Bus and polkit, the permissions of the socket say who may use libvirt.
    cat >"$STATE/libvirtd.conf" <<EOT
unix_sock_group = "libvirt"
unix_sock_rw_perms = "0770"
auth_unix_ro = "none"
auth_unix_rw = "none"
EOT
    start_daemon libvirtd --config "$STATE/libvirtd.conf"
  fi
  local deadline=$((SECONDS + 60))
  until libvirt_answers; do
    ((SECONDS < deadline)) || fail "libvirtd does not answer. Look at $STATE/libvirtd.log"
    sleep 0.1
  done
}

# If there is a /dev/kvm that QEMU's user may not open, each start of a domain
# takes 13 s, be it emulated or not: libvirt's probe of QEMU may open any file and
# finds KVM, then libvirt sees that the user has none, takes the answer for
# outdated and probes again, several times (virQEMUCapsIsValid). So do what udev
# does where it runs.
open_kvm() {
  [[ -c /dev/kvm ]] || return 0
  ! setpriv --reuid=libvirt-qemu --regid=libvirt-qemu --init-groups \
    test -r /dev/kvm -a -w /dev/kvm || return 0
  stat --format='%u:%g %a' /dev/kvm >"$STATE/kvm"
  chown root:kvm /dev/kvm
  chmod 660 /dev/kvm
}

close_kvm() {
  local owner mode
  [[ -f $STATE/kvm ]] || return 0
  read -r owner mode <"$STATE/kvm"
  chown "$owner" /dev/kvm
  chmod "$mode" /dev/kvm
}

# A daemon that fails starts again, as systemd would have it (Restart=on-failure).
# The daemons outlive this script, so they must keep none of its descriptors
# open: a reader of its output through a pipe would wait for ever.
# start_daemon NAME [ARGUMENT...]
start_daemon() {
  [[ -z $(pid_of "$1") ]] || return 0
  (
    for descriptor in /proc/"$BASHPID"/fd/*; do
      descriptor=${descriptor##*/}
      ((descriptor <= 2)) || exec {descriptor}>&-
    done
    # A D-Bus that half works would delay each start of a domain by 45 s. QEMU's processes fall to
    # tini: the first process of a container may reap them late or never, and libvirt waits for it.
    # With one arena of malloc, memory that one thread freed serves all others: what grows is a leak.
    DBUS_SYSTEM_BUS_ADDRESS=unix:path=/nonexistent MALLOC_ARENA_MAX=1 setsid tini -s -- "$here/keep_running.sh" \
      "$@" --pid-file "$STATE/$1.pid" </dev/null >"$STATE/$1.log" 2>&1 &
  )
}

# The process that start_daemon started, if it still runs.
pid_of() {
  local pid
  pid=$(cat "$STATE/$1.pid" 2>/dev/null) || return 0
  [[ $(cat "/proc/$pid/comm" 2>/dev/null) != "$1" ]] || echo "$pid"
}

# All objects are transient: a crash of the machine leaves none of them.
start_network() {
  virsh net-info "$NETWORK" >/dev/null 2>&1 ||
    virsh --quiet net-create "$here/network.xml"
}

start_pool() {
  virsh pool-info "$POOL_PREFIX-$1" >/dev/null 2>&1 ||
    virsh --quiet pool-create-as "$POOL_PREFIX-$1" dir --target "$STATE/$1"
}

# The key stays with the templates that let it in.
provide_key() {
  [[ -f $CACHE/id_ed25519 ]] ||
    ssh-keygen -q -t ed25519 -N '' -C "$NETWORK" -f "$CACHE/id_ed25519"
  cp --update --preserve=mode,timestamps "$CACHE"/id_ed25519{,.pub} "$STATE"
}

# As an administrator would let a user other than root run jobs.
provide_user() {
  id "$UNPRIVILEGED" >/dev/null 2>&1 ||
    useradd --system --groups libvirt --home-dir "$STATE/unprivileged" --shell /bin/sh "$UNPRIVILEGED"
  install --directory --owner="$UNPRIVILEGED" --group="$UNPRIVILEGED" --mode=700 "$STATE/unprivileged"
}

# What is built is named for all that it is made of, so that a change rebuilds.
provide_template() {
  local name=$1 root template
  root=$CACHE/root-$(hash_of build_root.sh).tar
  template=$CACHE/$name-$(hash_of build_root.sh build_template.sh guest).qcow2
  if [[ ! -f $template ]]; then
    rm -f "$CACHE/$name"-*
    if [[ ! -f $root ]]; then
      rm -f "$CACHE"/root-*
      build build_root.sh "$root"
    fi
    build build_template.sh "$name" "$root" "$CACHE/id_ed25519.pub" "$template"
  fi
  # A running machine keeps the file that its overlay stands on.
  if [[ $template -nt $STATE/templates/$name.qcow2 ]]; then
    cp --preserve=timestamps --reflink=auto "$template" "$STATE/$name.new"
    mv "$STATE/$name.new" "$STATE/templates/$name.qcow2"
    virsh --quiet pool-refresh "$POOL_PREFIX-templates"
  fi
}

hash_of() {
  (
    cd "$here"
    grep '^VERSION_ID=' /etc/os-release
    cat "$CACHE/id_ed25519.pub"
    find "$@" -type f -print0 | sort --zero-terminated | xargs --null sha256sum
  ) | sha256sum | cut --characters=1-12
}

build() {
  "$here/$1" "${@:2}" >"$CACHE/build.log" 2>&1 || {
    tail --lines=20 "$CACHE/build.log" >&2
    fail "$1 failed. The whole of its output is in $CACHE/build.log"
  }
}

status() {
  libvirt_answers || fail "libvirt does not answer. Try: testbed.sh up"
  virsh list --all
  virsh pool-list --all --details
  for pool in templates overlays; do
    virsh vol-list "$POOL_PREFIX-$pool" --details || true
  done
  virsh net-dhcp-leases "$NETWORK" || true
}

down() {
  if [[ ! -d $STATE ]]; then
    echo "Nothing is up"
    return
  fi
  mkdir --parents "$CACHE"
  take_turns

  # Even after a crash, only libvirtd can remove all that it made.
  step "libvirt" start_libvirt
  step "remove domains" remove_domains
  step "remove network and pools" remove_network_and_pools
  [[ -z $(pid_of libvirtd) ]] || step "remove filters" remove_filters
  step "stop libvirt" stop_libvirt
  ! id "$UNPRIVILEGED" >/dev/null 2>&1 || userdel "$UNPRIVILEGED"
  rm -rf "$STATE"/{templates,overlays,unprivileged}
  rm -f "$STATE"/{id_ed25519,id_ed25519.pub,libvirtd.conf,chains,kvm,*.pid,*.log,*.new}
  rmdir --ignore-fail-on-non-empty "$STATE"
}

remove_domains() {
  local domain xml
  for domain in $(virsh list --all --uuid); do
    xml=$(virsh dumpxml "$domain" 2>/dev/null) || continue
    grep --quiet --fixed-strings \
      --regexp="'$STATE/" --regexp="pool='$POOL_PREFIX-" <<<"$xml" || continue
    virsh --quiet destroy "$domain" >/dev/null 2>&1 || true
    virsh --quiet undefine --managed-save --nvram --snapshots-metadata \
      "$domain" >/dev/null 2>&1 || true # which a transient one does not need
  done
}

remove_network_and_pools() {
  ! virsh net-info "$NETWORK" >/dev/null 2>&1 ||
    virsh --quiet net-destroy "$NETWORK"
  rm -f "/run/libvirt/network/$NETWORK.pid" # which libvirt leaves behind
  for pool in templates overlays; do
    ! virsh pool-info "$POOL_PREFIX-$pool" >/dev/null 2>&1 ||
      virsh --quiet pool-destroy "$POOL_PREFIX-$pool"
  done
}

# What a test that was killed left. libvirt keeps them in /etc.
remove_filters() {
  local filter
  for filter in $(virsh nwfilter-list | awk '$2 ~ /^libvirt-gci-/ { print $2 }'); do
    virsh --quiet nwfilter-undefine "$filter"
  done
}

# Stops only what "up" started.
stop_libvirt() {
  local ours
  ours=$(pid_of libvirtd)
  stop_daemon libvirtd
  stop_daemon virtlogd
  [[ -z $ours || $(<"$STATE/chains") != 0 ]] || remove_chains
  close_kvm
}

stop_daemon() {
  local pid deadline=$((SECONDS + 60))
  pid=$(pid_of "$1")
  [[ -n $pid ]] || return 0
  kill "$pid"
  while [[ -d /proc/$pid ]]; do
    ((SECONDS < deadline)) || fail "$1 does not end: process $pid"
    sleep 0.1
  done
}

count_chains() {
  iptables-save 2>/dev/null | grep --count '^:LIBVIRT_' || true
}

# libvirt leaves its empty chains behind, those of networks and those of network filters.
remove_chains() {
  for tables in iptables ip6tables; do
    "$tables-save" --counters |
      sed --regexp-extended '/LIBVIRT_|[: ]libvirt-(host-in|in|in-post|out)( |$)/d' |
      "$tables-restore" --counters
  done
}

clean() {
  down
  rm -rf "$CACHE"/{root-*,lite-*,cloud-*,tmp.*,id_ed25519,id_ed25519.pub,build.log}
  [[ ! -d $CACHE ]] || rmdir --ignore-fail-on-non-empty "$CACHE"
}

main "$@"
