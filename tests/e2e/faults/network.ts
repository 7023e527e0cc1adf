// SPDX-License-Identifier: GPL-2.0-or-later
import { command, virsh, virshXml } from "../bed.ts";
import { NAME } from "./pool.ts";

/** The DHCP server's addresses: a single one. */
export const ONE_ADDRESS = '<range start="192.168.214.2" end="192.168.214.2"/>';

/** A network of this test alone, whose DHCP server has these addresses and this option. */
export async function startNetwork(
  { dhcp = ONE_ADDRESS, option = "no-ping" }: { readonly dhcp?: string; readonly option?: string } =
    {},
): Promise<AsyncDisposable> {
  await virshXml(
    ["net-define"],
    `<network xmlns:dnsmasq="http://libvirt.org/schemas/network/dnsmasq/1.0">
      <name>${NAME}</name>
      <bridge name="gcifault0" stp="off" delay="0"/>
      <ip address="192.168.214.1" netmask="255.255.255.0">
        <dhcp>${dhcp}</dhcp>
      </ip>
      <dnsmasq:options><dnsmasq:option value="${option}"/></dnsmasq:options>
    </network>`,
  );
  await virsh("net-start", NAME);
  return {
    [Symbol.asyncDispose]: async () => {
      await command(["virsh", "-c", "qemu:///system", "net-destroy", NAME]); // which it may be
      await virsh("net-undefine", NAME);
    },
  };
}
