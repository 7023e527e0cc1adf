// SPDX-License-Identifier: GPL-2.0-or-later
import { SystemFailure } from "../errors.ts";
import type { Domain } from "../libvirt/domain.ts";
import { SSH_CHANNEL } from "./domain_xml.ts";
import { childrenOf, find, rootOf } from "../read_xml.ts";

/** The address in the metadata of a machine without a network card. */
export const CHANNEL_ADDRESS = "channel";

/** How to reach such a machine: through its guest agent and a socket on this host. */
export interface SshChannel {
  readonly agent: (command: object, timeoutSeconds: number) => Promise<unknown>;
  readonly name: string;
  readonly socketPath: string;
}

/** The channel of a running domain. It is usable as long as the domain's handle. */
export async function sshChannel(domain: Domain): Promise<SshChannel> {
  const channel = childrenOf(find(rootOf(await domain.xml()), "devices"), "channel")
    .find((channel) => find(channel, "target")?.attributes["name"] === SSH_CHANNEL);
  const socketPath = find(channel, "source")?.attributes["path"];
  if (socketPath === undefined) {
    throw new SystemFailure({ what: `The domain "${domain.name}" has no channel for SSH` });
  }
  return { agent: agentOf(domain), name: SSH_CHANNEL, socketPath };
}

/** The domain's guest agent. It is usable as long as the domain's handle. */
export function agentOf(domain: Domain): SshChannel["agent"] {
  return (command, timeoutSeconds) => domain.agentCommand(command, timeoutSeconds);
}
