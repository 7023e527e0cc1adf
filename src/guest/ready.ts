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

/** Waits until the guest runs a command, and gives its host key. Throws if it refuses our key. */
export async function waitForSsh(
  login: Login,
  refuseEnded: () => Promise<void>,
  limits: Limits,
): Promise<string> {
  const nextConnectMs = growingTimes();
  const ended: { asked: Promise<void> | null } = { asked: null }; // stays, if it throws
  try {
    return await waitFor({
      ...goalOf(login),
      probe: async () => {
        const hostKey = await tryCommand(login, {
          signal: limits.signal,
          connectMs: nextConnectMs(),
        });
        if (!(hostKey instanceof NotYet)) return hostKey;
        ended.asked ??= refuseEnded().then(() => void (ended.asked = null));
        await within(ended.asked, ANSWER_MS, limits.signal);
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
export function openSsh(
  login: Login,
  limits: Limits,
  options: Pick<OpenOptions, "keepaliveMs"> = {},
): Promise<SshConnection> {
  const { signal } = limits;
  const nextConnectMs = growingTimes();
  const probe = () => tryLogin(login, { ...options, signal, connectMs: nextConnectMs() });
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

type Attempt = Omit<OpenOptions, "timeoutMs" | "sock">;

/** Logs in and runs a command that does nothing. Gives the guest's host key. */
async function tryCommand(login: Login, attempt: Attempt): Promise<string | NotYet> {
  const ssh = await tryLogin(login, attempt).catch(orNotYetItsHostKey);
  if (ssh instanceof NotYet) return ssh;
  using _ = ssh;
  const ignore = (): Promise<void> => Promise.resolve();
  const nothing = { input: new Uint8Array(), stdout: ignore, stderr: ignore };
  const ran = ssh.run("exit 0", nothing).catch(() => null);
  const status = (await within(ran, ATTEMPT_MS, attempt.signal))?.status ?? null;
  if (status === 0) return ssh.hostKey;
  return new NotYet(`an empty command ended with the status ${status ?? "unknown"}`);
}

async function tryLogin(login: Login, attempt: Attempt): Promise<SshConnection | NotYet> {
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
