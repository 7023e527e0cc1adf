// SPDX-License-Identifier: GPL-2.0-or-later

/** An IPv4 address, and how many of its bits say which network it is in. */
export interface Cidr {
  readonly address: string;
  readonly prefix: number;
}

const BYTE = "(?:25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)";
const CIDR = new RegExp(`^(${BYTE}(?:\\.${BYTE}){3})(?:/(3[0-2]|[12]?\\d))?$`);

/** Reads an address with or without its prefix, which then is 32; null if it is neither. */
export function readCidr(text: string): Cidr | null {
  const [, address, prefix = "32"] = CIDR.exec(text) ?? [];
  return address === undefined ? null : { address, prefix: Number(prefix) };
}

/** Reads addresses that the settings have checked. */
export function readCidrs(texts: readonly string[]): Cidr[] {
  return texts.map(readCidr).filter((cidr) => cidr !== null);
}

export function cidrText({ address, prefix }: Cidr): string {
  return `${address}/${prefix}`;
}

export function firstOf({ address, prefix }: Cidr): string {
  const size = 2 ** (32 - prefix);
  return addressOf(Math.floor(addressNumber(address) / size) * size);
}

export function lastOf(cidr: Cidr): string {
  return addressOf(addressNumber(firstOf(cidr)) + 2 ** (32 - cidr.prefix) - 1);
}

/** Whether the outer network contains the other one. */
export function covers(outer: Cidr, { address, prefix }: Cidr): boolean {
  return prefix >= outer.prefix && firstOf({ address, prefix: outer.prefix }) === firstOf(outer);
}

export function addressNumber(address: string): number {
  return address.split(".").reduce((number, byte) => number * 256 + Number(byte), 0);
}

export function addressOf(number: number): string {
  return [24, 16, 8, 0].map((bits) => Math.floor(number / 2 ** bits) % 256).join(".");
}
