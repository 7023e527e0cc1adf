// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { explain } from "../../src/errors.ts";
import {
  fetchImage,
  type FetchOptions,
  type ImageChecks,
  isUnchanged,
} from "../../src/image/fetch_image.ts";
import { type FileSource, type HttpSource, parseSource } from "../../src/image/source.ts";
import { qcow2Image } from "../fakes/test_images.ts";
import { HAS_GPG, TestKey } from "../fakes/test_key.ts";
import { CA_FILE, TLS } from "../fakes/test_tls.ts";

const IMAGE = qcow2Image();

function hashOf(algorithm: string, bytes: Uint8Array = IMAGE): string {
  return createHash(algorithm).update(bytes).digest("hex");
}

const SHA256 = hashOf("sha256");
const SHA512 = hashOf("sha512");

function source(text: string): FileSource | HttpSource {
  const parsed = parseSource(text);
  return parsed.kind === "oci" ? assert.fail() : parsed;
}

/** A publisher of images, by http and https. */
class Publisher implements AsyncDisposable {
  readonly dir = Deno.makeTempDirSync({ prefix: "libvirt-gci-test-" });
  readonly files = new Map<string, Uint8Array<ArrayBuffer>>();
  readonly requests: string[] = [];
  etag = '"v1"';
  readonly #plain = Deno.serve({ ...LOCAL }, (request) => this.#answer(request));
  readonly #tls = Deno.serve({ ...LOCAL, ...TLS }, (request) => this.#answer(request));

  http(path: string): string {
    return `http://127.0.0.1:${this.#plain.addr.port}/${path}`;
  }

  https(path: string): string {
    return `https://127.0.0.1:${this.#tls.addr.port}/${path}`;
  }

  put(path: string, content: string | Uint8Array<ArrayBuffer>): void {
    this.files.set(path, typeof content === "string" ? new TextEncoder().encode(content) : content);
  }

  #answer({ method, url }: Request): Response {
    const path = new URL(url).pathname.slice(1);
    this.requests.push(`${method} ${path}`);
    const file = this.files.get(path);
    if (file === undefined) return new Response("not here", { status: 404 });
    return new Response(file, { headers: { etag: this.etag } });
  }

  options(checks: Partial<ImageChecks> = {}, warnings: string[] = []): FetchOptions {
    return {
      env: { ...Deno.env.toObject(), SSL_CERT_FILE: CA_FILE },
      signal: new AbortController().signal,
      directory: `${this.dir}/cache`,
      mostBytes: 1e9,
      mostVirtualBytes: 1e9,
      pauseMs: 1,
      checks: { sha256: null, checksums: null, keyring: null, ...checks },
      warn: (line) => void warnings.push(line),
    };
  }

  /** Fetches the image, reads all of it, and says what warnings came. */
  async fetch(text: string, checks: Partial<ImageChecks> = {}): Promise<string[]> {
    const warnings: string[] = [];
    const { image } = await fetchImage(source(text), this.options(checks, warnings));
    await using _ = image;
    assert.deepEqual(new Uint8Array(await new Response(image.open()).arrayBuffer()), IMAGE);
    assert.equal(image.digest, `sha256:${SHA256}`);
    return warnings;
  }

  /** What it fails with, as it is printed, after which nothing is left. */
  async failureOf(text: string, checks: Partial<ImageChecks> = {}): Promise<string> {
    const failure = await this.fetch(text, checks).then(() => assert.fail("fetched"), explain);
    await Deno.mkdir(`${this.dir}/cache`, { recursive: true, mode: 0o700 });
    assert.deepEqual([...Deno.readDirSync(`${this.dir}/cache`)], []);
    return failure;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([this.#plain.shutdown(), this.#tls.shutdown()]);
    await Deno.remove(this.dir, { recursive: true });
  }
}

const LOCAL = { hostname: "127.0.0.1", port: 0, onListen: () => {} };

Deno.test("an image comes by https with a warning, and by http only with a checksum", async () => {
  await using publisher = new Publisher();
  publisher.put("disk.qcow2", IMAGE);
  const warnings = await publisher.fetch(publisher.https("disk.qcow2"));
  assert.match(warnings.join(), /^Only TLS protects "https:.*disk\.qcow2": give --sha256/);
  assert.deepEqual(await publisher.fetch(publisher.https("disk.qcow2"), { sha256: SHA256 }), []);
  assert.deepEqual(await publisher.fetch(publisher.http("disk.qcow2"), { sha256: SHA256 }), []);
  publisher.requests.length = 0;
  const failure = await publisher.failureOf(publisher.http("disk.qcow2"));
  assert.match(failure, /has no TLS, and no checksum is given\nWhat to do: Use an https/);
  assert.deepEqual(publisher.requests, []);
});

Deno.test("an image with another checksum is refused, whether it was there or was fetched", async () => {
  await using publisher = new Publisher();
  publisher.put("disk.qcow2", IMAGE);
  publisher.put("SHA512SUMS", `${"0".repeat(128)}  disk.qcow2\n`);
  await Deno.writeFile(`${publisher.dir}/disk.qcow2`, IMAGE);
  for (const text of [publisher.https("disk.qcow2"), `${publisher.dir}/disk.qcow2`]) {
    const refused = await publisher.failureOf(text, { sha256: "0".repeat(64) });
    assert.match(refused, new RegExp(`${SHA256}, not 0{64}`));
    const checksums = source(publisher.https("SHA512SUMS"));
    assert.match(
      await publisher.failureOf(text, { checksums }),
      new RegExp(`${SHA512}, not 0{128}`),
    );
  }
});

Deno.test("checksums come from a file or a URL, by SHA-256 or SHA-512", async () => {
  await using publisher = new Publisher();
  publisher.put("a/disk.qcow2", IMAGE);
  publisher.put("a/SHA256SUMS", `${SHA256} *disk.qcow2\n`);
  publisher.put("a/SHA512SUMS", `SHA512 (disk.qcow2) = ${SHA512}\n`);
  await Deno.writeFile(`${publisher.dir}/disk.qcow2`, IMAGE);
  await Deno.writeTextFile(`${publisher.dir}/SUMS`, `${SHA512}  disk.qcow2\n`);
  const images = [publisher.http("a/disk.qcow2"), `${publisher.dir}/disk.qcow2`];
  const sums = [publisher.https("a/SHA256SUMS"), publisher.https("a/SHA512SUMS")];
  for (const text of images) {
    for (const checksums of [...sums, `${publisher.dir}/SUMS`]) {
      assert.deepEqual(await publisher.fetch(text, { checksums: source(checksums) }), []);
    }
  }
});

Deno.test("checksums that are not there, that lack the image or that nothing protects are refused", async () => {
  await using publisher = new Publisher();
  publisher.put("disk.qcow2", IMAGE);
  publisher.put("SHA256SUMS", `${SHA256}  other.qcow2\n`);
  publisher.put("TWICE", `${SHA256}  disk.qcow2\n${"0".repeat(64)}  disk.qcow2\n`);
  const cases = [
    [publisher.https("none"), /There are no checksums "https:/],
    ["/nonexistent", /There are no checksums "\/nonexistent"/],
    [publisher.https("SHA256SUMS"), /have none of "disk\.qcow2"/],
    [publisher.https("TWICE"), /several checksums of "disk\.qcow2"/],
    [publisher.http("SHA256SUMS"), /could change the checksums "http:.*they have no TLS/],
  ] as const;
  for (const [checksums, word] of cases) {
    const checks = { checksums: source(checksums) };
    assert.match(await publisher.failureOf(publisher.https("disk.qcow2"), checks), word);
  }
});

Deno.test(
  "with a keyring, checksums are those that its key signed",
  { ignore: !HAS_GPG },
  async () => {
    await using publisher = new Publisher();
    await using key = await TestKey.create();
    const keyring = await key.export(`${publisher.dir}/keyring`, { armor: true });
    const sums = `${publisher.dir}/SHA256SUMS`;
    await Deno.writeTextFile(sums, `${SHA256}  disk.qcow2\n`);
    await key.sign(sums, `${sums}.sign`, "--detach-sign");
    await key.sign(sums, `${publisher.dir}/CHECKSUM`, "--clearsign");
    publisher.put("disk.qcow2", IMAGE);
    for (const name of ["SHA256SUMS", "SHA256SUMS.sign", "CHECKSUM"]) {
      publisher.put(name, await Deno.readFile(`${publisher.dir}/${name}`));
    }
    const image = publisher.http("disk.qcow2");
    for (const name of [publisher.http("SHA256SUMS"), publisher.http("CHECKSUM"), sums]) {
      assert.deepEqual(await publisher.fetch(image, { checksums: source(name), keyring }), []);
    }
    publisher.put("SHA256SUMS", `${"0".repeat(64)}  disk.qcow2\n`);
    const forged = { checksums: source(publisher.http("SHA256SUMS")), keyring };
    assert.match(await publisher.failureOf(image, forged), /it was changed after it was signed/);
    publisher.put("unsigned", `${SHA256}  disk.qcow2\n`);
    const unsigned = { checksums: source(publisher.https("unsigned")), keyring };
    assert.match(
      await publisher.failureOf(image, unsigned),
      /There is no signature of the checksums/,
    );
  },
);

Deno.test("whether a source has changed is known without fetching it", async () => {
  await using publisher = new Publisher();
  publisher.put("disk.qcow2", IMAGE);
  publisher.put("SHA256SUMS", `${SHA256}  disk.qcow2\n`);
  const path = `${publisher.dir}/disk.qcow2`;
  await Deno.writeFile(path, IMAGE);
  const checksums = source(publisher.https("SHA256SUMS"));
  const https = source(publisher.https("disk.qcow2"));
  for (
    const [from, checks] of [[https, {}], [https, { checksums }], [source(path), {}]] as const
  ) {
    const options = publisher.options(checks);
    const { image, version } = await fetchImage(from, options);
    await image.open().pipeTo(new WritableStream());
    const known = { digest: image.digest, version };
    await image[Symbol.asyncDispose]();
    publisher.requests.length = 0;
    assert(await isUnchanged(from, known, options));
    assert(!publisher.requests.includes("GET disk.qcow2"));
    assert(!await isUnchanged(from, { digest: "sha256:0", version: null }, options));
    const old = publisher.etag;
    publisher.etag = '"v2"';
    publisher.put("SHA256SUMS", `${"0".repeat(64)}  disk.qcow2\n`);
    await Deno.utime(path, 0, 0);
    assert(!await isUnchanged(from, known, options));
    publisher.etag = old;
    publisher.put("SHA256SUMS", `${SHA256}  disk.qcow2\n`);
    await Deno.utime(path, 1, 1);
  }
});
