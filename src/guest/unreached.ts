// SPDX-License-Identifier: GPL-2.0-or-later
import type { Login } from "./ssh_connection.ts";
import { NotYet, within } from "../wait.ts";

const REFUSED = "ECONNREFUSED";
/** How long a port may take to refuse a connection: a machine of the host's answers sooner. */
const REFUSAL_MS = 200;

/** The behaviour of a machine that cannot be logged in to, and what to do about it. */
interface Behaviour {
  readonly does: string;
  readonly advice: string;
}

/** Says why a machine could not be logged in to, by the error of the attempt. */
export async function whyUnreached(error: Error, login: Login): Promise<NotYet> {
  const behaviour = await behaviourOf(error, login);
  if (behaviour === null) return new NotYet(error.message);
  return new NotYet(behaviour.does, { advice: behaviour.advice });
}

async function behaviourOf(error: Error, login: Login): Promise<Behaviour | null> {
  if (login.channel !== null) return null; // which has no network, and goes to no port
  const { address, port } = login;
  const { code, level } = error as { readonly code?: string; readonly level?: string };
  switch (code === REFUSED ? await codeOfRefusal(login) : code) {
    case REFUSED:
      return refusal(port);
    case "ETIMEDOUT":
    case "EHOSTUNREACH": // ARP got no answer
    case "EHOSTDOWN":
      return SILENCE;
    case "EACCES": // by a route, or a rule of the host's firewall
    case "EPERM":
    case "ENETUNREACH":
    case "ENETDOWN":
      return {
        does: "this host cannot reach it",
        advice: `Check the route and the firewall of this host: ip route get ${address}; ` +
          "nft list ruleset",
      };
    case "ECONNRESET":
    case "EPIPE":
      return CLOSING;
  }
  if (/closed the connection|lost before handshake/.test(error.message)) return CLOSING;
  return level === "client-timeout" ? STANDSTILL : null;
}

const SILENCE: Behaviour = {
  does: "it does not answer",
  advice:
    "Check the end of its serial console: its network may be down, its firewall may block the " +
    'port, or it may lack memory ("memory_mib")',
};

const CLOSING: Behaviour = {
  does: "it closes the connection at once",
  advice:
    "Check the log of its SSH server (journalctl -u ssh -u sshd in the machine): it may lack " +
    "host keys or memory, or refuse this host",
};

const STANDSTILL: Behaviour = {
  does: "it accepts the connection, but its SSH server does not answer",
  advice: "Check the end of its serial console; if the machine is busy or lacks memory, " +
    'raise "vcpus", "memory_mib" or "timeouts.ssh_seconds"',
};

function refusal(port: number): Behaviour {
  return {
    does: "it refuses the connection",
    advice:
      `Start an SSH server on port ${port} ("ssh.port") when the machine boots, and do not stop ` +
      "it in a script",
  };
}

/** Why it was refused: Deno 2.7 says so of each connection of Node's that fails, for whatever reason. */
async function codeOfRefusal({ address, port }: Login): Promise<string> {
  const connecting = Deno.connect({ hostname: address, port }).then((connection) => {
    connection.close();
    return REFUSED; // it listens by now
  }, (error) => String(error.code));
  return await within(connecting, REFUSAL_MS) ?? "ETIMEDOUT";
}
