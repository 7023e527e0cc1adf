// SPDX-License-Identifier: GPL-2.0-or-later
import { SystemFailure } from "../errors.ts";
import { sleep } from "../wait.ts";
import { OutputEnd } from "./output_end.ts";
import type { CommandEnd, Sink, SshConnection } from "./ssh.ts";

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
 * empty. Processes that it leaves behind hold nobody up.
 *
 * When the signal aborts, ends all processes of the script, leaves the guest as it is, and throws
 * the signal's reason. Throws SystemFailure if there is no exit status: a lost guest is no success.
 */
export async function runScript(
  ssh: SshConnection,
  { text, shell, stdout, stderr }: Script,
  signal: AbortSignal,
): Promise<number> {
  signal.throwIfAborted();
  const token = crypto.getRandomValues(new Uint8Array(16)).toHex();
  const out = new OutputEnd(token, stdout);
  const err = new OutputEnd(token, stderr);
  const run = ssh.run(wrapper(shell, token), { input: text, stdout: out.push, stderr: err.push });
  const { promise: aborted, resolve: abort } = Promise.withResolvers<null>();
  const onAbort = (): void => abort(null);
  signal.addEventListener("abort", onAbort);
  try {
    const end = await Promise.race([run, aborted]);
    if (end === null || signal.aborted) {
      run.catch(() => {}); // its end means nothing any more
      await endProcesses(ssh, token);
      throw signal.reason;
    }
    if (end.status !== null && out.seen && err.seen) return end.status;
    throw noStatus(end, ssh.lost);
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
}

/**
 * The command line that receives the script and runs it, fit for any login shell. The token is no
 * secret: it names the file, marks the script's processes, and ends its output.
 */
function wrapper(shell: string, token: string): string {
  const file = `/tmp/.libvirt-gci-${token}`;
  const end = OutputEnd.printf(token);
  return `exec sh -c '` + [
    `(umask 077; set -C; exec cat >${file})`,
    `&& { ${TOKEN_VARIABLE}=${token} ${shell} ${file} </dev/null; status=$?; ${end}; ${end} >&2; }`,
    `|| status=$?; rm -f ${file}; exit "$status"`,
  ].join(" ") + `'`;
}

/** In the environment of all that a script starts: how its processes are found again. */
const TOKEN_VARIABLE = "LIBVIRT_GCI_SCRIPT";

const END_MS = 15_000;

/** Ends the processes of the script; a guest that does not answer is left to cleanup. */
async function endProcesses(ssh: SshConnection, token: string): Promise<void> {
  const ignore = (): Promise<void> => Promise.resolve();
  const ended = ssh.run(`exec sh -s ${TOKEN_VARIABLE}=${token}`, {
    input: new TextEncoder().encode(END_PROCESSES),
    stdout: ignore,
    stderr: ignore,
  });
  await Promise.race([ended.catch(() => {}), sleep(END_MS, new AbortController().signal)]);
}

/**
 * Ends the processes whose environment has the word $1, and their descendants, which may have
 * another environment (sudo clears it). First TERM, again every half second for those that come late,
 * then KILL. Linux's /proc is the only list of processes that every guest has.
 */
const END_PROCESSES = `
descendants() {
  found=" $(grep -l "$1" /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3 | tr '\\n' ' ')"
  more=yes
  while [ -n "$more" ]; do
    more=
    for stat in /proc/[0-9]*/stat; do
      read -r line 2>/dev/null <"$stat" || continue
      pid=\${stat#/proc/} pid=\${pid%/stat}
      set -- "$1" \${line##*)}
      case $2$found in
        Z* | *" $pid "*) ;;
        *" $3 "*) found="$found$pid " more=yes ;;
      esac
    done
  done
}
for signal in TERM TERM TERM TERM TERM KILL KILL KILL KILL KILL; do
  descendants "$1"
  living=
  for pid in $found; do
    kill -$signal "$pid" 2>/dev/null || sudo -n kill -$signal "$pid" 2>/dev/null || continue
    living=yes
  done
  [ -n "$living" ] || exit 0
  sleep 0.5
done
`;

function noStatus({ status, signal }: CommandEnd, lost: Error | null): SystemFailure {
  if (status !== null) {
    return new SystemFailure({
      what:
        `The guest could not run the script: it ended with the status ${status} before it began`,
      advice: "The guest needs sh, cat, the configured shell and space in /tmp",
    });
  }
  return new SystemFailure({
    what: signal !== null
      ? `The guest ended the script's session with the signal ${signal}`
      : "The connection to the guest broke while the script ran",
    cause: lost ?? undefined,
    advice:
      "The guest crashed, powered off, ran out of memory, or the script ended its own session",
  });
}
