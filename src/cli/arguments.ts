// SPDX-License-Identifier: GPL-2.0-or-later
import { type Message, message } from "@optique/core/message";
import { map, optional, withDefault } from "@optique/core/modifiers";
import type { Parser } from "@optique/core/parser";
import { argument, flag, option } from "@optique/core/primitives";
import { string } from "@optique/core/valueparser";
import { DURATION, durationSeconds } from "../duration.ts";

/** `--machine NAME`, where the job may name the machine too. */
export const machineOption = optional(
  option("-m", "--machine", string({ metavar: "NAME" }), {
    description: message`The machine's name.`,
  }),
);

/** The machine that a person means. */
export const machineArgument = argument(string({ metavar: "MACHINE" }), {
  description: message`The machine's name.`,
});

/** `--distro NAME`, by which an operator chooses the template. */
export const distroOption = optional(
  option("-d", "--distro", string({ metavar: "NAME" }), {
    description: message`The template, instead of the one that the job asks for.`,
  }),
);

/** `--json`. */
export const jsonFlag = switchFlag("--json", message`Print JSON.`);

/** A flag that is off unless somebody sets it. */
export function switchFlag(
  name: `--${string}`,
  description: Message,
): Parser<"sync", boolean, unknown> {
  return withDefault(flag(name, { description }), false);
}

/** An option that takes a duration such as `2h`, and gives its seconds. */
export function durationOption(
  name: `--${string}`,
  description: Message,
): Parser<"sync", number, unknown> {
  const duration = string({
    metavar: "DURATION",
    pattern: DURATION,
    errors: { patternMismatch: message`Write a number and s, m, h or d, such as 2h.` },
  });
  return map(option(name, duration, { description }), durationSeconds);
}
