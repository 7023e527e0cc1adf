// SPDX-License-Identifier: GPL-2.0-or-later
import { SystemFailure, UsageError } from "../../errors.ts";
import type { HttpOptions } from "../http.ts";
import { type CredentialPlaces, findCredentials } from "./credentials.ts";
import { ImageParts, type PushedImage } from "./image_parts.ts";
import { annotationsOf, CONFIG_TYPE, LAYER_TYPE, MANIFEST_TYPE, TITLE } from "./layout.ts";
import type { Descriptor } from "./manifest.ts";
import { inParallel } from "./parallel.ts";
import { type Reference, referenceText } from "./reference.ts";
import { digestOf, RegistryClient } from "./registry_client.ts";
import { registryFailure } from "./registry_failure.ts";
import { type Blob, upload } from "./upload.ts";

/** How an image is pushed. */
export interface PushOptions extends HttpOptions {
  readonly credentials: CredentialPlaces;
  /** What to call the image's file, without an ending, for who pulls it with other programs. */
  readonly title: string;
  /** For files without names, one for each part that is sent at the moment. */
  readonly directory: string;
  /** Told how many bytes of the image's file were sent, and how many it has. */
  readonly onBytes?: (bytes: number, total: number) => void;
  /** How long to wait before another try, in milliseconds. */
  readonly pauseMs?: number;
}

const MOST_AT_ONCE = 3;
const CONFIG = blobOf(new TextEncoder().encode("{}"));

function blobOf(bytes: Uint8Array<ArrayBuffer>): Blob {
  return { bytes: bytes.length, chunks: [bytes], digest: digestOf(bytes) };
}

/**
 * Puts an image into a registry, for {@linkcode Reference.tag}, and gives its digest. Parts that are there
 * are not sent again. The same image has the same digest each time. Throws SystemFailure.
 */
export async function push(
  image: PushedImage,
  reference: Reference,
  options: PushOptions,
): Promise<string> {
  if (reference.digest !== null) {
    throw new UsageError({
      what: `Cannot push to ${referenceText(reference)}: only its content gives an image a digest`,
      advice: "Write oci://HOST[:PORT]/PATH[:TAG]",
    });
  }
  const stop = new AbortController();
  const signal = AbortSignal.any([options.signal, stop.signal]);
  const credentials = await findCredentials(reference, options.credentials);
  const client = new RegistryClient(reference, {
    ...options,
    credentials,
    signal,
    access: "pull,push",
  });
  await upload(client, CONFIG, { ...options, signal }); // which logs in, before several do at once
  const parts = new ImageParts(image, { directory: options.directory, signal });
  const layers: Descriptor[] = [];
  let sent = 0;
  await inParallel(parts, { most: MOST_AT_ONCE, stop }, async (part) => {
    using _ = part;
    const { number, plainBytes, bytes, digest } = part;
    layers[number] = { mediaType: LAYER_TYPE, digest, size: bytes };
    let counted = 0;
    const onSent = (bytes: number): void => {
      const plain = Math.round(plainBytes * bytes / part.bytes);
      sent += plain - counted;
      counted = plain;
      options.onBytes?.(sent, image.fileBytes);
    };
    await upload(client, part, { ...options, signal, onSent });
  });
  return await putManifest(client, {
    schemaVersion: 2,
    mediaType: MANIFEST_TYPE,
    config: { mediaType: CONFIG_TYPE, digest: CONFIG.digest, size: CONFIG.bytes },
    layers: titled(layers, `${options.title}.${image.format}.zst`),
    annotations: annotationsOf(parts.facts),
  });
}

/** The layers with names for who pulls them as files: those of several sort as they belong together. */
function titled(layers: readonly Descriptor[], title: string): Descriptor[] {
  return layers.map((layer, i) => {
    const suffix = layers.length === 1 ? "" : `.${String(i).padStart(3, "0")}`;
    return { ...layer, annotations: { [TITLE]: title + suffix } };
  });
}

async function putManifest(client: RegistryClient, manifest: object): Promise<string> {
  const { registry, repository, tag } = client.reference;
  const bytes = new TextEncoder().encode(JSON.stringify(manifest));
  using response = await client.request({
    url: client.url(`manifests/${tag}`),
    method: "PUT",
    headers: { "content-type": MANIFEST_TYPE },
    body: blobOf(bytes),
  });
  const what = `Cannot push the manifest of "${registry}/${repository}:${tag}"`;
  if (response.status !== 201) throw await registryFailure(response, { what });
  const digest = digestOf(bytes);
  const said = response.headers.get("docker-content-digest");
  if (said === null || said === digest || !said.startsWith("sha256:")) return digest;
  throw new SystemFailure({
    what: `${what}: the registry has another one then, ${said}, not ${digest}`,
    advice: "Ask the registry's administrator: its storage or a proxy changes manifests",
  });
}
