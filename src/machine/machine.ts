// SPDX-License-Identifier: GPL-2.0-or-later
import type { NewMaster } from "../guest/master/new_master.ts";
import type { Domain } from "../libvirt/domain.ts";
import type { StoragePool } from "../libvirt/storage_pool.ts";
import type { Context } from "./context.ts";
import type { MachineDomain } from "./domain_xml.ts";
import type { KeyChoice, MachineLogin } from "./login.ts";
import type { MachineMetadata, Owner } from "./metadata.ts";
import type { Project } from "./queue/project_limit.ts";
import type { Template } from "./storage/template.ts";
import type { TemplateAdvice, TemplateChoice } from "../policy/template_choice.ts";

/** A machine that exists. */
export interface Machine {
  readonly name: string;
  /** The name of its domain, which is another if it took over a standby machine. */
  readonly domain: string;
  readonly metadata: MachineMetadata;
}

/** A machine to create. */
export interface MachineSpec {
  readonly name: string;
  readonly owner: Owner;
  /** Whether the name must be free, or may have been left by a dead process. */
  readonly reserve: "free" | "abandoned";
  readonly choice: TemplateChoice;
  /** The advice if the template does not exist. */
  readonly advise: TemplateAdvice;
  /** The largest disk of a template; null is any. */
  readonly maxDiskGib: number | null;
  readonly login: KeyChoice;
  /** The project that it counts for; null is none. */
  readonly project: Project | null;
  readonly queue: "wait" | "if there is room";
  /** Gives a standby machine instead of a new one; null if it must be new. */
  readonly instead: UseAnother | null;
  /** The ways to start it, tried in order. */
  readonly starts: readonly Start[];
  /** Whether it has a network card when it starts. */
  readonly hasCard: boolean;
  /** The connection master that it is to have; null is none. */
  readonly master: NewMaster | null;
  /** Whether a post-mortem is kept if it does not start. */
  readonly keepsPostMortem: boolean;
}

/** Gives another machine instead of a new one; null if there is none now. */
export type UseAnother = (
  spec: MachineSpec,
  made: { readonly template: Template; readonly pool: StoragePool },
  context: Context,
) => Promise<Machine | null>;

/** A machine of which everything exists but its disk and its domain. */
export interface NewMachine extends MachineDomain {
  readonly template: Template;
  readonly login: MachineLogin;
  /** What logs in to it first; null if prepare itself does. */
  readonly master: NewMaster | null;
}

/** A way to start a machine: boot or resume. Resolves to null if this way is not possible now. */
export type Start = (
  machine: NewMachine,
  pool: StoragePool,
  context: Context,
) => Promise<Started | null>;

/** A machine whose domain runs. The caller disposes of it, which leaves it running. */
export interface Started extends Disposable {
  readonly domain: Domain;
  /** Waits until it is ready, and gives its metadata. */
  readonly reach: (context: Context) => Promise<MachineMetadata>;
}

/** A started machine with this domain. */
export function startedAs(domain: Domain, reach: Started["reach"]): Started {
  return { domain, reach, [Symbol.dispose]: () => domain[Symbol.dispose]() };
}
