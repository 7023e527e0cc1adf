// SPDX-License-Identifier: GPL-2.0-or-later
import type { Domain } from "../libvirt/domain.ts";
import type { StoragePool } from "../libvirt/storage_pool.ts";
import type { Context } from "./context.ts";
import type { MachineDomain } from "./domain_xml.ts";
import type { KeyChoice, MachineLogin } from "./login.ts";
import type { MachineMetadata, Owner } from "./metadata.ts";
import type { Project } from "./queue/project_limit.ts";
import type { Template } from "./storage/template.ts";
import type { TemplateAdvice, TemplateChoice } from "../policy/template_choice.ts";

/** A machine that is there. */
export interface Machine {
  readonly name: string;
  readonly metadata: MachineMetadata;
}

/** The machine that somebody wants. */
export interface MachineSpec {
  readonly name: string;
  readonly owner: Owner;
  /** Whether nobody may have the name, or a process that is dead. */
  readonly reserve: "free" | "abandoned";
  /** The template, and the settings of its machine. */
  readonly choice: TemplateChoice;
  /** What to do if the template is not there. */
  readonly advise: TemplateAdvice;
  /** The most that the template's disk may have; null is as much as it has. */
  readonly maxDiskGib: number | null;
  readonly login: KeyChoice;
  /** The project whose machines it counts among; null is none. */
  readonly project: Project | null;
  readonly queue: "wait" | "if there is room";
  /** Gives a machine that waited for a job in place of a new one; null where none may. */
  readonly instead: UseAnother | null;
  /** The ways to start it, tried in order. */
  readonly starts: readonly Start[];
  /** Whether it has a network card when it starts. */
  readonly hasCard: boolean;
  /** Whether what could be known of it is kept if it does not come up. */
  readonly keepsPostMortem: boolean;
}

/** Gives another machine in place of a new one of this template; null if there is none now. */
export type UseAnother = (
  spec: MachineSpec,
  made: { readonly template: Template; readonly pool: StoragePool },
  context: Context,
) => Promise<Machine | null>;

/** A machine of which all is there but its disk and its domain. */
export interface NewMachine extends MachineDomain {
  readonly template: Template;
  readonly login: MachineLogin;
}

/** A way to start a machine, by a boot or from a warm image. Resolves to null if there is no such way now. */
export type Start = (
  machine: NewMachine,
  pool: StoragePool,
  context: Context,
) => Promise<Started | null>;

/** A machine whose domain runs. Whoever gets it disposes of it, which leaves it running. */
export interface Started extends Disposable {
  readonly domain: Domain;
  /** Waits until it is ready, and gives what its domain says then. */
  readonly reach: (context: Context) => Promise<MachineMetadata>;
}

/** A machine with this domain. */
export function startedAs(domain: Domain, reach: Started["reach"]): Started {
  return { domain, reach, [Symbol.dispose]: () => domain[Symbol.dispose]() };
}
