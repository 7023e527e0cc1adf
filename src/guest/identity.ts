// SPDX-License-Identifier: GPL-2.0-or-later
import { type Agent, runByAgent, startByAgent, type UntilEnd } from "./agent.ts";
import type { KeyPair } from "./key.ts";
import { randomHex } from "../random.ts";
import { quote } from "../shell.ts";

/**
 * The identity that makes a resumed guest another machine. The agent sets it before anyone can reach the
 * guest.
 */
export interface Identity {
  readonly hostName: string;
  readonly hostKey: KeyPair;
  /**
   * The key that the user accepts, as a line of authorized_keys; null leaves that to the template.
   */
  readonly publicKey: string | null;
  readonly user: string;
}

const TIMEOUT_SECONDS = 30;
/** For a guest that was ready before. */
const READY_SECONDS = 8;

/**
 * Gives the guest its own random numbers, machine-id, host name, time, SSH host key and authorized key.
 * Its processes go on only after that: two guests that ask for an address before get the same lease.
 * Resolves once the guest is at work on it. Throws SystemFailure.
 */
export async function takeIdentity(
  agent: Agent,
  { hostName, hostKey, publicKey, user }: Identity,
): Promise<UntilEnd> {
  const values = {
    entropy: randomHex(64),
    id: randomHex(16),
    name: hostName,
    now: String(Math.round(Date.now() / 1000)),
    private_key: hostKey.privateKey,
    public_key: hostKey.publicKey,
    user,
    authorized: publicKey ?? "",
  };
  const purpose = { what: "change its identity", timeoutSeconds: TIMEOUT_SECONDS };
  return await startByAgent(agent, assignments(values) + BECOME_ANOTHER, purpose);
}

/** Gives a guest that has its own identity another host name and authorized key. */
export async function authorizeUser(
  agent: Agent,
  { hostName, publicKey, user }: Omit<Identity, "hostKey">,
  signal: AbortSignal,
): Promise<void> {
  const values = { name: hostName, user, authorized: publicKey ?? "" };
  const purpose = { what: "accept the key of its user", timeoutSeconds: READY_SECONDS };
  await runByAgent(agent, assignments(values) + LET_IN, purpose, signal);
}

/** Resolves when the guest has booted as far as a job needs it. Throws SystemFailure until then. */
export async function requireBooted(agent: Agent, port: number): Promise<void> {
  const purpose = { what: "finish its boot", timeoutSeconds: TIMEOUT_SECONDS };
  await runByAgent(agent, assignments({ port: String(port) }) + HAS_BOOTED, purpose);
}

/** Makes the guest greet once by SSH, so that the programs for that are in its RAM. */
export async function exerciseSsh(agent: Agent, port: number): Promise<void> {
  const purpose = { what: "start its SSH server", timeoutSeconds: TIMEOUT_SECONDS };
  await runByAgent(agent, assignments({ port: String(port) }) + REHEARSE, purpose);
}

/** Stops the guest's processes until {@linkcode takeIdentity} has given it its own random numbers. */
export async function stopProcesses(agent: Agent): Promise<void> {
  const purpose = { what: "stop its processes", timeoutSeconds: TIMEOUT_SECONDS };
  await runByAgent(agent, STAND_STILL, purpose);
}

function assignments(values: Readonly<Record<string, string>>): string {
  return Object.entries(values).map(([name, value]) => `${name}=${quote(value)}\n`).join("");
}

const START = `
set -eu
umask 022
PATH=\${PATH:-/usr/bin:/bin}:/usr/local/sbin:/usr/sbin:/sbin
fail() { echo "$1" >&2; exit 1; }
`;

const SET_NAME = `
read -r old </proc/sys/kernel/hostname
printf %s "$name" >/proc/sys/kernel/hostname
printf '%s\\n' "$name" >/etc/hostname
case $old in
"" | localhost | *[!A-Za-z0-9-]*) ;;
*) [ ! -e /etc/hosts ] || sed -i "s/\\b$old\\b/$name/g" /etc/hosts ;;
esac`;

const AUTHORIZE = `
if [ -n "$authorized" ]; then
  home=$(eval echo "~$user") # which the settings let be a plain name only
  [ -d "$home" ] || fail "The template has no user $user with a home"
  mkdir -p "$home/.ssh"
  printf '%s\\n' "$authorized" >"$home/.ssh/authorized_keys"
  chmod 700 "$home/.ssh"
  chmod 600 "$home/.ssh/authorized_keys"
  chown "$user:" "$home/.ssh" "$home/.ssh/authorized_keys"
fi`;

const LET_IN = `${START}${SET_NAME}${AUTHORIZE}
`;

/**
 * RNDADDENTROPY and RNDRESEEDCRNG (random(4)) make the kernel use the new random numbers at once. Bytes
 * that are only written to /dev/urandom take effect up to a minute later, and never before Linux 5.18.
 * With vmgenid, the kernel needs no help. The processes that {@linkcode STAND_STILL} stopped go on last,
 * when both the DHCP client and the SSH server are the new machine's. A socket-activated server reads
 * its keys later.
 */
const BECOME_ANOTHER = `${START}
if command -v perl >/dev/null; then
  printf %s "$entropy" | perl -e '
    my $bytes = <STDIN>;
    my $credited = pack("iia*", 4 * length $bytes, length $bytes, $bytes);
    open(my $random, "+<", "/dev/urandom") or die "/dev/urandom: $!";
    ioctl($random, 0x40085203, $credited) or die "RNDADDENTROPY: $!";
    ioctl($random, 0x5207, 0) or die "RNDRESEEDCRNG: $!";'
elif command -v python3 >/dev/null; then
  printf %s "$entropy" | python3 -S -c '
import fcntl, struct, sys
data = sys.stdin.buffer.read()
random = open("/dev/urandom", "wb", buffering=0)
fcntl.ioctl(random, 0x40085203, struct.pack("ii", 4 * len(data), len(data)) + data)
fcntl.ioctl(random, 0x5207)'
else
  set -- /sys/bus/*/drivers/vmgenid/*:*
  [ -e "$1" ] || fail "The guest has neither vmgenid in its kernel nor perl or python3"
  printf %s "$entropy" >/dev/urandom
fi
date -u -s "@$now" >/dev/null
for file in /etc/machine-id /var/lib/dbus/machine-id; do
  [ ! -e "$file" ] || [ -L "$file" ] || printf '%s\\n' "$id" >"$file"
done
${SET_NAME}
rm -f /etc/ssh/ssh_host_*_key /etc/ssh/ssh_host_*_key.pub
(umask 077 && printf '%s\\n' "$private_key" >/etc/ssh/ssh_host_ed25519_key)
printf '%s\\n' "$public_key" >/etc/ssh/ssh_host_ed25519_key.pub
${AUTHORIZE}
for file in /run/sshd.pid /var/run/sshd.pid; do
  if [ -s "$file" ] && read -r pid <"$file" && kill -HUP "$pid" 2>/dev/null; then break; fi
done
kill -CONT -1
`;

/** Process 1 cannot be stopped, and the agent is needed to go on. */
const STAND_STILL = `${START}
sync
for round in 1 2 3; do
  for process in /proc/[0-9]*; do
    pid=\${process#/proc/}
    case $pid in 1 | $$ | $PPID) ;; *) kill -STOP "$pid" 2>/dev/null || : ;; esac
  done
done
`;

const HAS_BOOTED = `${START}
if [ -e /run/cloud-init/enabled ] || [ -e /run/cloud-init/status.json ]; then
  [ -e /run/cloud-init/result.json ] || fail "cloud-init has not finished yet"
fi
if [ -d /run/systemd/system ]; then
  state=$(systemctl is-system-running) || :
  case $state in running | degraded) ;; *) fail "systemd is still $state" ;; esac
fi
hex=$(printf %04X "$port")
cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | grep -q ":$hex 0*:0000 0A " ||
  fail "no SSH server listens on port $port"
`;

/** An SSH server that takes other keys does not listen for a moment. */
const REHEARSE = `${START}
command -v bash >/dev/null || exit 0
timeout 20 bash -c '
  until : 2>/dev/null <>"/dev/tcp/127.0.0.1/$0"; do sleep 0.1; done
  exec 3<>"/dev/tcp/127.0.0.1/$0" && read -r line <&3' "$port"
`;
