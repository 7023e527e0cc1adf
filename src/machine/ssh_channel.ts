// SPDX-License-Identifier: GPL-2.0-or-later
import { SystemFailure } from "../errors.ts";
import type { Domain } from "../libvirt/domain.ts";
import { SSH_CHANNEL } from "./domain_xml.ts";
import { childrenOf, find, rootOf } from "../read_xml.ts";

/** What the metadata of a machine without a network card has for its address. */
export const CHANNEL_ADDRESS = "channel";

/** How to reach such a machine: through its agent and a socket of this host. */
export interface SshChannel {
  readonly agent: (command: object, timeoutSeconds: number) => Promise<unknown>;
  readonly name: string;
  readonly socketPath: string;
}

/** The channel of a domain without a network card, good as long as the handle is. */
export async function sshChannel(domain: Domain): Promise<SshChannel> {
  const path = channelPath(await domain.xml());
  if (path === null) {
    throw new SystemFailure({ what: `The domain "${domain.name}" has no channel for SSH` });
  }
  return {
    agent: agentOf(domain),
    name: SSH_CHANNEL,
    socketPath: path,
  };
}

/** Asks the domain's guest agent, as long as the handle is good. */
export function agentOf(domain: Domain): SshChannel["agent"] {
  return (command, timeoutSeconds) => domain.agentCommand(command, timeoutSeconds);
}

/** Where the host's end of the channel is, from the XML of a running domain. */
export function channelPath(domainXml: string): string | null {
  const channel = childrenOf(find(rootOf(domainXml), "devices"), "channel")
    .find((channel) => find(channel, "target")?.attributes["name"] === SSH_CHANNEL);
  return find(channel, "source")?.attributes["path"] ?? null;
}
