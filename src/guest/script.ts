// SPDX-License-Identifier: GPL-2.0-or-later
import { SystemFailure } from "../errors.ts";
import type { CommandEnd, Sink } from "./command_streams.ts";
import { OutputEnd } from "./output_end.ts";
import type { SshConnection } from "./ssh_connection.ts";
import { quoted } from "../quoted.ts";
import { randomHex } from "../random.ts";
import { within } from "../wait.ts";

/** The guest has no space left for the script's file. */
export class GuestFull extends SystemFailure {
  override readonly name = "SystemFailure";
}

/** The guest did not answer when a script of it was cancelled, for the reason that is the cause. */
export class GuestSilent extends SystemFailure {
  override readonly name = "SystemFailure";

  constructor(reason: unknown) {
    super({ what: "The guest does not answer", cause: reason, fault: "cancelled" });
  }
}

/** A script to run in a guest, and where its output goes. */
export interface Script {
  readonly text: Uint8Array;
  readonly shell: "bash" | "sh";
  readonly stdout: Sink;
  readonly stderr: Sink;
}

/**
 * Runs a script in the guest and gives its exit status. The script travels on the connection's
 * standard input into a file of its own (0600), which is removed after it; its own standard input is
 * empty. It does not wait for processes that it leaves behind.
 *
 * When the signal aborts, or a sink fails, ends all processes of the script, leaves the guest as it is,
 * and throws the signal's reason, or what the sink threw; for the signal, {@linkcode GuestSilent} if the
 * guest does not answer. Throws SystemFailure if there is no exit status: a lost guest is no success. It
 * is a {@linkcode GuestFull} if the guest has no space for the file.
 */
export async function runScript(
  ssh: SshConnection,
  { text, shell, stdout, stderr }: Script,
  signal: AbortSignal,
): Promise<number> {
  signal.throwIfAborted();
  const token = randomHex(16);
  const out = new OutputEnd(token, stdout);
  const err = new OutputEnd(token, stderr);
  const command = wrapper(shell, token, text.length);
  const run = ssh.run(command, { input: text, stdout: out.push, stderr: err.push });
  const { promise: aborted, resolve: abort } = Promise.withResolvers<null>();
  const onAbort = (): void => abort(null);
  signal.addEventListener("abort", onAbort);
  try {
    const end = await Promise.race([run, aborted]).catch(async (error) => {
      await endProcesses(ssh, token);
      throw error;
    });
    if (end === null || signal.aborted) {
      run.catch(() => {}); // its end means nothing any more
      throw await endProcesses(ssh, token) ? signal.reason : new GuestSilent(signal.reason);
    }
    if (end.status !== null && out.seen && err.seen) return end.status;
    throw noStatus(end, shell, ssh.lost);
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
}

/**
 * Directories for the script's file, which the guest's shell expands. Memory comes first: a job is more
 * likely to fill the disk.
 */
const DIRECTORIES = "/dev/shm $XDG_RUNTIME_DIR /run /tmp";

/** The exit statuses of the command line if the script did not start, from sysexits.h. */
const NO_SHELL = 69;
const NO_SPACE = 73;

/**
 * The command line that receives the script and runs it, fit for any login shell. The token is no
 * secret: it names the file, marks the script's processes, and ends its output.
 *
 * The input can be read only once, so blanks of the same size show first that a directory has the
 * space.
 */
function wrapper(shell: string, token: string, sizeBytes: number): string {
  const end = OutputEnd.printf(token);
  return `exec sh -c '` + [
    `for directory in ${DIRECTORIES}; do`,
    `file=$directory/${nameOf(token)};`,
    `(umask 077; set -C; printf %${sizeBytes}s >$file) 2>/dev/null && break; rm -f $file; file=;`,
    `done; status=${NO_SPACE};`,
    `[ -n "$file" ] && cat >$file &&`,
    `[ $(wc -c <$file) -eq ${sizeBytes} ] &&`, // or the connection broke in the middle
    `status=${NO_SHELL} &&`,
    `command -v ${shell} >/dev/null &&`, // or its absence would be the script's failure
    `{ ${TOKEN_VARIABLE}=${token} ${shell} $file </dev/null; status=$?; ${end}; ${end} >&2; };`,
    `rm -f $file; exit $status`,
  ].join(" ") + `'`;
}

function nameOf(token: string): string {
  return `.libvirt-gci-${token}`;
}

/** In the environment of all processes that a script starts, to find them again. */
const TOKEN_VARIABLE = "LIBVIRT_GCI_SCRIPT";

/** The time in which a guest must begin to end the processes, and the time to end them. */
const ANSWER_MS = 3000;
const END_MS = 30_000;
/** The longest time until a cancelled script has ended, or the guest counts as silent. */
export const MOST_CANCEL_MS = ANSWER_MS + END_MS + 2000;

/**
 * Ends the processes of the script. Resolves to whether the guest answered; if not, cleanup ends them.
 */
async function endProcesses(ssh: SshConnection, token: string): Promise<boolean> {
  const script = `token=${token}\n${END_PROCESSES}`;
  const input = new TextEncoder().encode(script); // no argument, by which it would find itself
  const { promise: answered, resolve } = Promise.withResolvers<boolean>();
  const answer = (): Promise<void> => Promise.resolve(resolve(true));
  const ignore = (): Promise<void> => Promise.resolve();
  const ended = ssh.run("exec sh", { input, stdout: answer, stderr: ignore }).catch(() => {});
  ended.then(() => resolve(false)); // it may have lost the connection
  const hasAnswered = await within(answered, ANSWER_MS) ?? false;
  if (hasAnswered) await within(ended, END_MS);
  return hasAnswered;
}

/**
 * Ends the processes that have the token in their environment or command line, and the descendants of
 * all that it ever found: sudo and env clear the environment, and a parent may be gone before its
 * child. TERM comes again every half second, for those that come late, then KILL. Two looks in a row
 * must find nothing, since the script may be starting just now. Linux's /proc is the only list of
 * processes that every guest has. The line feed says that the guest is at it.
 */
const END_PROCESSES = `
echo
found=" "
look() {
  found="$found$(grep -l "$token" /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null |
    cut -d/ -f3 | tr '\\n' ' ')"
  more=yes
  while [ -n "$more" ]; do
    more=
    for stat in /proc/[0-9]*/stat; do
      { read -r line <"$stat"; } 2>/dev/null || continue
      pid=\${stat#/proc/} pid=\${pid%/stat}
      set -- \${line##*)}
      case $found in
        *" $pid "*) ;;
        *" $2 "*) found="$found$pid " more=yes ;;
      esac
    done
  done
}
idle=
for signal in TERM TERM TERM TERM TERM KILL KILL KILL KILL KILL; do
  look
  living=" "
  for pid in $found; do
    { read -r line </proc/$pid/stat; } 2>/dev/null || continue
    set -- \${line##*)}
    [ "$1" != Z ] || continue
    kill -$signal "$pid" 2>/dev/null || sudo -n kill -$signal "$pid" 2>/dev/null || continue
    case $living in *" $pid "*) ;; *) living="$living$pid " ;; esac
  done
  found=$living
  [ "$living" = " " ] && idle=$idle. || idle=
  [ "$idle" != .. ] || break
  sleep 0.5
done
for directory in ${DIRECTORIES}; do
  rm -f $directory/${nameOf("$token")}
done
`;

function noStatus(
  { status, signal }: CommandEnd,
  shell: string,
  lost: Error | null,
): SystemFailure {
  if (status === NO_SPACE) {
    return new GuestFull({
      fault: "template",
      what: "The guest has no space left for the script in memory (/dev/shm) or in /tmp",
      advice: "Free space in the template, and allow its user to write to /tmp",
    });
  }
  if (status === NO_SHELL) {
    return new SystemFailure({
      fault: "template",
      what: `The guest has no shell ${quoted(shell)}`,
      advice: 'Install it in the template, or set "guest.shell" to the other shell',
    });
  }
  if (status !== null) {
    return new SystemFailure({
      fault: "template",
      what: `The guest could not start the script: its shell ended with the status ${status}`,
      advice: "Log in to a machine of the template as its user, and check that sh runs there",
    });
  }
  if (signal === null) return lostGuest(lost);
  return lostGuest(lost, `The guest ended the script's session with the signal ${quoted(signal)}`);
}

/** The failure of a script whose guest, or the connection to it, was lost. */
export function lostGuest(
  cause: Error | null,
  what = "The connection to the guest broke while the script ran",
): SystemFailure {
  return new SystemFailure({
    fault: "lost",
    what,
    cause: cause ?? undefined,
    advice: "Check the end of its serial console for a crash, a shutdown or a lack of memory " +
      '("memory_mib"), and the script for a command that ends its own session',
  });
}
