// SPDX-License-Identifier: GPL-2.0-or-later
import { SystemFailure } from "../errors.ts";
import { orMissing } from "../files.ts";
import { type Checksum, findChecksum } from "./checksums.ts";
import { type HttpOptions, httpRequest, unexpectedStatus } from "./http.ts";
import { ImageFile } from "./image_file.ts";
import { isClearsigned, signedText } from "./signature.ts";
import { fileNameOf, type FileSource, type HttpSource } from "./source.ts";
import { shownUrl } from "./url_login.ts";
import { quoted } from "../quoted.ts";

type Bytes = Uint8Array<ArrayBuffer>;
type ImageSource = FileSource | HttpSource;

/** How to read what the publisher says. */
export interface PublishedOptions extends HttpOptions {
  /** A file with the keys that may sign it; null if no signature is wanted. */
  readonly keyring: string | null;
  /** Where to put files for gpgv. */
  readonly directory: string;
}

const ADVICE = "Check that they are those of the image, by SHA-256 or SHA-512";
const MOST_CHECKSUM_BYTES = 4 * 1024 ** 2;
/** What publishers put behind a file's name for the name of its signature. */
const SIGNATURE_ENDINGS = [".gpg", ".sign", ".asc", ".sig"];

/** The image's checksum in the publisher's file. Throws SystemFailure if it has none. */
export async function publishedChecksum(
  source: ImageSource,
  checksums: ImageSource,
  options: PublishedOptions,
): Promise<Checksum> {
  const name = nameOf(checksums);
  const text = await checksumText(checksums, options);
  const fileName = fileNameOf(source);
  try {
    const found = findChecksum(text, fileName);
    if (found !== null) return found;
  } catch (cause) {
    throw new SystemFailure({ what: `Cannot use the checksums ${name}`, cause, advice: ADVICE });
  }
  throw new SystemFailure({
    what: `The checksums ${name} have none of ${quoted(fileName)}`,
    advice: ADVICE,
  });
}

/** The text of the checksums, as far as it is signed if there is a keyring. */
async function checksumText(checksums: ImageSource, options: PublishedOptions): Promise<string> {
  const { keyring } = options;
  const name = nameOf(checksums);
  if (keyring === null && checksums.kind === "http" && checksums.url.protocol === "http:") {
    throw new SystemFailure({
      what: `Anybody on the way could change the checksums ${name}: they have no TLS`,
      advice: "Use an https:// URL, or give --keyring to check their signature",
    });
  }
  const bytes = await readSmall(checksums, options);
  if (bytes === null) {
    throw new SystemFailure({
      what: `There are no checksums ${name}`,
      advice: "Check the path or the URL of --checksums",
    });
  }
  const text = new TextDecoder().decode(bytes);
  if (keyring === null) return text;
  const signature = isClearsigned(text) ? null : await findSignature(checksums, options);
  return await signedText({ name, bytes, signature }, { ...options, keyring });
}

async function findSignature(checksums: ImageSource, options: HttpOptions): Promise<Bytes> {
  for (const ending of SIGNATURE_ENDINGS) {
    const found = await readSmall(withEnding(checksums, ending), options);
    if (found !== null) return found;
  }
  throw new SystemFailure({
    what: `There is no signature of the checksums ${nameOf(checksums)}: none of its name with ` +
      SIGNATURE_ENDINGS.join(", "),
    advice: "Give --checksums the file that is signed, or omit --keyring",
  });
}

function withEnding(source: ImageSource, ending: string): ImageSource {
  if (source.kind === "file") return { kind: "file", path: source.path + ending };
  const url = new URL(source.url);
  url.pathname += ending;
  return { kind: "http", url };
}

function nameOf(source: ImageSource): string {
  return source.kind === "file" ? `"${source.path}"` : shownUrl(source.url);
}

/** A small file; null if there is none. */
async function readSmall(source: ImageSource, options: HttpOptions): Promise<Bytes | null> {
  if (source.kind === "http") {
    using response = await httpRequest({ url: source.url }, options);
    if (response.status === 404) return null;
    if (response.status !== 200) throw unexpectedStatus(response);
    return await response.bytes(MOST_CHECKSUM_BYTES);
  }
  if (await orMissing(Deno.stat(source.path)) === null) return null;
  using file = await ImageFile.open(source.path, nameOf(source));
  return await file.read(0, MOST_CHECKSUM_BYTES);
}
