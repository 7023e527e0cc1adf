// SPDX-License-Identifier: GPL-2.0-or-later
import { createHash } from "node:crypto";
import { SystemFailure } from "../../errors.ts";
import { type HttpRequest, httpRequest, type HttpResponse } from "../http.ts";
import { isDigest, type Reference } from "./reference.ts";
import { registryFailure } from "./registry_failure.ts";
import { type Login, logIn, type LoginOptions, loginRefused } from "./registry_login.ts";

/** The bytes of a manifest or an index, and what they are said to be. */
export interface RawManifest {
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** What the registry says that they are. */
  readonly mediaType: string;
  /** `sha256:<hex>` of the bytes. */
  readonly digest: string;
}

const MOST_MANIFEST_BYTES = 4 * 1024 ** 2; // as the distribution spec has it
const ACCEPT = [
  "application/vnd.oci.image.manifest.v1+json",
  "application/vnd.oci.image.index.v1+json",
  "application/vnd.docker.distribution.manifest.v2+json",
  "application/vnd.docker.distribution.manifest.list.v2+json",
].join(", ");

/** Speaks with a registry about one repository, as the OCI's distribution spec has it. */
export class RegistryClient {
  readonly reference: Reference;
  readonly #options: LoginOptions;
  readonly #base: URL;
  #login: Login | null = null;

  constructor(reference: Reference, options: LoginOptions) {
    const { registry, repository, isPlain } = reference;
    const host = registry === "docker.io" ? "registry-1.docker.io" : registry; // its own API's host
    this.reference = reference;
    this.#options = options;
    this.#base = new URL(`${isPlain ? "http" : "https"}://${host}/v2/${repository}/`);
  }

  /** The URL of a path below the repository, or of where the registry says that something is. */
  url(path: string): URL {
    return new URL(path, this.#base);
  }

  /** Whether the login that earlier requests had is over. */
  get hasExpired(): boolean {
    return this.#login !== null && performance.now() > this.#login.until;
  }

  /** The headers that the registry itself, and no other server, may get with this login. */
  get headers(): Record<string, string> {
    return this.#login === null ? {} : { authorization: this.#login.authorization };
  }

  /** What a download of the blob needs. Throws SystemFailure if it has to log in again, and cannot. */
  async blob(digest: string): Promise<{ url: URL; headers: Record<string, string> }> {
    if (this.hasExpired) {
      (await this.request({ url: this.url(`blobs/${digest}`), method: "HEAD" }))[Symbol.dispose]();
    }
    return { url: this.url(`blobs/${digest}`), headers: this.headers };
  }

  /**
   * Makes the request, after a login if the registry wants that, and gives the answer, whatever else its
   * status is. Throws SystemFailure if there is no answer, or the registry lets us not in.
   */
  async request(request: HttpRequest): Promise<HttpResponse> {
    if (this.hasExpired) this.#login = null;
    const { access, credentials } = this.#options;
    const response = await this.#send(request);
    if (!this.#wantsLogin(response)) return response;
    using _ = response;
    this.#login = await logIn(response, this.reference, this.#options);
    const again = await this.#send(request);
    if (!this.#wantsLogin(again)) return again;
    using __ = again;
    throw await loginRefused(this.reference, { access, credentials }, again);
  }

  #wantsLogin({ status, url }: HttpResponse): boolean {
    return status === 401 && url.origin === this.#base.origin;
  }

  #send(request: HttpRequest): Promise<HttpResponse> {
    const own = request.url.origin === this.#base.origin ? this.headers : {};
    return httpRequest({ ...request, headers: { ...request.headers, ...own } }, this.#options);
  }

  /** The digest that the tag points to, or null if the registry does not say. */
  async #headDigest(): Promise<string | null> {
    const { tag } = this.reference;
    using response = await this.request({
      url: this.url(`manifests/${tag}`),
      method: "HEAD",
      headers: { accept: ACCEPT },
    });
    if (response.status !== 200) throw await this.#noManifest(tag, response);
    const digest = response.headers.get("docker-content-digest");
    return digest !== null && isDigest(digest) ? digest : null;
  }

  /** The digest that the reference has, or that its tag points to now: one request. */
  async digest(): Promise<string> {
    return this.reference.digest ?? await this.#headDigest() ?? (await this.manifest()).digest;
  }

  /** The manifest with this digest, by default the one of the reference. Throws SystemFailure. */
  async manifest(
    wanted: string = this.reference.digest ?? this.reference.tag,
  ): Promise<RawManifest> {
    const url = this.url(`manifests/${wanted}`);
    using response = await this.request({ url, headers: { accept: ACCEPT } });
    if (response.status !== 200) throw await this.#noManifest(wanted, response);
    const bytes = await response.bytes(MOST_MANIFEST_BYTES);
    const digest = digestOf(bytes);
    const promised = response.headers.get("docker-content-digest");
    for (const expected of [wanted, promised]) {
      if (expected === null || !isDigest(expected) || expected === digest) continue;
      throw new SystemFailure({
        what: `The manifest that "${this.reference.registry}" sends for "${wanted}" is ` +
          `${digest}, not ${expected}`,
        advice: "Ask the registry's administrator: its storage or a proxy changes manifests",
      });
    }
    const [mediaType = ""] = (response.headers.get("content-type") ?? "").split(";");
    return { bytes, digest, mediaType: mediaType.trim() };
  }

  async #noManifest(wanted: string, response: HttpResponse): Promise<SystemFailure> {
    const { registry, repository } = this.reference;
    return await registryFailure(
      response,
      response.status === 404
        ? {
          what:
            `There is no image "${repository}${isDigest(wanted) ? "@" : ":"}${wanted}" in the ` +
            `registry "${registry}"`,
          advice: `Check its name and tag: skopeo list-tags docker://${registry}/${repository}`,
        }
        : { what: `Cannot get the manifest "${wanted}" of "${registry}/${repository}"` },
    );
  }
}

/** What the bytes are called in a registry. */
export function digestOf(bytes: Uint8Array): string {
  return `sha256:${createHash("sha256").update(bytes).digest("hex")}`;
}
