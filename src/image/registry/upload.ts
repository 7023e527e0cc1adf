// SPDX-License-Identifier: GPL-2.0-or-later
import { SystemFailure } from "../../errors.ts";
import { isLoopbackHost } from "../address_policy.ts";
import type { HttpResponse, RequestBody } from "../http.ts";
import { Broken } from "../http_message.ts";
import type { RegistryClient } from "./registry_client.ts";
import { registryFailure } from "./registry_failure.ts";
import { shownUrl } from "../url_login.ts";
import { retry } from "../../wait.ts";

const TRIES = 3;
const PAUSE_MS = 1000;

/** Bytes that can be sent several times, and what they are called. */
export interface Blob extends RequestBody {
  /** `sha256:<hex>` of them. */
  readonly digest: string;
}

/** How to {@linkcode upload}. */
export interface UploadOptions {
  readonly signal: AbortSignal;
  /** Told how many bytes were sent. A try that fails begins again. */
  readonly onSent?: (bytes: number) => void;
  /** How long to wait before another try, in milliseconds. */
  readonly pauseMs?: number;
}

/**
 * Puts a blob into the registry, unless it is there, in one request: what all registries take. Tries again
 * after a transfer that broke. Throws SystemFailure.
 */
export async function upload(
  client: RegistryClient,
  blob: Blob,
  { signal, onSent, pauseMs = PAUSE_MS }: UploadOptions,
): Promise<void> {
  const isTransient = (error: unknown): boolean =>
    error instanceof Error && error.cause instanceof Broken;
  await retry(async () => {
    if (!await isThere(client, blob)) await send(client, blob, onSent);
  }, { tries: TRIES, pauseMs, signal, isTransient });
  onSent?.(blob.bytes);
}

async function isThere(client: RegistryClient, { digest, bytes }: Blob): Promise<boolean> {
  using response = await client.request({ url: client.url(`blobs/${digest}`), method: "HEAD" });
  const length = response.headers.get("content-length");
  return response.status === 200 && (length === null || Number(length) === bytes);
}

async function send(
  client: RegistryClient,
  blob: Blob,
  onSent: UploadOptions["onSent"],
): Promise<void> {
  const { registry, repository } = client.reference;
  const what = `Cannot push to "${registry}/${repository}"`;
  using started = await client.request({
    url: client.url("blobs/uploads/"),
    method: "POST",
    body: { bytes: 0, chunks: [] },
  });
  if (started.status !== 202) throw await failure(started, what);
  const url = locationOf(started);
  url.searchParams.set("digest", blob.digest);
  const headers = { "content-type": "application/octet-stream" };
  using response = await client.request({
    url,
    method: "PUT",
    headers,
    body: counted(blob, onSent),
  });
  if (response.status !== 201) throw await failure(response, what);
}

/** The blob, which tells how much of it was taken, from the start each time. */
function counted(blob: Blob, onSent: UploadOptions["onSent"]): RequestBody {
  const { bytes } = blob;
  if (onSent === undefined) return blob;
  return {
    bytes,
    chunks: {
      async *[Symbol.asyncIterator]() {
        let sent = 0;
        for await (const chunk of blob.chunks) {
          yield chunk;
          onSent(sent += chunk.length);
        }
      },
    },
  };
}

/** The failure of an answer, after which another try may help if the server is at fault. */
async function failure(response: HttpResponse, what: string): Promise<SystemFailure> {
  const failure = await registryFailure(response, { what });
  if (response.status < 500) return failure;
  const { message, advice } = failure;
  const reason = failure.cause instanceof Error ? failure.cause.message : "";
  return new SystemFailure({ what: message, advice, cause: new Broken(reason) });
}

/** Where the blob is to be sent. Throws SystemFailure if a registry may not send us there. */
function locationOf({ headers, url, loops }: HttpResponse): URL {
  const location = URL.parse(headers.get("location") ?? "", url);
  const isSecure = location?.protocol === "https:" || location?.protocol === url.protocol;
  if (location !== null && isSecure && (loops || !isLoopbackHost(location))) return location;
  throw new SystemFailure({
    what: `The registry at ${shownUrl(url)} wants the upload at ` +
      (location === null ? "no URL" : shownUrl(location)),
    advice: "Set X-Forwarded-Proto and Host in the proxy before the registry, which it reads",
  });
}
