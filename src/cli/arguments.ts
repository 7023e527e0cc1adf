// SPDX-License-Identifier: GPL-2.0-or-later
import type { NonEmptyString } from "@optique/core/nonempty";
import { DURATION, durationSeconds } from "../duration.ts";

/** An option or an argument of the command line. */
export interface Field<T> {
  /** The names of an option; an argument has none. */
  readonly names: readonly `-${string}`[];
  /** The name of its value in the help; null for a flag. */
  readonly metavar: NonEmptyString | null;
  /** Its help. A name in backquotes is that of an option. */
  readonly doc: string;
  /** How often it may be given. */
  readonly times: "once" | "at most once" | "any";
  /** The form of its value; without it, any value is valid. */
  readonly form?: { readonly pattern: RegExp; readonly hint: string };
  /**
   * Gives its meaning, from its values on the command line. A flag has a value for each time it is
   * given.
   */
  readonly read: (given: readonly string[]) => T;
}

/** Options and arguments, by their names in the program. Arguments stand in their order. */
export type Fields = Readonly<Record<string, Field<unknown>>>;
/** The meanings of these fields. */
export type Values<F extends Fields> = {
  readonly [K in keyof F]: F[K] extends Field<infer T> ? T : never;
};

/** The values of each field on the command line. A flag has a word for each time it is given. */
export type Given = Readonly<Record<string, readonly string[]>>;

/** Gives the meanings of these fields. */
export function readFields<F extends Fields>(fields: F, given: Given): Values<F> {
  return Object.fromEntries(
    Object.entries(fields).map(([key, { read }]) => [key, read(given[key] ?? [])]),
  ) as Values<F>;
}

/** An option with a value; undefined without it. */
export function option(
  name: Field<unknown>["names"][number],
  metavar: NonEmptyString,
  doc: string,
): Field<string | undefined> {
  return { names: [name], metavar, doc, times: "at most once", read: ([value]) => value };
}

/** A flag that is off by default. */
export function switchFlag(name: `--${string}`, doc: string): Field<boolean> {
  return {
    names: [name],
    metavar: null,
    doc,
    times: "at most once",
    read: (given) => given.length > 0,
  };
}

/** An option for a duration such as `2h`, in seconds; `otherwise` is its default. */
export function durationOption<T extends number | undefined>(
  name: `--${string}`,
  doc: string,
  otherwise: T,
): Field<number | T> {
  return {
    ...option(name, "DURATION", doc),
    form: { pattern: DURATION, hint: "Write a number and s, m, h or d, such as 2h." },
    read: ([value]) => value === undefined ? otherwise : durationSeconds(value),
  };
}

/** An argument that may be left out. */
export function argument(metavar: NonEmptyString, doc: string): Field<string | undefined> {
  return { names: [], metavar, doc, times: "at most once", read: ([value]) => value };
}

/** An argument that must be there. */
export function oneArgument(metavar: NonEmptyString, doc: string): Field<string> {
  return { names: [], metavar, doc, times: "once", read: ([value = ""]) => value };
}

/** Any number of arguments. */
export function argumentList(metavar: NonEmptyString, doc: string): Field<readonly string[]> {
  return { names: [], metavar, doc, times: "any", read: (given) => given };
}

/** `--machine NAME`, where the job may name the machine too. */
export const machineOption: Field<string | undefined> = {
  ...option("--machine", "NAME", "The machine's name."),
  names: ["-m", "--machine"],
};

/** The machine that a person means. */
export const machineArgument = oneArgument("MACHINE", "The machine's name.");

/** `--distro NAME`, by which an operator chooses the template. */
export const distroOption: Field<string | undefined> = {
  ...option("--distro", "NAME", "The template, instead of the one that the job asks for."),
  names: ["-d", "--distro"],
};

/** `--json`. */
export const jsonFlag = switchFlag("--json", "Print JSON.");

/** The options of every command. */
export const GLOBAL_OPTIONS = {
  debug: switchFlag("--debug", "Print each libvirt call and the stack of errors."),
  config: option(
    "--config",
    "FILE",
    "The settings file, instead of /etc/libvirt-gci/config.yaml or, if there is none, ~/.config/libvirt-gci/config.yaml.",
  ),
};
