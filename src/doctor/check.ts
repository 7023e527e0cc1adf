// SPDX-License-Identifier: GPL-2.0-or-later
import type { Config } from "../settings/load.ts";
import { type Connection, isLocalUri } from "../libvirt/connection.ts";
import type { HostNetwork } from "../machine/network/host_addresses.ts";
import type { KvmAnswer } from "../machine/kvm/kvm_probe.ts";
import type { MachineSettings } from "../settings/machine_settings.ts";
import type { Finding } from "./finding.ts";

/** A domain of the host, whoever made it. */
export interface HostDomain {
  readonly name: string;
  readonly isActive: boolean;
  readonly xml: string;
}

/** What only the doctor asks libvirt. */
export interface LibvirtFacts {
  /** The daemon's version, as libvirt counts it: 9001002 is 9.1.2. */
  readonly libVersion: () => Promise<number>;
  /** QEMU's, counted likewise. */
  readonly hypervisorVersion: () => Promise<number>;
  /** All domains, started or only defined. */
  readonly domains: () => Promise<readonly HostDomain[]>;
  /** Whether the pool, or the network, starts with the host. */
  readonly poolAutostarts: (name: string) => Promise<boolean>;
  readonly networkAutostarts: (name: string) => Promise<boolean>;
}

/** What the checks look at. */
export interface DoctorContext {
  /** The settings, or the defaults where `configError` says why they cannot be read. */
  readonly config: Config;
  readonly configError: unknown;
  /** The connection to libvirt, or why there is none. */
  readonly connection: Connection | Error;
  /** How to ask it what only the doctor wants to know. */
  readonly factsOf: (connection: Connection) => LibvirtFacts;
  /** Whether KVM runs guests here. */
  readonly kvm: () => Promise<KvmAnswer>;
  /** What the kernel says of the network that this process is in. */
  readonly hostNetwork: () => HostNetwork;
  /** The caller's home directory. */
  readonly home: string | undefined;
  /** Where this program is, for GitLab Runner to call it. */
  readonly program: string;
  /** Where the host's file system begins: empty, or a directory that looks like one. */
  readonly root: string;
  /** How long a check may take. */
  readonly checkSeconds: number;
}

/** Looks at one thing of the host. It may throw, which is a problem too. */
export type Check = (context: DoctorContext) => Promise<Finding[]>;

/** Whether the files of this host are those of the hypervisor's. */
export function isLocal({ config }: DoctorContext): boolean {
  return isLocalUri(config.uri);
}

/** The settings of all machines that there may be: the general ones, and those of templates. */
export function allMachines({ machine, templates }: Config): MachineSettings[] {
  return [machine, ...[...templates.values()].map((template) => template.machine)];
}
