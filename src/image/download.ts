// SPDX-License-Identifier: GPL-2.0-or-later
import { SystemFailure } from "../errors.ts";
import {
  cannotFetch,
  type HttpOptions,
  httpRequest,
  type HttpResponse,
  unexpectedStatus,
} from "./http.ts";
import { Broken } from "./http_message.ts";
import { PartialFile, type PartialFileOptions } from "./partial_file.ts";
import { shownUrl } from "./url_login.ts";
import { quoted } from "../quoted.ts";
import { sha256 } from "../sha256.ts";
import { sleep } from "../wait.ts";

/** A file that a server has, and what is known of it. */
export interface DownloadRequest {
  readonly url: URL;
  /** Sent to the URL's own origin only. */
  readonly headers?: Readonly<Record<string, string>>;
  /** The promised length, or null. */
  readonly bytes: number | null;
  /** The promised SHA-256 in hexadecimal, or null. */
  readonly sha256: string | null;
  readonly mostBytes: number;
}

export interface DownloadOptions extends HttpOptions, PartialFileOptions {
  /** Told how many bytes there are, and how many there will be, if the server says so. */
  readonly onBytes?: (bytes: number, total: number | null) => void;
  /** How long to wait before the second try, in milliseconds; then twice as long each time. */
  readonly pauseMs?: number;
}

/** A file that was downloaded and is as promised. Disposing of it removes it. */
export interface Downloaded extends AsyncDisposable {
  readonly path: string;
  readonly bytes: number;
  readonly sha256: string;
  /** What the server calls this version: an ETag or a date; null if it does not. */
  readonly version: string | null;
}

const PAUSE_MS = 1000;
const MOST_TRIES = 3;
/** With less than this, a try was in vain. */
const PROGRESS_BYTES = 1024 ** 2;
const BUFFER_BYTES = 1024 ** 2;

/**
 * Downloads to a file in the directory. Continues what a broken transfer left there, also an earlier
 * process's. A file that is not as promised is removed. Two downloads of one file wait for each other, until
 * what the first gave is disposed of. Throws SystemFailure.
 */
export async function download(
  request: DownloadRequest,
  options: DownloadOptions,
): Promise<Downloaded> {
  const file = await PartialFile.open(await nameOf(request), options);
  try {
    if (request.sha256 === null || file.sha256() !== request.sha256) {
      await transferInTries(request, file, options);
      refuseOther(request, file);
    }
    const { path, bytes, version } = file;
    return {
      path,
      bytes,
      version,
      sha256: file.sha256(),
      [Symbol.asyncDispose]: () => file.remove(),
    };
  } catch (error) {
    if (error instanceof WrongFile || file.bytes === 0) await file.remove();
    else file.close();
    options.signal.throwIfAborted();
    throw error;
  }
}

/** The same for the same file, also for another process. */
async function nameOf({ url, sha256: promised }: DownloadRequest): Promise<string> {
  if (promised !== null && !/^[\da-f]{64}$/.test(promised)) {
    throw new SystemFailure({
      what: `Cannot download ${shownUrl(url)}: ${quoted(promised)} is no SHA-256`,
      advice: "Use the 64 hexadecimal digits that sha256sum prints, in small letters",
    });
  }
  return promised ?? `url-${await sha256(url.origin + url.pathname + url.search)}`;
}

/** What the server sends is not what was promised, or too much. */
class WrongFile extends SystemFailure {}

function wrongFile(url: URL, why: string, advice: string): WrongFile {
  return new WrongFile({ what: `Cannot use ${shownUrl(url)}: ${why}`, advice });
}

function refuseOther({ url, bytes, sha256 }: DownloadRequest, file: PartialFile): void {
  const found = file.sha256();
  if (sha256 !== null && found !== sha256) {
    throw wrongFile(
      url,
      `its SHA-256 is ${found}, not ${sha256}`,
      "Check the SHA-256. If it is right, somebody has changed the file on the server",
    );
  }
  if (bytes !== null && file.bytes !== bytes) throw wrongLength(url, file.bytes, bytes);
}

function wrongLength(url: URL, bytes: number, promised: number): WrongFile {
  return wrongFile(url, `it has ${bytes} bytes, not ${promised}`, "Check the URL");
}

/** Tries until it has all, or until several tries in a row brought next to nothing. */
async function transferInTries(
  request: DownloadRequest,
  file: PartialFile,
  options: DownloadOptions,
): Promise<void> {
  const { signal, pauseMs = PAUSE_MS } = options;
  for (let failed = 0;;) {
    const before = file.bytes;
    try {
      return await transfer(request, file, options);
    } catch (error) {
      signal.throwIfAborted();
      failed = file.bytes - before < PROGRESS_BYTES ? failed + 1 : 0;
      const mayMend = isBroken(error) || file.bytes > 0 && isRefused(error);
      if (!mayMend || failed === MOST_TRIES) throw error;
      await sleep(pauseMs * 2 ** failed, signal);
    }
  }
}

function isBroken(error: unknown): boolean {
  return error instanceof Error && error.cause instanceof Broken;
}

/** Whether nothing listens there: a server that has just sent something may come back. */
function isRefused(error: unknown): boolean {
  return error instanceof Error && error.cause instanceof Deno.errors.ConnectionRefused;
}

/** Gets what the file lacks. */
async function transfer(
  request: DownloadRequest,
  file: PartialFile,
  options: DownloadOptions,
): Promise<void> {
  const mayContinue = file.bytes > 0 && (file.version !== null || request.sha256 !== null);
  const headers = mayContinue ? rangeHeaders(request, file) : request.headers;
  using response = await httpRequest({ url: request.url, headers }, options);
  const total = await totalBytes(response, file);
  if (total !== null) refuseLength(total, request);
  await receive(response, file, { ...options, request, total });
}

function rangeHeaders(
  { headers }: DownloadRequest,
  { bytes, version }: PartialFile,
): Record<string, string> {
  const range = { ...headers, range: `bytes=${bytes}-` };
  return version === null ? range : { ...range, "if-range": version };
}

/** The whole length of what the answer is a part of. Begins again if it is not the part that is missing. */
async function totalBytes(response: HttpResponse, file: PartialFile): Promise<number | null> {
  const { status, headers, url } = response;
  const version = versionOf(headers);
  if (status === 200) {
    await file.restart(version);
    return response.promisedBytes;
  }
  if (status === 206 || status === 416) {
    const [, start, total] =
      /^bytes (\d+)-\d+\/(\d+|\*)$/.exec(headers.get("content-range") ?? "") ??
        [];
    const isRest = status === 206 && Number(start) === file.bytes &&
      (version === null || file.version === null || version === file.version);
    if (isRest) return total === "*" ? null : Number(total);
    await file.restart(null);
    throw cannotFetch(url, new Broken("the server has another version of it than before"));
  }
  if (status < 500 && status !== 408 && status !== 429) throw unexpectedStatus(response);
  throw cannotFetch(url, new Broken(`the server answers with the status ${status}`));
}

/** What names a version well enough to continue it: RFC 9110, section 13.1.5. Null if nothing does. */
export function versionOf(headers: Headers): string | null {
  const etag = headers.get("etag");
  return etag !== null && /^"[!-~]{0,200}"$/.test(etag) ? etag : headers.get("last-modified");
}

function refuseLength(total: number, { url, bytes, mostBytes }: DownloadRequest): void {
  if (total > mostBytes) throw tooLong(url, mostBytes);
  if (bytes !== null && total !== bytes) throw wrongLength(url, total, bytes);
}

function tooLong(url: URL, mostBytes: number): WrongFile {
  return wrongFile(url, `it has more than ${mostBytes} bytes`, "Check the URL");
}

/** Appends the body to the file. Reads ahead while a thread writes. */
async function receive(
  response: HttpResponse,
  file: PartialFile,
  { request: { url, bytes, mostBytes }, total, onBytes }: DownloadOptions & {
    readonly request: DownloadRequest;
    readonly total: number | null;
  },
): Promise<void> {
  const most = total ?? bytes ?? mostBytes;
  let [buffer, other] = [new Uint8Array(BUFFER_BYTES), new Uint8Array(BUFFER_BYTES)];
  let writing = Promise.resolve();
  try {
    for (;;) {
      const length = await response.read(buffer);
      await writing;
      if (length === null) break;
      onBytes?.(file.bytes + length, total);
      if (file.bytes + length > most) throw tooLong(url, most);
      writing = file.append(buffer.subarray(0, length));
      writing.catch(() => {}); // it is told above or below
      [buffer, other] = [other, buffer];
    }
    if (total !== null && file.bytes < total) throw new Broken("the server sent only a part");
  } catch (error) {
    throw error instanceof SystemFailure ? error : cannotFetch(response.url, error);
  } finally {
    await writing;
  }
}
