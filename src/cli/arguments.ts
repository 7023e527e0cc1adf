// SPDX-License-Identifier: GPL-2.0-or-later
import type { NonEmptyString } from "@optique/core/nonempty";
import { DURATION, durationSeconds } from "../duration.ts";

/** An option or an argument of the command line. */
export interface Field<T> {
  /** The names of an option; an argument has none. */
  readonly names: readonly `-${string}`[];
  /** What the help calls its value; null for a flag, which has none. */
  readonly metavar: NonEmptyString | null;
  /** Its help. A name in backquotes is that of an option. */
  readonly doc: string;
  /** How often it may be there. */
  readonly times: "once" | "at most once" | "any";
  /** What its value must look like, if not anything goes. */
  readonly form?: { readonly pattern: RegExp; readonly hint: string };
  /** What it means that the command line has it with these values, or as often for a flag. */
  readonly read: (given: readonly string[]) => T;
}

/** Options and arguments by what the program calls them. Arguments are in their order. */
export type Fields = Readonly<Record<string, Field<unknown>>>;
/** What the command line says of them. */
export type Values<F extends Fields> = {
  readonly [K in keyof F]: F[K] extends Field<infer T> ? T : never;
};

/** Of each field, the values that the command line has for it, or a word for a flag. */
export type Given = Readonly<Record<string, readonly string[]>>;

/** What that means. */
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

/** An option that takes a duration such as `2h`, and gives its seconds, or else these. */
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
export const machineArgument: Field<string> = {
  ...argument("MACHINE", "The machine's name."),
  times: "once",
  read: ([value = ""]) => value,
};

/** `--distro NAME`, by which an operator chooses the template. */
export const distroOption: Field<string | undefined> = {
  ...option("--distro", "NAME", "The template, instead of the one that the job asks for."),
  names: ["-d", "--distro"],
};

/** `--json`. */
export const jsonFlag = switchFlag("--json", "Print JSON.");

/** What every command takes. */
export const GLOBAL_OPTIONS = {
  debug: switchFlag("--debug", "Print each libvirt call and the stack of errors."),
  config: option(
    "--config",
    "FILE",
    "The settings file, instead of /etc/libvirt-gci/config.yaml or, if there is none, ~/.config/libvirt-gci/config.yaml.",
  ),
};
