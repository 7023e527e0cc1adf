// SPDX-License-Identifier: GPL-2.0-or-later
import { parseXml, XmlElement } from "@rgrove/parse-xml";
import { SystemFailure } from "../errors.ts";
import type { Domain } from "../libvirt/domain.ts";
import { SSH_CHANNEL } from "./domain_xml.ts";

/** What the record of a machine without a network card has for its address. */
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
    agent: (command, timeoutSeconds) => domain.agentCommand(command, timeoutSeconds),
    name: SSH_CHANNEL,
    socketPath: path,
  };
}

/** Where the host's end of the channel is, from the XML of a running domain. */
export function channelPath(domainXml: string): string | null {
  const devices = childrenOf(parseXml(domainXml).root, "devices")[0];
  const channel = childrenOf(devices, "channel").find((channel) =>
    childrenOf(channel, "target")[0]?.attributes["name"] === SSH_CHANNEL
  );
  return childrenOf(channel, "source")[0]?.attributes["path"] ?? null;
}

function childrenOf(element: XmlElement | null | undefined, name: string): XmlElement[] {
  return (element?.children ?? []).filter((child): child is XmlElement =>
    child instanceof XmlElement && child.name === name
  );
}
