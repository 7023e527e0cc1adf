// SPDX-License-Identifier: GPL-2.0-or-later
import { StoragePool } from "../libvirt/storage_pool.ts";
import { Network } from "../libvirt/network.ts";
import { Domain } from "../libvirt/domain.ts";
import type { Connection } from "../libvirt/connection.ts";
import { orNull, VIR_ERR } from "../libvirt/error.ts";
import type { HostDomain, LibvirtFacts } from "./check.ts";

/** Asks a connection what only the doctor wants to know. */
export function libvirtFacts(connection: Connection): LibvirtFacts {
  return {
    libVersion: () => connection.libVersion(),
    hypervisorVersion: () => connection.hypervisorVersion(),
    domains: () => domainsOf(connection),
    poolAutostarts: async (name) => {
      using pool = await StoragePool.lookup(connection, name);
      return await pool.autostarts();
    },
    networkAutostarts: async (name) => {
      using network = await Network.lookup(connection, name);
      return await network.autostarts();
    },
  };
}

async function domainsOf(connection: Connection): Promise<HostDomain[]> {
  const domains: HostDomain[] = [];
  for (const handle of await Domain.listAll(connection)) {
    using domain = handle;
    const xml = await orNull(VIR_ERR.NO_DOMAIN, domain.xml()); // it may end at any moment
    if (xml !== null) domains.push({ name: domain.name, isActive: await domain.isActive(), xml });
  }
  return domains;
}
