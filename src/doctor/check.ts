// SPDX-License-Identifier: GPL-2.0-or-later
import type { Found } from "./finding.ts";
import { type Connection, isLocalUri } from "../libvirt/connection.ts";
import type { KvmAnswer } from "../machine/kvm/kvm_probe.ts";
import type { HostNetwork } from "../machine/network/host_addresses.ts";
import type { Config, MachineSettings } from "../settings/settings.ts";

export interface DoctorContext {
  /** The settings, or the defaults where `configError` says why they cannot be read. */
  readonly config: Config;
  readonly configError: unknown;
  /** The connection to libvirt, or why there is none. */
  readonly connection: Connection | Error;
  /** Whether KVM runs guests here. */
  readonly kvm: () => Promise<KvmAnswer>;
  readonly hostNetwork: () => HostNetwork;
  readonly home: string | undefined;
  /** The path by which GitLab Runner can call this program. */
  readonly program: string;
  /** The root of the host's file system: empty, or a directory in its place. */
  readonly root: string;
  readonly checkSeconds: number;
}

export interface LibvirtContext extends DoctorContext {
  readonly connection: Connection;
}

/** Looks at one thing of the host. If it throws, that is a problem too. */
export type Check = (context: DoctorContext) => Found | Promise<Found>;

/** Marks a check that needs libvirt: without it, another finding says so. */
export function needsLibvirt(check: (context: LibvirtContext) => Found | Promise<Found>): Check {
  return (context) => isConnected(context) ? check(context) : null;
}

/** Marks a check of the files of the hypervisor's host. */
export function needsLocalHost(check: Check): Check {
  return (context) => isLocal(context) ? check(context) : null;
}

export function isConnected(context: DoctorContext): context is LibvirtContext {
  return !(context.connection instanceof Error);
}

/** Whether the files of this host are those of the hypervisor's. */
export function isLocal({ config }: DoctorContext): boolean {
  return isLocalUri(config.libvirt.uri);
}

/** The settings of all machines: the general ones, and those of templates. */
export function allMachines({ machine, templates }: Config): MachineSettings[] {
  return [machine].concat(Array.from(templates.values(), (template) => template.machine));
}
