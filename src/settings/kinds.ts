// SPDX-License-Identifier: GPL-2.0-or-later
import { firstOf, lastOf, readCidr } from "../ipv4.ts";

/** The values that a setting may have. */
export interface Kind<T> {
  /** The end of the sentence `"vcpus" must be …`. */
  readonly words: string;
  readonly accepts: (value: unknown) => value is T;
  /** The kind of each item of a list. */
  readonly items?: Kind<unknown>;
}

/** The name of a template that the settings do not name: what a job may write in DISTRO. */
export const TEMPLATE_NAME = /^[A-Za-z0-9][A-Za-z0-9._+-]{0,127}$/;

/** Each makes rules of a filter, and each rule takes time. */
const MOST_ADDRESSES = 64;

export function whole(min: number, max: number): Kind<number> {
  return {
    words: `a whole number from ${min} to ${max}`,
    accepts: (value): value is number =>
      Number.isInteger(value) && Number(value) >= min && Number(value) <= max,
  };
}

export function oneOf<const T extends string>(...values: readonly T[]): Kind<T> {
  return {
    words: `one of ${values.join(", ")}`,
    accepts: (value): value is T => values.some((other) => other === value),
  };
}

export function text(pattern: RegExp, words: string): Kind<string> {
  return { words, accepts: (value): value is string => isText(value) && pattern.test(value) };
}

export function listOf<T>(
  items: Kind<T>,
  words: string,
  { min = 0, max = Infinity }: { readonly min?: number; readonly max?: number } = {},
): Kind<readonly T[]> {
  return {
    words,
    accepts: (value): value is readonly T[] =>
      Array.isArray(value) && value.length >= min && value.length <= max,
    items,
  };
}

export const FLAG: Kind<boolean> = {
  words: "true or false",
  accepts: (value) => typeof value === "boolean",
};

/** A wait that is not over at once, in seconds. */
export const SECONDS = whole(1, 86_400);

/** The name of something of libvirt's. */
export const NAME = text(
  /^[^\s/\p{C}][^/\p{C}]*$/u,
  "a name without slashes or control characters",
);

export const DIRECTORY = text(/^\/[^\p{C}]*$/u, "an absolute path");

/** Names of templates or paths of projects, in which `*` stands for any characters. */
export const PATTERNS = listOf(
  text(/^[^\p{C}]+$/u, "a name or a pattern, such as debian-*"),
  "a list of names and patterns, such as [debian-*]",
);

export const PORTS = listOf(
  text(
    /^(tcp|udp)\/([1-9]\d{0,3}|[1-5]\d{4}|6[0-4]\d{3}|65[0-4]\d{2}|655[0-2]\d|6553[0-5])$/,
    "tcp/PORT or udp/PORT",
  ),
  "a list of ports, such as [tcp/80]",
);

export const HOST_ADDRESSES = listOf(
  {
    words: "an IPv4 address of the host, alone or with its prefix, such as 192.0.2.7/24",
    accepts: (value): value is string => isText(value) && isHostAddress(value),
  },
  `a list of at most ${MOST_ADDRESSES} addresses, such as [192.0.2.7/24]`,
  { max: MOST_ADDRESSES },
);

export const NETWORKS = listOf(
  {
    words: "an IPv4 network with its first address, such as 192.168.0.0/16",
    accepts: (value): value is string => isText(value) && isNetwork(value),
  },
  `a list of at most ${MOST_ADDRESSES} networks, such as [10.0.0.0/8]`,
  { max: MOST_ADDRESSES },
);

export function isKeys(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isText(value: unknown): value is string {
  return typeof value === "string";
}

/** Whether a host may have it: the first and the last address of a network belong to none. */
function isHostAddress(address: string): boolean {
  const cidr = readCidr(address);
  if (cidr === null) return false;
  return cidr.prefix > 30 || ![firstOf(cidr), lastOf(cidr)].includes(cidr.address);
}

function isNetwork(network: string): boolean {
  const cidr = readCidr(network);
  return cidr !== null && network.includes("/") && firstOf(cidr) === cidr.address;
}
