// SPDX-License-Identifier: GPL-2.0-or-later
import { UsageError } from "../../errors.ts";
import { readCidr } from "../../ipv4.ts";
import { quoted } from "../../quoted.ts";

/** What an image in a registry is called. */
export interface Reference {
  /** `host` or `host:port`, in lower case. */
  readonly registry: string;
  /** The path in the registry, such as `ci/fedora`. */
  readonly repository: string;
  /** `latest` if it is not said. With a digest, it only tells people what the image is. */
  readonly tag: string;
  /** `sha256:<hex>` of the manifest, or null: then it is what the tag points to. */
  readonly digest: string | null;
  /** Whether the registry is one of this host that has no TLS. */
  readonly isPlain: boolean;
}

// The grammar of https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md
const PART = "[a-z0-9]+(?:(?:\\.|_|__|-+)[a-z0-9]+)*";
const LABEL = "[a-z0-9](?:[a-z0-9-]*[a-z0-9])?";
const HOST = new RegExp(`^(?:${LABEL}(?:\\.${LABEL})*|\\[[0-9a-f:.]+\\])(?::[0-9]+)?$`);
const REPOSITORY = new RegExp(`^${PART}(?:/${PART})*$`);
const TAG = /^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$/;
const DIGEST = /^sha256:[0-9a-f]{64}$/;
const SCHEME = /^oci(\+http)?:\/\//;
const MOST_CHARACTERS = 255; // of registry and repository together, as many clients have it

/** Whether the source of an image is in a registry. */
export function isReference(source: string): boolean {
  return SCHEME.test(source);
}

/** Whether it is a digest as manifests have it, of the one algorithm that all registries know. */
export function isDigest(text: string): boolean {
  return DIGEST.test(text);
}

/**
 * Reads `oci://HOST[:PORT]/PATH[:TAG][@sha256:HEX]`; no registry is the default. `oci+http://` is a registry
 * without TLS, on this host alone: what is said of the source holds for its updates too, which an option
 * would not. Throws {@linkcode UsageError}.
 */
export function parseReference(source: string): Reference {
  const refuse = (why: string): never => {
    throw new UsageError({
      what: `Cannot read ${quoted(withoutLogin(source))}: ${why}`,
      advice: "Write oci://HOST[:PORT]/PATH[:TAG][@sha256:HEX]",
    });
  };
  const [scheme = ""] = SCHEME.exec(source) ?? [refuse("it does not begin with oci://")];
  const rest = source.slice(scheme.length);
  const [, name = "", digest] = /^([^@]*)(?:@(sha256:.*))?$/.exec(rest) ??
    [refuse(rest.includes("/") && rest.indexOf("@") < rest.indexOf("/") ? LOGIN : NO_DIGEST)];
  if (digest !== undefined && !isDigest(digest)) refuse(NO_DIGEST);
  const slash = name.indexOf("/");
  if (slash < 0) refuse("it has no path");
  const registry = name.slice(0, slash).toLowerCase();
  const [, repository = "", tag] = /^([^:]*)(?::(.*))?$/.exec(name.slice(slash + 1)) ?? [];
  if (!isHost(registry)) refuse("it has no valid host");
  if (!REPOSITORY.test(repository)) {
    refuse("its path has other characters than a-z, 0-9, and single . _ - / between them");
  }
  if (registry.length + 1 + repository.length > MOST_CHARACTERS) {
    refuse(`its host and path have more than ${MOST_CHARACTERS} characters`);
  }
  if (tag !== undefined && !TAG.test(tag)) refuse("its tag is not valid");
  const isPlain = scheme !== "oci://";
  if (isPlain && !isLoopback(registry)) refuse("only a registry of this host may be without TLS");
  return { registry, repository, tag: tag ?? "latest", digest: digest ?? null, isPlain };
}

const LOGIN = "it has a login in it, which belongs into the file that podman login writes";
const NO_DIGEST = "its digest is not sha256: and 64 hexadecimal digits in lower case";

/** The reference as {@linkcode parseReference} reads it. */
export function referenceText({ registry, repository, tag, digest, isPlain }: Reference): string {
  const scheme = isPlain ? "oci+http" : "oci";
  return `${scheme}://${registry}/${repository}:${tag}${digest === null ? "" : `@${digest}`}`;
}

/** The source without what stands before its last "@", but for that of a digest. */
function withoutLogin(source: string): string {
  return source.replace(/^(\w+(?:\+\w+)?:\/\/)?.*@(?!sha256:)/s, "$1");
}

function isHost(registry: string): boolean {
  return HOST.test(registry) && URL.canParse(`https://${registry}/`);
}

/** Whether the registry is on this host, by its name. */
function isLoopback(registry: string): boolean {
  const host = registry.replace(/:\d+$/, "");
  return host === "localhost" || host === "[::1]" ||
    host.startsWith("127.") && readCidr(host) !== null;
}
