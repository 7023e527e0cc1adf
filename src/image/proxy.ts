// SPDX-License-Identifier: GPL-2.0-or-later
import { BlockList, isIP } from "node:net";
import { SystemFailure } from "../errors.ts";
import { hostOf } from "./address_policy.ts";

/** The variables of the process. */
export type Variables = Readonly<Record<string, string>>;

/**
 * The proxy for a URL, by the variables that curl reads too; null if there is none. Throws SystemFailure
 * if it is none that speaks plain HTTP.
 */
export function proxyFor(url: URL, env: Variables): URL | null {
  const scheme = url.protocol.slice(0, -1);
  const [name, value] = firstOf(env, [`${scheme}_proxy`, "all_proxy"]);
  if (value === "" || isExcepted(url, firstOf(env, ["no_proxy"])[1])) return null;
  const proxy = URL.parse(value.includes("://") ? value : `http://${value}`);
  if (proxy?.protocol === "http:") return proxy;
  throw new SystemFailure({
    what: `Cannot use the proxy of the variable "${name}": it is no http:// URL`,
    advice: `Set ${name} to http://HOST:PORT, or add ${hostOf(url)} to no_proxy`,
  });
}

/** The first of these variables that is set, in small letters or in capitals. */
function firstOf(env: Variables, names: readonly string[]): [name: string, value: string] {
  for (const name of names.flatMap((name) => [name, name.toUpperCase()])) {
    const value = env[name]?.trim();
    if (value) return [name, value];
  }
  return ["", ""];
}

/** Whether the list of no_proxy has the URL: `*`, a domain with all below, an address or a network. */
function isExcepted(url: URL, list: string): boolean {
  const host = hostOf(url);
  const port = url.port || (url.protocol === "https:" ? "443" : "80");
  return list.toLowerCase().split(/[\s,]+/).some((entry) => {
    if (entry === "*") return true;
    const [, name = "", ofPort = port] = /^\[?(.+?)\]?(?::(\d+))?$/.exec(
      isIP(entry) === 6 ? `[${entry}]` : entry,
    ) ?? [];
    if (name === "" || ofPort !== port) return false;
    if (isIP(host) !== 0) return isInNetwork(host, name);
    const domain = name.replace(/^\*?\./, "");
    return host === domain || host.endsWith(`.${domain}`);
  });
}

function isInNetwork(address: string, network: string): boolean {
  const [first = "", prefix] = network.split("/");
  const family = isIP(first);
  if (family === 0 || family !== isIP(address)) return false;
  const most = family === 6 ? 128 : 32;
  const bits = prefix === undefined ? most : /^\d{1,3}$/.test(prefix) ? Number(prefix) : Infinity;
  if (bits > most) return false;
  const list = new BlockList();
  const type = family === 6 ? "ipv6" : "ipv4";
  list.addSubnet(first, bits, type);
  return list.check(address, type);
}
