// SPDX-License-Identifier: GPL-2.0-or-later
import { orFailure, SystemFailure } from "../errors.ts";
import { openDownloadDirectory } from "./download_directory.ts";
import type { Variables } from "./proxy.ts";

type Bytes = Uint8Array<ArrayBuffer>;

/** A file that was signed, which messages call `name`. */
export interface Signed {
  readonly name: string;
  readonly bytes: Bytes;
  /** A detached signature of it; null if it has its signature in itself. */
  readonly signature: Bytes | null;
}

export interface SignatureOptions {
  /** The file with the public keys that are trusted, as `gpg --export` writes it, armored or not. */
  readonly keyring: string;
  /** Where to put files for gpgv. */
  readonly directory: string;
  readonly env: Variables;
  readonly signal: AbortSignal;
}

const CLEARSIGNED = "-----BEGIN PGP SIGNED MESSAGE-----";

/** Whether the text is within its signature. */
export function isClearsigned(text: string): boolean {
  return text.trimStart().startsWith(CLEARSIGNED);
}

/**
 * The text that was signed by a key of the keyring, and nothing that stands around it. GnuPG's gpgv decides.
 * Throws SystemFailure if there is no good signature.
 */
export async function signedText(signed: Signed, options: SignatureOptions): Promise<string> {
  const { keyring, directory, env, signal } = options;
  const keys = await orFailure(Deno.readFile(keyring), {
    what: `Cannot read the keyring "${keyring}"`,
    advice: "Check its path. Export keys with gpg --export --output FILE NAME",
  });
  await openDownloadDirectory(directory);
  const dir = await Deno.makeTempDir({ dir: directory, prefix: "gpgv-" });
  try {
    const path = (name: string): string => `${dir}/${name}`;
    await Deno.writeFile(path("keyring"), dearmor(keys));
    await Deno.writeFile(path("file"), signed.bytes);
    if (signed.signature !== null) await Deno.writeFile(path("signature"), signed.signature);
    const files = signed.signature === null
      ? ["--output", path("text"), path("file")]
      : [path("signature"), path("file")];
    const args = ["--status-fd", "1", "--homedir", dir, "--keyring", path("keyring"), ...files];
    const { stdout } = await runGpgv(args, { env, signal });
    refuseUnsigned(new TextDecoder().decode(stdout), { name: signed.name, keyring });
    return await Deno.readTextFile(path(signed.signature === null ? "text" : "file"));
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
}

async function runGpgv(
  args: readonly string[],
  { env, signal }: Pick<SignatureOptions, "env" | "signal">,
): Promise<Deno.CommandOutput> {
  const command = new Deno.Command("gpgv", {
    args: [...args],
    clearEnv: true,
    env: { PATH: env["PATH"] ?? "/usr/bin:/bin", LC_ALL: "C.UTF-8" },
    stdin: "null",
    signal,
  });
  try {
    return await command.output();
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    throw new SystemFailure({
      what: 'Cannot check the signature: there is no program "gpgv"',
      advice: "Install it: apt-get install gpgv",
    });
  }
}

/** What gpgv says of a signature that is to be refused, whatever it says of others. */
const REFUSED = [
  ["BADSIG", "it was changed after it was signed"],
  ["EXPSIG", "the signature has expired"],
  ["EXPKEYSIG", "the key that signed it has expired"],
  ["REVKEYSIG", "the key that signed it was revoked"],
] as const;

/** Throws SystemFailure unless gpgv's status has a good signature and no bad one: doc/DETAILS of GnuPG. */
function refuseUnsigned(
  status: string,
  { name, keyring }: { readonly name: string; readonly keyring: string },
): void {
  const has = (word: string): boolean => new RegExp(`^\\[GNUPG:\\] ${word} `, "m").test(status);
  const [, why] = REFUSED.find(([word]) => has(word)) ?? [];
  if (why === undefined && has("GOODSIG") && has("VALIDSIG")) return;
  throw new SystemFailure({
    what: `No signature of ${name} is good by the keyring "${keyring}"`,
    cause: new Error(
      why ?? (has("NO_PUBKEY") ? "the key that signed it is not in there" : "it has no signature"),
    ),
    advice: "Check that the keyring is the publisher's, and up to date",
  });
}

const BLOCK = /-----BEGIN PGP PUBLIC KEY BLOCK-----([^]*?)-----END PGP PUBLIC KEY BLOCK-----/g;

/** Keys without the armor that gpgv does not take: RFC 9580, section 6.2. */
function dearmor(keys: Bytes): Bytes {
  const blocks = [...new TextDecoder().decode(keys).matchAll(BLOCK)].map(([, block = ""]) => {
    const text = block.replace(/\r/g, "");
    const body = text.slice(text.search(/\n[ \t]*\n/)); // behind its headers
    return Uint8Array.fromBase64(body.replace(/^=.*$/m, ""));
  });
  return blocks.length === 0 ? keys : new Uint8Array(blocks.flatMap((block) => [...block]));
}
