// SPDX-License-Identifier: GPL-2.0-or-later
import type { Login } from "./ssh_connection.ts";
import { NotYet, within } from "../wait.ts";

const REFUSED = "ECONNREFUSED";
/** How long a port may take to refuse a connection: a machine of the host's answers sooner. */
const REFUSAL_MS = 200;

/** What a machine does that cannot be logged in to, and what to do about it. */
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
        does: "this host has no way to it",
        advice: `See which way the host takes: ip route get ${address}; and what its firewall ` +
          "rejects: nft list ruleset",
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
  advice: "See the end of its serial console: its network is down, its firewall lets nothing in, " +
    'or it hangs, for lack of memory perhaps ("memory_mib" in the settings)',
};

const CLOSING: Behaviour = {
  does: "it closes the connection at once",
  advice: "See in the log of its SSH server why (journalctl -u ssh -u sshd in the machine): it " +
    "lacks host keys or memory, or its settings refuse this host",
};

const STANDSTILL: Behaviour = {
  does: "it takes the connection, and its SSH server says nothing",
  advice: "See the end of its serial console: the machine is too busy, or lacks memory; " +
    '"vcpus", "memory_mib" and "timeouts.ssh_seconds" in the settings give it more',
};

function refusal(port: number): Behaviour {
  return {
    does: "it refuses the connection",
    advice: `Have an SSH server listen on port ${port} of the machine from its boot on, and no ` +
      'script stop it; the port is "ssh.port" in the settings',
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
