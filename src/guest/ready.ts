// SPDX-License-Identifier: GPL-2.0-or-later
import { SystemFailure } from "../errors.ts";
import { type Login, type OpenOptions, SshConnection } from "./ssh_connection.ts";
import { whyUnreached } from "./unreached.ts";
import { type Goal, type Limits, NotYet, waitFor, within } from "../wait.ts";

const ATTEMPT_MS = 15_000;
/**
 * A packet to a guest that has just asked for its address may be lost, and TCP repeats it only after a
 * second (RFC 6298), so a new connection is faster. Later, the machine's filter may drop the answer: it
 * lets none pass to ports of the host below 32768, which the kernel may choose.
 */
const FIRST_CONNECT_MS = 60;
/** The growth of the time for each attempt: attempts are work for a guest that is only slow. */
const CONNECT_GROWTH = 4;

/** libvirt does not answer while it sets the machine's filter, and SSH is tried meanwhile. */
const ANSWER_MS = 20;

/** One attempt to log in, or why it did not work yet. */
export type Attempt<T> = (login: Login, options: AttemptOptions) => Promise<T | NotYet>;

/** How to make it. */
export interface AttemptOptions extends Pick<OpenOptions, "signal" | "keepaliveMs"> {
  readonly connectMs: number;
}

/** Waits until the guest runs a command, and gives its host key. Throws if it refuses our key. */
export async function waitForSsh(
  login: Login,
  refuseEnded: () => Promise<void>,
  limits: Limits,
  attempt: Attempt<string> = tryOnce,
): Promise<string> {
  const nextConnectMs = growingTimes();
  const ended: { asked: Promise<void> | null } = { asked: null }; // stays, if it throws
  try {
    return await waitFor({
      ...goalOf(login),
      probe: async () => {
        const { signal } = limits;
        const hostKey = await attempt(login, { signal, connectMs: nextConnectMs() });
        if (!(hostKey instanceof NotYet)) return hostKey;
        ended.asked ??= refuseEnded().then(() => void (ended.asked = null));
        await within(ended.asked, ANSWER_MS, signal);
        return hostKey;
      },
    }, limits);
  } finally {
    await ended.asked?.catch(() => {}); // the caller may dispose of what it asks
  }
}

/**
 * Logs in to a guest that has let us in before. Its SSH server may be away for a moment: cloud-init
 * restarts it when it changes its settings. The caller disposes of the connection.
 */
export function openSsh(login: Login, limits: Limits): Promise<SshConnection> {
  return waitForLogin(login, limits, tryLogin);
}

/** As {@linkcode openSsh}, by such attempts. */
export function waitForLogin<T>(login: Login, limits: Limits, attempt: Attempt<T>): Promise<T> {
  const { signal } = limits;
  const nextConnectMs = growingTimes();
  const probe = () => attempt(login, { signal, connectMs: nextConnectMs() });
  return waitFor({ ...goalOf(login), probe }, limits);
}

/** How long each attempt to connect may take. */
function growingTimes(): () => number {
  let next = FIRST_CONNECT_MS;
  return () => {
    const now = next;
    next = Math.min(now * CONNECT_GROWTH, ATTEMPT_MS);
    return now;
  };
}

function goalOf({ address, port, channel }: Login): Omit<Goal<never>, "probe"> {
  const fault = "ssh_timeout";
  if (channel !== null) {
    return {
      fault,
      goal: "accept an SSH connection through its channel",
      awaited: "SSH",
      advice:
        "Install sshd and a qemu-guest-agent that allows guest-exec in the template: a machine " +
        "without a network needs both",
    };
  }
  return {
    fault,
    goal: `accept an SSH connection at ${address} port ${port}`,
    awaited: "SSH",
    advice:
      "Start an SSH server on that port in the template, and open the port in its firewall, " +
      'or set "ssh.port"',
  };
}

/** A guest may show the template's host key until it has taken the one that we give it. */
function orNotYetItsHostKey(error: unknown): NotYet {
  if (!(error instanceof SystemFailure) || error.fault !== "host_key") throw error;
  return new NotYet(error.message, {
    advice:
      'Set "ssh.login" to cloud-init, to systemd (252 or newer, with qemu_fw_cfg in the kernel) or to ' +
      "template, as the template needs: the guest did not install the keys of this machine",
    fault: "host_key",
  });
}

/** Logs in and runs a command that does nothing. Gives the guest's host key. */
async function tryOnce(login: Login, options: AttemptOptions): Promise<string | NotYet> {
  const ssh = await tryCommand(login, options);
  if (ssh instanceof NotYet) return ssh;
  ssh[Symbol.dispose]();
  return ssh.hostKey;
}

/** Logs in and runs a command that does nothing. The caller disposes of the connection. */
export async function tryCommand(
  login: Login,
  options: AttemptOptions,
): Promise<SshConnection | NotYet> {
  const ssh = await tryLogin(login, options).catch(orNotYetItsHostKey);
  if (ssh instanceof NotYet) return ssh;
  const status = await runNothing(ssh, { milliseconds: ATTEMPT_MS, signal: options.signal });
  if (status === 0) return ssh;
  ssh[Symbol.dispose]();
  return new NotYet(`an empty command ended with the status ${status ?? "unknown"}`);
}

/** The status of a command that does nothing; null if it is not known in time. */
export async function runNothing(
  ssh: SshConnection,
  { milliseconds, signal }: { readonly milliseconds: number; readonly signal: AbortSignal },
): Promise<number | null> {
  const ignore = (): Promise<void> => Promise.resolve();
  const nothing = { input: new Uint8Array(), stdout: ignore, stderr: ignore };
  const ran = ssh.run("exit 0", nothing).catch(() => null);
  return (await within(ran, milliseconds, signal))?.status ?? null;
}

/** Logs in. The caller disposes of the connection. */
export async function tryLogin(
  login: Login,
  attempt: AttemptOptions,
): Promise<SshConnection | NotYet> {
  const { signal } = attempt;
  try {
    const options = { ...attempt, timeoutMs: ATTEMPT_MS };
    if (login.channel === null) return await SshConnection.open(login, options);
    const { openChannel } = await import("./channel.ts"); // rarely needed
    const sock = await openChannel(login.channel, options);
    return sock instanceof NotYet ? sock : await SshConnection.open(login, { ...options, sock });
  } catch (error) {
    signal.throwIfAborted();
    if (error instanceof SystemFailure || !(error instanceof Error)) throw error;
    return await whyUnreached(error, login);
  }
}
