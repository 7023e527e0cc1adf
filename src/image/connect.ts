// SPDX-License-Identifier: GPL-2.0-or-later
import { lookup } from "node:dns/promises";
import { isIP } from "node:net";
import { orFailure, SystemFailure } from "../errors.ts";
import { mayExist } from "../files.ts";
import {
  hostOf,
  isForbiddenAddress,
  isForbiddenHost,
  isLoopback,
  isLoopbackHost,
} from "./address_policy.ts";
import { asBroken, HttpConnection, type Patience } from "./http_connection.ts";
import { Broken, MessageReader, requestHead } from "./http_message.ts";
import { proxyFor, type Variables } from "./proxy.ts";
import { basicAuthorization, shownUrl } from "./url_login.ts";

/** The addresses that a name has. */
export type Lookup = (name: string) => Promise<readonly string[]>;

/** How a connection is made. */
export interface ConnectOptions extends Patience {
  /** The variables of the process, for proxies and certificates. */
  readonly env: Variables;
  readonly lookup: Lookup;
  /** Whether it may lead to this host itself. */
  readonly mayLoop: boolean;
}

/** Asks the system's resolver, which reads /etc/hosts too. */
export async function systemLookup(name: string): Promise<string[]> {
  return (await lookup(name, { all: true })).map(({ address }) => address);
}

/**
 * Connects to the host of the URL, or to its proxy. Without a proxy, the addresses of the name are looked
 * up once: one that was checked is the one that is connected to. A proxy looks up the name itself, so that
 * only the name or a literal address can be checked. Throws SystemFailure for a host out of bounds.
 */
export async function connect(url: URL, options: ConnectOptions): Promise<HttpConnection> {
  if (isForbiddenHost(url)) throw leadsToMetadata(url);
  const proxy = proxyFor(url, options.env);
  const connection = proxy === null
    ? await connectDirectly(url, options)
    : await connectByProxy(proxy, url, options);
  try {
    if (url.protocol === "https:") {
      await connection.startTls(hostOf(url), [await systemCertificates(options.env)]);
    }
    return connection;
  } catch (error) {
    connection[Symbol.dispose]();
    throw error;
  }
}

async function connectDirectly(url: URL, options: ConnectOptions): Promise<HttpConnection> {
  const all = await addressesOf(hostOf(url), options);
  const distant = all.filter((address) => !isForbiddenAddress(address));
  if (distant.length === 0) throw leadsToMetadata(url);
  const allowed = distant.filter((address) => options.mayLoop || !isLoopback(address));
  if (allowed.length === 0) throw leadsBack(url);
  const [conn, address] = await connectToFirst(allowed, url, options);
  return new HttpConnection(conn, options, { loops: isLoopback(address), proxy: null });
}

async function connectByProxy(
  proxy: URL,
  url: URL,
  options: ConnectOptions,
): Promise<HttpConnection> {
  const loops = isLoopbackHost(url);
  if (loops && !options.mayLoop) throw leadsBack(url);
  const addresses = await addressesOf(hostOf(proxy), options);
  const [conn] = await connectToFirst(addresses, proxy, options);
  if (url.protocol === "http:") return new HttpConnection(conn, options, { loops, proxy });
  const connection = new HttpConnection(conn, options, { loops, proxy: null });
  try {
    await openTunnel(connection, proxy, url);
    return connection;
  } catch (error) {
    connection[Symbol.dispose]();
    throw error;
  }
}

/** Has the proxy connect to the host of the URL. */
async function openTunnel(connection: HttpConnection, proxy: URL, url: URL): Promise<void> {
  const host = `${url.hostname}:${url.port || 443}`;
  const headers = new Headers({ host });
  const login = basicAuthorization(proxy);
  if (login !== null) headers.set("proxy-authorization", login);
  await connection.write(requestHead("CONNECT", host, headers));
  const { status } = await new MessageReader(connection).head("CONNECT");
  if (status < 200 || status > 299) {
    throw new SystemFailure({
      what: `The proxy ${shownUrl(proxy)} answers ${status} for "${host}"`,
      advice: "Ask the proxy's administrator, or add the host to no_proxy",
    });
  }
}

async function addressesOf(
  host: string,
  { lookup, ...patience }: Pick<ConnectOptions, "lookup"> & Patience,
): Promise<readonly string[]> {
  if (isIP(host) !== 0) return [host];
  const none = `no address is known of the host "${host}"`;
  const looking = lookup(host).catch((cause) => {
    throw new Error(none, { cause });
  });
  const addresses = await inTime(looking, patience, "the name service");
  if (addresses.length === 0) throw new Error(none);
  return addresses;
}

/** Connects to the first of the addresses that answers, and says which that is. */
async function connectToFirst(
  addresses: readonly string[],
  { protocol, port }: URL,
  patience: Patience,
): Promise<[conn: Deno.TcpConn, address: string]> {
  const number = Number(port) || (protocol === "https:" ? 443 : 80);
  let failure: unknown = null;
  for (const hostname of addresses) {
    patience.signal.throwIfAborted();
    try {
      return [await connectInTime(hostname, number, patience), hostname];
    } catch (error) {
      failure ??= error;
    }
  }
  throw failure;
}

async function connectInTime(
  hostname: string,
  port: number,
  patience: Patience,
): Promise<Deno.TcpConn> {
  const connecting = Deno.connect({ hostname, port });
  try {
    return await inTime(connecting, patience, hostname);
  } catch (error) {
    connecting.then((conn) => conn.close(), () => {}); // it comes too late
    throw asBroken(error);
  }
}

/** What the task gives. Throws {@linkcode Broken} if that takes too long, and the signal's reason. */
async function inTime<T>(
  task: Promise<T>,
  { silenceMs, signal }: Patience,
  who: string,
): Promise<T> {
  const over = Promise.withResolvers<never>();
  const onAbort = (): void => over.reject(signal.reason);
  const timer = setTimeout(() => {
    over.reject(new Broken(`no answer of ${who} for ${silenceMs / 1000} s`));
  }, silenceMs);
  signal.addEventListener("abort", onAbort);
  try {
    return await Promise.race([task, over.promise]);
  } finally {
    clearTimeout(timer);
    signal.removeEventListener("abort", onAbort);
  }
}

function leadsToMetadata(url: URL): SystemFailure {
  return outOfBounds(url, "a link-local address or a metadata service");
}

function leadsBack(url: URL): SystemFailure {
  return outOfBounds(url, "this host itself, by a redirect from another one");
}

function outOfBounds(url: URL, where: string): SystemFailure {
  return new SystemFailure({
    what: `Cannot fetch ${shownUrl(url)}: it leads to ${where}`,
    advice: "Use another URL, and check where it redirects to",
  });
}

/** Where distributions have the certificates that the system trusts. */
const CERTIFICATES: readonly string[] = [
  "/etc/ssl/certs/ca-certificates.crt",
  "/etc/pki/tls/certs/ca-bundle.crt",
  "/etc/ssl/ca-bundle.pem",
  "/etc/ssl/cert.pem",
];

/** The certificates that the system trusts, which Deno does not read itself; "" if there are none. */
async function systemCertificates(env: Variables): Promise<string> {
  const named = env["SSL_CERT_FILE"];
  for (const path of named ? [named] : CERTIFICATES) {
    if (!named && !await mayExist(path)) continue;
    return await orFailure(Deno.readTextFile(path), {
      what: `Cannot read the certificates that the system trusts: "${path}"`,
      advice: "Set SSL_CERT_FILE to a file with certificates in PEM, or unset it",
    });
  }
  return "";
}
