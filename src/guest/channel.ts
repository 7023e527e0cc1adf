// SPDX-License-Identifier: GPL-2.0-or-later
import { Buffer } from "node:buffer";
import { createConnection, type Socket } from "node:net";
import { dirname } from "node:path";
import type { Duplex } from "node:stream";
import { SystemFailure } from "../errors.ts";
import { type Agent, stderrOf } from "./agent.ts";
import { randomHex } from "../random.ts";
import { NotYet, within } from "../wait.ts";

/**
 * A virtio-serial channel of a machine, and the agent that starts an SSH server at the guest's end.
 */
export interface Channel {
  readonly agent: Agent;
  /** The name of the channel's target in the domain XML, by which the guest finds its port. */
  readonly name: string;
  /** The UNIX socket that is the host's end: the running domain's XML has the path. */
  readonly socketPath: string;
}

const AGENT_SECONDS = 4; // a call may take twice that, since libvirt greets the agent first
const PAUSE_MS = 250;

/**
 * Starts an SSH server for one connection in the guest. Gives a paused socket to it, or why there is
 * none yet. Throws SystemFailure if waiting does not help, and the signal's reason.
 */
export async function openChannel(
  { agent, name, socketPath }: Channel,
  { timeoutMs, signal }: { readonly timeoutMs: number; readonly signal: AbortSignal },
): Promise<Duplex | NotYet> {
  signal.throwIfAborted();
  const socket = await connect(socketPath);
  if (socket instanceof NotYet) return socket;
  let greeted = false;
  try {
    const end = performance.now() + timeoutMs;
    const token = randomHex(16);
    const greeting = greetingAfter(token, socket);
    const pid = await startServer(agent, name, token);
    if (pid instanceof NotYet) return pid;
    while (performance.now() < end) {
      greeted = await within(greeting, PAUSE_MS, signal) !== null;
      signal.throwIfAborted();
      if (greeted) return socket;
      const ended = await serverEnd(agent, pid);
      if (ended !== null) return ended;
    }
    return new NotYet("no SSH server answers through the channel; another program may use it");
  } finally {
    if (!greeted) socket.destroy();
  }
}

/** Connects to the host's end. QEMU lets a second connection wait silently, so a lock decides. */
async function connect(path: string): Promise<Socket | NotYet> {
  let lock: Deno.FsFile | null = null;
  try {
    lock = await Deno.open(dirname(path));
    if (!await lock.tryLock(true)) {
      lock.close();
      return new NotYet("another connection uses the machine's only channel");
    }
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const socket = createConnection({ path }, resolve);
    socket.on("error", reject); // later errors are the reader's
    await promise;
    socket.on("close", () => lock?.close());
    return socket;
  } catch (cause) {
    lock?.close();
    if (cause instanceof Error && "code" in cause && cause.code === "EAGAIN") {
      return new NotYet("QEMU has not accepted the last connection to the channel yet");
    }
    throw new SystemFailure({
      what: `Cannot open the channel to the machine at "${path}"`,
      cause,
      advice:
        "Run libvirt-gci as root on the machine's host: only root can reach a machine without a " +
        "network",
    });
  }
}

/** Resolves when the SSH server greets. Bytes before the token belong to an earlier connection. */
function greetingAfter(token: string, socket: Socket): Promise<true> {
  const { promise, resolve } = Promise.withResolvers<true>();
  let seen = Buffer.alloc(0);
  const findStart = (bytes: Buffer): void => {
    seen = Buffer.concat([seen, bytes]);
    const start = seen.indexOf(`${token}\nSSH-`);
    if (start < 0) {
      seen = seen.subarray(-token.length - 4);
      return;
    }
    socket.off("data", findStart).pause();
    socket.unshift(seen.subarray(start + token.length + 1));
    seen = Buffer.alloc(0);
    socket.on("data", findEnd); // beside the next reader, which resumes
    resolve(true);
  };
  const findEnd = (bytes: Buffer): void => {
    seen = Buffer.concat([seen, bytes]).subarray(-token.length - 1);
    if (seen.toString("latin1") !== `${token}\n`) return;
    socket.destroy(new Error("the guest's SSH server ended"));
  };
  socket.on("data", findStart);
  return promise;
}

/** Starts {@linkcode SERVER} through the agent, and gives its PID. */
async function startServer(agent: Agent, name: string, token: string): Promise<number | NotYet> {
  const answer = await ask(agent, "guest-exec", {
    path: "/bin/sh",
    arg: ["-s", name, token],
    "input-data": btoa(SERVER), // the agent logs the arguments
    "capture-output": true,
  });
  if (answer instanceof NotYet) return answer;
  return Number(answer["pid"]);
}

async function serverEnd(agent: Agent, pid: number): Promise<NotYet | null> {
  const answer = await ask(agent, "guest-exec-status", { pid });
  if (answer instanceof NotYet) return answer;
  if (answer["exited"] !== true) return null;
  const words = stderrOf(answer);
  if (answer["exitcode"] !== LACKING) return new NotYet(words || "the guest's SSH server ended");
  throw new SystemFailure({
    fault: "template",
    what: `The guest cannot serve SSH through a channel: ${words}`,
    advice: "Install sshd in the template, and a kernel with virtio_console: a machine without a " +
      "network needs both",
  });
}

async function ask(
  agent: Agent,
  execute: string,
  args: object,
): Promise<Readonly<Record<string, unknown>> | NotYet> {
  try {
    return { ...await agent({ execute, arguments: args }, AGENT_SECONDS) ?? {} };
  } catch (cause) {
    const words = cause instanceof Error ? cause.message : String(cause);
    if (!/has been disabled|has not been found|failed to execute/i.test(words)) {
      return new NotYet(words);
    }
    throw new SystemFailure({
      fault: "template",
      what: "The guest agent is not allowed to start an SSH server",
      cause,
      advice:
        "Allow guest-exec and guest-exec-status in the template's qemu-guest-agent, which a " +
        "machine without a network needs: Fedora and RHEL forbid them in " +
        "/etc/sysconfig/qemu-ga (FILTER_RPC_ARGS, BLOCK_RPCS or BLACKLIST_RPC)",
    });
  }
}

/** The exit status of {@linkcode SERVER} in a guest that lacks what it needs. */
const LACKING = 69; // EX_UNAVAILABLE of sysexits.h

/**
 * Serves one SSH connection on the port of this name, between two lines with the token. Statuses other
 * than LACKING are temporary.
 *
 * Until cloud-init is done, keys may still be the template's. Only one process can open a port: an older
 * server may have missed the end of its connection and is killed; a younger one serves a later
 * connection and wins. In a scope of its own, the job outlives the agent's service, which systemd stops
 * when a process in it runs out of memory. Only sshd's log says why it does not start: the check repeats
 * that.
 */
export const SERVER = `
name=$1 token=$2 PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
lack() { echo "$1" >&2; exit ${LACKING}; }
if [ -e /run/cloud-init/enabled ] || [ -e /run/cloud-init/status.json ]; then
  sed -n '/"init": {/,/}/p' /run/cloud-init/status.json | grep -q '"finished": [0-9]' ||
    { echo "cloud-init has not finished yet" >&2; exit 1; }
fi
port=
for file in /sys/class/virtio-ports/*/name; do
  { read -r found <"$file"; } 2>/dev/null || continue
  [ "$found" != "$name" ] || port=\${file%/name} port=/dev/\${port##*/}
done
[ -c "$port" ] || lack "no virtio port $name"
sshd=$(command -v sshd) || lack "no sshd"
born() { { read -r stat <"/proc/$1/stat"; } 2>/dev/null && set -- \${stat##*)} && echo "\${20}"; }
mine=$(born $$)
mkdir -p /run/sshd
for signal in 0 TERM TERM TERM KILL KILL; do
  ! (: <>"$port") 2>/dev/null || break
  ls -l /proc/[0-9]*/fd 2>/dev/null | while read -r line; do
    case $line in
      /proc/*:) pid=\${line#/proc/} pid=\${pid%/fd:} ;;
      *" -> $port")
        theirs=$(born "$pid") || continue
        [ "$theirs" -lt "$mine" ] || exit 3
        kill -$signal "$pid" 2>/dev/null ;;
    esac
  done
  [ $? -ne 3 ] || { echo "a later connection uses the port" >&2; exit 1; }
  sleep 0.2
done
exec 3<>"$port"
scope=
[ ! -d /run/systemd/system ] || ! command -v systemd-run >/dev/null ||
  scope="systemd-run --quiet --scope --collect"
echo "$token" >&3
$scope "$sshd" -i <&3 >&3 3>&-
for try in 1 2 3; do
  ! echo "$token" >&3 || break
  sleep 0.2
done 2>/dev/null
exec 3>&-
"$sshd" -t >&2
`;
