#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later

# Usage: make_base_image.sh [OPTION]... VM...
#
# Makes a template of each VM: DISTRO=VM then starts jobs on it. A VM that runs is
# shut down first, and stays off. Its disk is only read: the template is a copy,
# which no job sees before it is complete. Before, install in the VM what jobs call:
# git, and gitlab-runner for artifacts and caches; "libvirt-gci doctor --boot VM" says
# what the template lacks. For "libvirt-gci warm", install qemu-guest-agent in the VM
# before; docs/fast-starts.md says what else that needs.
#
#   -c, --connect URI      the hypervisor, on this host (default: qemu:///system)
#   -p, --pool NAME        the pool of templates (default: base_imgs, which is made
#                          in /var/lib/libvirt/images/base_imgs if there is none)
#       --replace          put a new version in the place of a template that exists:
#                          jobs that run go on with the old one; if anything else
#                          stands on it, it stays
#       --timeout SECONDS  how long a VM may take to shut down (default: 180)
#       --log FILE         append the details to FILE (default: a new file in /tmp)
#
# Exit status: 0 if each VM got its template, 1 if one did not, 2 for wrong arguments.

set -euo pipefail
export LC_ALL=C # The words of virsh and qemu-img are read below.

# What marks a job's machine, and the ends of the names of all its volumes and of its disk.
readonly MACHINES=urn:libvirt-gci:machine:1 OURS=.libvirt-gci OVERLAY=.overlay.libvirt-gci
# Where AppArmor lets libvirt see on which template a disk stands.
readonly DEFAULT_POOL=base_imgs DEFAULT_POOL_PATH=/var/lib/libvirt/images/base_imgs

# Debian makes SSH host keys when sshd is installed and never again: without this
# unit, no job could log in to a template of it or of its descendants.
readonly UNITS=/etc/systemd/system HOST_KEYS=make-ssh-host-keys.service
readonly HOST_KEYS_UNIT='[Unit]
ConditionPathExistsGlob=!/etc/ssh/ssh_host_*_key
After=sshd-keygen.target cloud-init.service
Before=ssh.service sshd.service
[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -t ed25519 -N "" -f /etc/ssh/ssh_host_ed25519_key
'

uri=qemu:///system
pool=$DEFAULT_POOL
replace=false
timeout_seconds=180
log=

# Ends the work on a VM, which is a job of its own, or else the script.
fail() { # what, [advice]...
  printf '%s\n' "$@" | tee -a "$log" >&2
  exit 1
}

usage() { sed -n '/^# Usage/,/^$/s/^# \?//p' "$0"; }
refuse_arguments() { printf '%s\n' "$1" "Try: make_base_image.sh --help" >&2 && exit 2; }
progress() { printf '%s\n' "$1" | tee -a "$log"; }
last_words() { tail -n 1 "$log"; }
last_complaint() { grep -E '^(qemu-img|virt-[a-z]+|libguestfs|supermin|timeout): ' "$log" | tail -n 1; }
virsh() { command virsh --quiet --connect "$uri" "$@" 2>>"$log"; }
xpath() { xmllint --xpath "string($1)" - 2>>"$log"; }

# In the background, because a shell answers no signal before a command ends.
run() { # command...
  printf '+ %s\n' "${*@Q}" >>"$log"
  "$@" >>"$log" 2>&1 </dev/null &
  wait $!
}

run_step() { # what, command...
  progress "$vm: $1"
  run "${@:2}" || fail "$vm: could not $1" "$(last_complaint)"
}

parse_arguments() {
  local options
  options=$(getopt -n make_base_image.sh -o hc:p: \
    -l help,connect:,pool:,replace,timeout:,log: -- "$@") || refuse_arguments "Unknown arguments"
  eval set -- "$options"
  while [[ $1 != -- ]]; do
    case $1 in
      -h | --help) usage && exit ;;
      -c | --connect) uri=$2 && shift ;;
      -p | --pool) pool=$2 && shift ;;
      --replace) replace=true ;;
      --timeout) timeout_seconds=$2 && shift ;;
      --log) log=$2 && shift ;;
    esac
    shift
  done
  vms=("${@:2}")
  ((${#vms[@]} > 0)) || refuse_arguments "Which VM?"
  [[ $timeout_seconds =~ ^[1-9][0-9]{0,5}$ ]] || refuse_arguments "--timeout takes a number of seconds"
  [[ $uri =~ ^[a-z+]+:/// ]] || refuse_arguments "\"$uri\" is not a hypervisor on this host"
  log=${log:-$(mktemp -t --suffix=.log make_base_image.XXXXXX)}
  { : >>"$log"; } 2>/dev/null || refuse_arguments "Cannot write to \"$log\""
  progress "Details: $log"
}

require_program() { # program, Debian's package, Fedora's package
  type -P "$1" >/dev/null || fail "$1 is missing" "Install it: apt install $2, or dnf install $3"
}

check_host() {
  require_program virsh libvirt-clients libvirt-client
  require_program qemu-img qemu-utils qemu-img
  require_program virt-sysprep guestfs-tools guestfs-tools
  require_program xmllint libxml2-utils libxml2
  # libguestfs boots one, and does not say so where there is none.
  compgen -G '/boot/vmlinu*' >>"$log" || compgen -G '/lib/modules/*/vmlinuz' >>"$log" ||
    [[ -n ${SUPERMIN_KERNEL:-}${LIBGUESTFS_PATH:-} ]] || fail "libguestfs needs a kernel in /boot" \
    "Install it: apt install linux-image-amd64, or dnf install kernel-core"
  [[ $uri != qemu:///system || $EUID == 0 ]] || fail "Only root can read the disks of $uri" "Try sudo"
  virsh uri >>"$log" || fail "Cannot connect to $uri" "$(last_words)"
}

require_pool() {
  local type
  if [[ $pool == "$DEFAULT_POOL" ]] && ! virsh pool-info "$pool" >>"$log"; then
    progress "Making the pool $pool in $DEFAULT_POOL_PATH"
    { virsh pool-define-as "$pool" dir --target "$DEFAULT_POOL_PATH" && virsh pool-autostart "$pool"; } \
      >>"$log" || fail "Cannot make the pool $pool" "$(last_words)"
  fi
  pool_path=$(virsh pool-dumpxml "$pool" | xpath /pool/target/path) ||
    fail "There is no pool \"$pool\"" "List the pools: virsh -c $uri pool-list --all"
  [[ $(virsh pool-info "$pool") =~ State:\ +running ]] || virsh pool-start --build "$pool" >>"$log" ||
    fail "Cannot start the pool $pool" "$(last_words)"
  type=$(virsh pool-dumpxml "$pool" | xpath /pool/@type)
  [[ $type =~ ^(dir|fs|netfs)$ ]] ||
    fail "The pool $pool is of the type $type, and a template is a file" "Choose one of the type dir, fs or netfs"
  [[ -d $pool_path && -w $pool_path ]] || fail "Cannot write to the pool $pool, in \"$pool_path\""
}

require_vm() {
  local info
  [[ $vm =~ ^[[:alnum:]][[:alnum:]._+-]*$ ]] ||
    fail "\"$vm\": not a name for DISTRO, which takes letters, digits and ._+-" "Try: virsh -c $uri domrename"
  info=$(virsh dominfo "$vm") || fail "$vm: no such VM" "$(last_words)" "Try: virsh -c $uri list --all"
  # virsh takes an id and a UUID, too.
  [[ $info =~ Name:\ +"$vm"$'\n' ]] || fail "$vm: not the name of a VM" "Try: virsh -c $uri domname $vm"
  [[ $info =~ Persistent:\ +yes ]] || fail "$vm: is transient: once it is shut down, there is no such VM" \
    "Define it, if you want to keep it: virsh -c $uri dumpxml $vm >$vm.xml && virsh -c $uri define $vm.xml"
  [[ ! $info =~ "Managed save:"\ +yes ]] ||
    fail "$vm: its memory is saved, and its disk not at rest" "Start it: virsh -c $uri start $vm"
}

refuse_taken_name() {
  local users try id='[0-9a-f]'
  id=$id$id$id$id$id$id$id$id$id$id # of a version of a template of libvirt-gci template add
  ! compgen -G "$pool_path/$vm.$id.template-info$OURS" >>"$log" ||
    fail "$vm: \"libvirt-gci template add\" has made a template of this name, which jobs would still get" \
      "Remove that one first: libvirt-gci template remove $vm"
  [[ -e $template || -L $template ]] || return 0
  $replace || fail "$vm: there is a template already: $template" \
    "Put a new version in its place with --replace"
  for try in {1..10}; do
    users=$(list_users) || fail "$vm: cannot tell what uses $template" "$(last_words)"
    [[ -n $users ]] || return 0
    ! grep -Evq "$OVERLAY$" <<<"$users" || break
    sleep 1 & wait $! # A job's machine may be about to start, or to go.
  done
  fail "$vm: its template is in use: $template" "$users" "They would see another disk beneath them:" \
    "remove them (libvirt-gci gc and cleanup remove machines), or give the new template another name"
}

# What stands on the template or is it, a line each, and what may, since it cannot be read. But not
# the machines of jobs that run: QEMU holds the files that it has opened, and a transient domain never
# opens them again. And not the warm images, from which no machine is resumed any more once the
# template is another.
list_users() {
  local images running user image chain
  images=$(list_images) || return
  running=$(list_running_overlays) || return
  while IFS=$'\t' read -r user image; do
    [[ -n $image && ($image != *"$OURS" || $image == *"$OVERLAY") ]] || continue
    ! grep -Fxq -- "$image" <<<"$running" || continue
    if chain=$(qemu-img info --force-share --backing-chain "$image" 2>>"$log"); then
      sed -n 's/^image: //p' <<<"$chain" |
        while read -r file; do [[ ! $file -ef $template ]] || printf '  %s %s\n' "$user" "$image"; done
    elif [[ $user == domain* || -e $image ]]; then # or it is gone by now
      printf '  %s, which cannot be read: %s\n' "$user" "$image"
    fi
  done <<<"$images"
}

# What uses an image, or is one, and is not the template; a tab; the image's path. libvirt does not
# know of each file in its pools.
list_images() {
  local names name image path
  names=$(virsh list --all --name) || return
  while read -r name; do
    [[ -z $name ]] || list_disks "$name" |
      while read -r image; do printf "domain %s, by its disk\t%s\n" "$name" "$image"; done
  done <<<"$names"
  names=$(virsh pool-list --name) || return
  while read -r name; do
    path=$(virsh pool-dumpxml "$name" | xpath /pool/target/path) && [[ $path == /* && -d $path ]] || continue
    find "$path/" -maxdepth 1 ! -type d ! -name '.*' ! -samefile "$template" -printf 'volume\t%p\n'
  done <<<"$names" || true
}

# The paths of a domain's disks; of a volume that cannot be found, its name.
list_disks() { # domain
  local kind device target source
  virsh domblklist --details "$1" | while read -r kind device target source; do
    [[ $device == disk || $device == lun ]] || continue
    [[ $kind != volume ]] || source=$(volume_path "$1" "$target" || printf '%s' "$source")
    [[ $source == - ]] || printf '%s\n' "$source"
  done || true
}

volume_path() { # domain, target
  local of="/domain/devices/disk[target/@dev='$2']/source" xml
  xml=$(virsh dumpxml "$1") &&
    virsh vol-path --pool "$(xpath "$of/@pool" <<<"$xml")" "$(xpath "$of/@volume" <<<"$xml")"
}

list_running_overlays() {
  local names name
  names=$(virsh list --transient --name) || return
  while read -r name; do
    ! virsh metadata "$name" "$MACHINES" >>"$log" || list_disks "$name" | grep -F "/$name$OVERLAY" || true
  done <<<"$names"
}

find_boot_disk() {
  local xml volume boot disks="/domain/devices/disk[@device='disk']"
  boot="(${disks}[boot and not(boot/@order > $disks/boot/@order)] | ${disks}[not($disks/boot)])[1]"
  xml=$(virsh dumpxml "$vm") || fail "$vm: cannot be read" "$(last_words)"
  disk_format=$(xpath "$boot/driver/@type" <<<"$xml")
  disk_format=${disk_format:-raw} # As libvirt has it. Never probe: a guest can write any header.
  disk=$(xpath "$boot/source/@file | $boot/source/@dev" <<<"$xml")
  volume=$(xpath "$boot/source/@volume" <<<"$xml")
  [[ -z $volume ]] || disk=$(virsh vol-path --pool "$(xpath "$boot/source/@pool" <<<"$xml")" "$volume") ||
    fail "$vm: has lost its disk, the volume $volume" "$(last_words)"
  [[ -n $disk ]] || fail "$vm: has no disk that is a file, a block device or a volume"
  (($(xpath "count($disks)" <<<"$xml") == 1)) || progress "$vm: only $disk of its disks is used"
  (($(xpath "count(/domain/os[@firmware='efi' or loader/@type='pflash'])" <<<"$xml") == 0)) ||
    progress "$vm: boots by UEFI, so its template needs the setting \"firmware: efi\", and a boot loader \
at EFI/BOOT/BOOTX64.EFI (grub-install --removable): a machine has none of the VM's boot entries"
}

refuse_full_pool() {
  local needed free
  needed=$(qemu-img measure --force-share -f "$disk_format" -O qcow2 "$disk" 2>>"$log" |
    awk '/^required size/ { print int($3 / 1048576) + 64 }') || # 64 MiB for what sysprep adds
    fail "$vm: cannot read its disk $disk" "$(last_words)"
  free=$(($(df --output=avail --block-size=1M "$pool_path" | tail -n 1)))
  ((free >= needed)) || fail "$vm: its template may need $needed MiB, and $pool_path has $free MiB left"
}

shut_down() {
  local active try=0 end=$((SECONDS + timeout_seconds))
  while
    active=$(virsh list --name) || fail "$vm: lost the connection to $uri" "$(last_words)"
    grep -Fxq -- "$vm" <<<"$active"
  do
    ((try > 0)) || progress "$vm: shut down, which may take $timeout_seconds s"
    ((SECONDS < end)) || fail "$vm: still $(virsh domstate "$vm") $timeout_seconds s after virsh shutdown" \
      "Shut it down from inside, or allow more time with --timeout"
    # Again and again, because a guest that is still booting misses the request.
    ((try++ % 15 != 0)) || virsh shutdown "$vm" >>"$log" || true
    sleep 1 & wait $!
  done
  ((try == 0)) || progress "$vm: is off, and stays off"
}

# /dev/kvm may exist and yet run no guest, as on a host that is a VM itself.
# libguestfs does without KVM of its own accord only if there is no /dev/kvm.
choose_accelerator() {
  export LIBGUESTFS_BACKEND=${LIBGUESTFS_BACKEND:-direct}
  [[ -e /dev/kvm && -z ${LIBGUESTFS_BACKEND_SETTINGS:-} ]] || return 0
  run timeout --foreground 60 virt-filesystems --format=raw -a /dev/null && return
  progress "$vm: libguestfs does not start with KVM: trying without, which is slower"
  export LIBGUESTFS_BACKEND_SETTINGS=force_tcg
}

make_template() {
  local begun=$EPOCHREALTIME
  trap 'exit 143' TERM
  template=$pool_path/$vm.qcow2
  require_vm
  refuse_taken_name
  find_boot_disk
  refuse_full_pool
  shut_down
  install -m 0600 /dev/null "$copy"
  run_step "copy $disk" qemu-img convert -f "$disk_format" -O qcow2 "$disk" "$copy"
  choose_accelerator
  # QEMU, and so libguestfs, halts for ever when the host's disk is full.
  local limit=(timeout --foreground --verbose 1h)
  # virt-sysprep empties the machine-id and then, customizing, makes a new one. The
  # machines of a template would share it, and their DHCP lease: empty it again.
  run_step "remove what only one machine may have" "${limit[@]}" virt-sysprep --format qcow2 \
    -a "$copy" --no-network --operations defaults,-ssh-userdir --write /etc/machine-id: \
    --mkdir "$UNITS/multi-user.target.wants" --write "$UNITS/$HOST_KEYS:$HOST_KEYS_UNIT" \
    --link "../$HOST_KEYS:$UNITS/multi-user.target.wants/$HOST_KEYS"
  run_step "free unused space" "${limit[@]}" virt-sparsify --in-place --format qcow2 "$copy"
  # Nobody may write to it but by mistake, and QEMU's user then cannot.
  chmod 0400 "$copy"
  # To doctor, what was written later than a machine's disk was made harms that machine, and this
  # one's will be made until the template is in its place.
  touch --date="@$begun" "$copy"
  sync "$copy"
  if $replace; then
    refuse_taken_name # Again: somebody may use it since.
    trap '' TERM
    mv -fT -- "$copy" "$template"
  else
    trap '' TERM
    ln -T -- "$copy" "$template" || fail "$vm: there is a template already: $template"
  fi
}

finish() {
  local result=FAILED
  ! wait "$job" || result=OK
  job=
  rm -f -- "$copy"
  # libvirt refuses to look while it makes another volume in the pool.
  virsh pool-refresh "$pool" >>"$log" || { sleep 5 && virsh pool-refresh "$pool" >>"$log"; } ||
    { result=FAILED && progress "$vm: libvirt has not seen it: virsh -c $uri pool-refresh $pool"; }
  [[ $result == OK ]] || failed=1
  progress "[$result] $vm"
}

stop() {
  trap '' HUP INT TERM
  [[ -n $job ]] || return 0
  printf '%s: interrupted\n' "$vm" >>"$log"
  kill -- "-$job" 2>/dev/null || true
  finish
}

parse_arguments "$@"
check_host
require_pool
readonly copy=$pool_path/.make_base_image.$$ # No DISTRO starts with a dot.
job='' failed=0
trap stop EXIT
trap 'exit 130' INT && trap 'exit 143' HUP TERM
for vm in "${vms[@]}"; do
  set -m # The job becomes a process group, which one signal ends as a whole.
  make_template &
  job=$!
  set +m
  finish
done
((failed == 0))
