// SPDX-License-Identifier: GPL-2.0-or-later
import { SystemFailure } from "../../errors.ts";
import { orMissing } from "../../files.ts";
import type { Reference } from "./reference.ts";
import { quoted } from "../../quoted.ts";

/** Where this user's credentials may be. */
export interface CredentialPlaces {
  /** The program's environment: of GitLab Runner's stages, none of a job's variables has such a name. */
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly uid: number | null;
}

/** How to log in to a registry. */
export interface Credentials {
  /** Of the header Authorization, or null: then nobody logs in. It is never part of a message. */
  readonly basic: string | null;
  /** Why an entry for this registry is no login, as a sentence, or null. */
  readonly unused: string | null;
}

const MOST_BYTES = 1024 * 1024;

/**
 * The credentials for an image, as podman and docker find them: in the first file that has an entry for it,
 * by the longest path. Helpers (`credHelpers`, `credsStore`) are not run: they are programs found in PATH,
 * many of them ask a desktop, and the program starts no other but itself. Throws SystemFailure if a file
 * cannot be read.
 */
export async function findCredentials(
  reference: Reference,
  places: CredentialPlaces,
): Promise<Credentials> {
  let unused: string | null = null;
  for (const path of pathsOf(places)) {
    const file = await readAuthFile(path, path === places.env["REGISTRY_AUTH_FILE"]);
    if (file === null) continue;
    const found = credentialsIn(file, path, reference);
    if (found.basic !== null) return found;
    unused ??= found.unused;
  }
  return { basic: null, unused };
}

/** The files of containers-auth.json(5), and docker's, in the order in which they count. */
function pathsOf({ env, uid }: CredentialPlaces): string[] {
  const only = env["REGISTRY_AUTH_FILE"];
  if (only) return [only];
  const { HOME: home, XDG_RUNTIME_DIR: runtime } = env;
  const own = runtime ? `${runtime}/containers` : uid === null ? null : `/run/containers/${uid}`;
  const config = env["XDG_CONFIG_HOME"] || (home && `${home}/.config`);
  const docker = env["DOCKER_CONFIG"] || (home && `${home}/.docker`);
  return [
    ...own ? [`${own}/auth.json`] : [],
    ...config ? [`${config}/containers/auth.json`] : [],
    ...docker ? [`${docker}/config.json`] : [],
  ];
}

/** A file's entries, each unchecked; null if there is no such file, unless it must be there. */
async function readAuthFile(
  path: string,
  mustExist: boolean,
): Promise<Record<string, unknown> | null> {
  const advice = "Log in again: podman login REGISTRY";
  const text = await readAtMost(path).catch((cause: unknown) => {
    throw new SystemFailure({ what: `Cannot read the credentials in "${path}"`, cause, advice });
  });
  if (text === null) {
    if (!mustExist) return null;
    throw new SystemFailure({
      what: `There is no file "${path}", which REGISTRY_AUTH_FILE names`,
      advice,
    });
  }
  const content = record(parseQuietly(text));
  if (content !== null) return content;
  throw new SystemFailure({ what: `The credentials in "${path}" are no JSON object`, advice });
}

async function readAtMost(path: string): Promise<string | null> {
  const info = await orMissing(Deno.stat(path));
  if (info === null) return null;
  if (!info.isFile || info.size > MOST_BYTES) {
    throw new Error("it is no file of at most 1 MiB");
  }
  return await orMissing(Deno.readTextFile(path));
}

/** What the text says, or null. The error would quote it. */
function parseQuietly(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

function record(value: unknown): Record<string, unknown> | null {
  return typeof value === "object" && value !== null && !Array.isArray(value)
    ? value as Record<string, unknown>
    : null;
}

function credentialsIn(
  file: Record<string, unknown>,
  path: string,
  { registry, repository }: Reference,
): Credentials {
  const helpers = record(file["credHelpers"]) ?? {};
  const auths = new Map(
    Object.entries(record(file["auths"]) ?? {}).map(([key, entry]) => [keyOf(key), entry]),
  );
  const helper = Object.entries(helpers).find(([key]) => keyOf(key) === registry)?.[1];
  if (typeof helper === "string") return { basic: null, unused: helperNote(helper, path) };
  for (const key of keysFor(registry, repository)) {
    const entry = record(auths.get(key));
    if (entry === null) continue;
    const basic = basicOf(entry);
    if (basic !== null) return { basic, unused: null };
    if ("identitytoken" in entry || "registrytoken" in entry) {
      return { basic: null, unused: `"${path}" has a token for "${key}", which is not supported` };
    }
    const store = file["credsStore"];
    if (typeof store === "string") return { basic: null, unused: helperNote(store, path) };
  }
  return { basic: null, unused: null };
}

function helperNote(name: string, path: string): string {
  return `"${path}" names the credential helper ${quoted(name)}, which libvirt-gci does not run`;
}

/** The image's path, then each shorter one, and the registry last. */
function keysFor(registry: string, repository: string): string[] {
  const parts = [registry, ...repository.split("/")];
  return parts.map((_, i) => parts.slice(0, parts.length - i).join("/"));
}

/** The key of an entry as podman writes it. docker writes some as URLs, such as https://HOST/v1/. */
function keyOf(key: string): string {
  const [, host] = /^https?:\/\/([^/]*)/.exec(key) ?? [];
  return (host ?? key).replace(/^[^/]*/, (name) => name.toLowerCase())
    .replace(/^(index|registry-1)\.docker\.io(?=$|\/)/, "docker.io");
}

/** The user and the password of an entry, as the header has them; null if it has none. */
function basicOf(entry: Record<string, unknown>): string | null {
  const { auth, username, password } = entry;
  if (typeof auth === "string" && auth !== "") {
    const login = decode(auth)?.replace(/\0+$/, "");
    return login?.includes(":") ? encode(login) : null;
  }
  if (typeof username !== "string" || typeof password !== "string") return null;
  return encode(`${username}:${password}`);
}

function decode(base64: string): string | null {
  try {
    return new TextDecoder().decode(Uint8Array.fromBase64(base64));
  } catch {
    return null;
  }
}

function encode(login: string): string {
  return new TextEncoder().encode(login).toBase64();
}
