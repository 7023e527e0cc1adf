// SPDX-License-Identifier: GPL-2.0-or-later
import { createHash } from "node:crypto";
import type { CredentialPlaces } from "../../src/image/registry/credentials.ts";

const PROGRAM = "docker-registry";
export const USER = "ci";
export const PASSWORD = "hunter2-hunter2";
/** What `htpasswd -nbB` makes of these two: the registry takes nothing but bcrypt. */
const HTPASSWD = `${USER}:$2b$05$abcdefghijklmnopqrstuuM6LdIRFtSO2kPdsnQR8QqPt6tFqthsy\n`;
const ISSUER = "test";

/** Whether tests with a real registry cannot run here, which they say then. */
export const WITHOUT_REGISTRY = !await isThere(PROGRAM) || !await isThere("openssl");
if (WITHOUT_REGISTRY) {
  console.log(`Ignoring tests: no ${PROGRAM} or openssl. Run tests/testbed/testbed.sh install`);
}

async function isThere(program: string): Promise<boolean> {
  try {
    return (await new Deno.Command(program, { args: ["version"] }).output()).code < 126;
  } catch {
    return false;
  }
}

/** How a registry lets in. */
export type Auth = "none" | "htpasswd" | "token";

/** How a manifest or a blob is named in a manifest. */
export interface TestDescriptor {
  readonly mediaType: string;
  readonly digest: string;
  readonly size: number;
  readonly annotations?: Readonly<Record<string, string>>;
}

/** Debian's docker-registry on a free port of 127.0.0.1, with TLS by a CA that it makes. */
export class TestRegistry implements AsyncDisposable {
  /** Has the CA as ca.pem, the registry's data, and whatever a test puts there. */
  readonly directory: string;
  /** Its host and port. */
  readonly host: string;
  /** The URLs that the token server was asked for. */
  readonly tokenRequests: URL[];
  readonly #stack: AsyncDisposableStack;
  readonly #client: Deno.HttpClient;
  readonly #auth: Auth;

  private constructor(
    directory: string,
    { host, tokenRequests, auth, stack }: {
      readonly host: string;
      readonly tokenRequests: URL[];
      readonly auth: Auth;
      readonly stack: AsyncDisposableStack;
    },
  ) {
    this.directory = directory;
    this.host = host;
    this.tokenRequests = tokenRequests;
    this.#stack = stack;
    this.#auth = auth;
    const caCerts = [Deno.readTextFileSync(`${directory}/ca.pem`)];
    this.#client = stack.adopt(Deno.createHttpClient({ caCerts }), (client) => client.close());
  }

  static async start(auth: Auth = "none"): Promise<TestRegistry> {
    await using stack = new AsyncDisposableStack();
    const directory = stack.adopt(
      await Deno.makeTempDir({ prefix: "libvirt-gci-test-" }),
      (path) => Deno.remove(path, { recursive: true }),
    );
    await makeCertificates(directory);
    await Deno.writeTextFile(`${directory}/htpasswd`, HTPASSWD);
    const tokenRequests: URL[] = [];
    const tokens = auth === "token" ? await startTokens(directory, tokenRequests) : null;
    if (tokens !== null) stack.defer(() => tokens.shutdown());
    await Deno.writeTextFile(`${directory}/config.yml`, configOf(directory, auth, tokens));
    const host = await startProgram(directory, stack);
    return new TestRegistry(directory, { host, tokenRequests, auth, stack: stack.move() });
  }

  /** The variables with which its certificate is trusted. */
  get env(): { SSL_CERT_FILE: string } {
    return { SSL_CERT_FILE: `${this.directory}/ca.pem` };
  }

  /** Where credentials with this password are. */
  async login(password: string = PASSWORD): Promise<CredentialPlaces> {
    const file = `${this.directory}/auth.json`;
    const auths = { [this.host]: { auth: btoa(`${USER}:${password}`) } };
    await Deno.writeTextFile(file, JSON.stringify({ auths }));
    return { env: { REGISTRY_AUTH_FILE: file }, uid: null };
  }

  /** Where the registry has a blob's bytes, to read or to spoil. */
  blobPath(digest: string): string {
    const hex = digest.replace("sha256:", "");
    const blobs = `${this.directory}/data/docker/registry/v2/blobs/sha256`;
    return `${blobs}/${hex.slice(0, 2)}/${hex}/data`;
  }

  async #fetch(path: string | URL, init: RequestInit): Promise<Response> {
    const url = new URL(path, `https://${this.host}/v2/`);
    const headers = new Headers(init.headers);
    const [, name = ""] = /^\/v2\/(.*?)\/(?:blobs|manifests)\//.exec(url.pathname) ?? [];
    if (this.#auth === "htpasswd") {
      headers.set("authorization", `Basic ${btoa(`${USER}:${PASSWORD}`)}`);
    } else if (this.#auth === "token") {
      const token = await signToken(this.directory, name, ["pull", "push"]);
      headers.set("authorization", `Bearer ${token}`);
    }
    const response = await fetch(url, { ...init, headers, client: this.#client });
    if (!response.ok) throw new Error(`${url}: ${response.status} ${await response.text()}`);
    return response;
  }

  /** Puts a blob into a repository. */
  async putBlob(
    repository: string,
    bytes: Uint8Array<ArrayBuffer>,
    mediaType = "application/octet-stream",
  ): Promise<TestDescriptor> {
    const started = await this.#fetch(`${repository}/blobs/uploads/`, { method: "POST" });
    await started.body?.cancel();
    const digest = `sha256:${createHash("sha256").update(bytes).digest("hex")}`;
    const url = new URL(started.headers.get("location") ?? "");
    url.searchParams.set("digest", digest);
    await (await this.#fetch(url, { method: "PUT", body: bytes })).body?.cancel();
    return { mediaType, digest, size: bytes.length };
  }

  /** Puts a manifest there, as it is, and gives its digest. */
  async putManifest(
    repository: string,
    tag: string,
    manifest: Readonly<Record<string, unknown>> & { readonly mediaType: string },
  ): Promise<TestDescriptor> {
    const { mediaType } = manifest;
    const body = new TextEncoder().encode(JSON.stringify(manifest));
    const headers = { "content-type": mediaType };
    const path = `${repository}/manifests/${tag}`;
    await (await this.#fetch(path, { method: "PUT", headers, body })).body?.cancel();
    const digest = `sha256:${createHash("sha256").update(body).digest("hex")}`;
    return { mediaType, digest, size: body.length };
  }

  /** Puts an image of these layers there. */
  async putImage(
    repository: string,
    tag: string,
    layers: readonly TestDescriptor[],
    more: Readonly<Record<string, unknown>> = {},
  ): Promise<TestDescriptor> {
    const config = await this.putBlob(
      repository,
      new TextEncoder().encode("{}"),
      "application/vnd.oci.image.config.v1+json",
    );
    const mediaType = "application/vnd.oci.image.manifest.v1+json";
    return await this.putManifest(repository, tag, {
      schemaVersion: 2,
      mediaType,
      config,
      layers,
      ...more,
    });
  }

  async manifest(repository: string, tag: string): Promise<Record<string, unknown>> {
    const headers = { accept: "application/vnd.oci.image.manifest.v1+json" };
    return await (await this.#fetch(`${repository}/manifests/${tag}`, { headers })).json();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#stack.disposeAsync();
  }
}

/** Makes ca.pem, and server.pem with server.key for 127.0.0.1 and localhost. */
async function makeCertificates(directory: string): Promise<void> {
  const key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc"];
  const request = ["req", "-x509", ...key, "-days", "2"];
  const own = ["-subj", "/CN=CA of a test", "-keyout", "ca.key", "-out", "ca.pem"];
  await openssl([...request, ...own], directory);
  const server = ["-subj", "/CN=localhost", "-keyout", "server.key", "-out", "server.pem"];
  const extensions = ["subjectAltName=DNS:localhost,IP:127.0.0.1", "basicConstraints=CA:FALSE"];
  const added = extensions.flatMap((extension) => ["-addext", extension]);
  await openssl([...request, ...server, "-CA", "ca.pem", "-CAkey", "ca.key", ...added], directory);
}

async function openssl(args: readonly string[], cwd: string): Promise<void> {
  const { success, stderr } = await new Deno.Command("openssl", { args: [...args], cwd }).output();
  if (!success) throw new Error(new TextDecoder().decode(stderr));
}

function configOf(directory: string, auth: Auth, tokens: Deno.HttpServer | null): string {
  const file = (name: string): string => `${directory}/${name}`;
  return JSON.stringify({ // which is YAML too
    version: "0.1",
    log: { level: "info", accesslog: { disabled: true } },
    storage: { filesystem: { rootdirectory: file("data") }, delete: { enabled: true } },
    http: {
      addr: "127.0.0.1:0",
      secret: "x",
      tls: { certificate: file("server.pem"), key: file("server.key") },
    },
    ...auth === "htpasswd" ? { auth: { htpasswd: { realm: "test", path: file("htpasswd") } } } : {},
    ...tokens === null ? {} : {
      auth: {
        token: {
          realm: `https://127.0.0.1:${(tokens.addr as Deno.NetAddr).port}/token`,
          service: "the registry",
          issuer: ISSUER,
          rootcertbundle: file("ca.pem"),
        },
      },
    },
  });
}

/** Starts the registry and gives its host and port, once it listens. */
async function startProgram(directory: string, stack: AsyncDisposableStack): Promise<string> {
  const child = new Deno.Command(PROGRAM, {
    args: ["serve", `${directory}/config.yml`],
    stdout: "null",
    stderr: "piped",
    env: { OTEL_TRACES_EXPORTER: "none" },
  }).spawn();
  let said = "";
  const listening = Promise.withResolvers<string>();
  const reading = (async () => {
    for await (const text of child.stderr.pipeThrough(new TextDecoderStream())) {
      said = (said + text).slice(-10_000);
      const [, host] = /listening on ([\d.]+:\d+)/.exec(said) ?? [];
      if (host !== undefined) listening.resolve(host);
    }
    listening.reject(new Error(`${PROGRAM} ended: ${said}`));
  })();
  stack.defer(async () => {
    child.kill("SIGKILL");
    await child.status;
    await reading;
  });
  return await listening.promise;
}

/** A server that gives tokens to the user: to pull and to push what begins with "private/", or to all to pull. */
async function startTokens(directory: string, requests: URL[]): Promise<Deno.HttpServer> {
  const cert = await Deno.readTextFile(`${directory}/server.pem`);
  const key = await Deno.readTextFile(`${directory}/server.key`);
  const options = { hostname: "127.0.0.1", port: 0, cert, key, onListen: () => {} };
  return Deno.serve(options, async (request) => {
    const url = new URL(request.url);
    requests.push(url);
    const authorization = request.headers.get("authorization");
    const isUser = authorization === `Basic ${btoa(`${USER}:${PASSWORD}`)}`;
    if (authorization !== null && !isUser) return new Response("wrong password", { status: 401 });
    const [, name = "", actions = ""] = (url.searchParams.get("scope") ?? "").split(":");
    const isPublic = !name.startsWith("private/") && actions === "pull";
    const granted = isUser || isPublic ? actions.split(",") : [];
    return Response.json({ token: await signToken(directory, name, granted), expires_in: 300 });
  });
}

/** A token as docker's specification has it, signed with the server's key. */
async function signToken(directory: string, name: string, actions: string[]): Promise<string> {
  const pem = async (file: string): Promise<Uint8Array<ArrayBuffer>> =>
    Uint8Array.fromBase64(
      (await Deno.readTextFile(`${directory}/${file}`)).replace(/-----[^-]+-----/g, ""),
    );
  const certificate = (await pem("server.pem")).toBase64();
  const now = Math.floor(Date.now() / 1000);
  const claims = {
    iss: ISSUER,
    sub: USER,
    aud: "the registry",
    jti: crypto.randomUUID(),
    iat: now,
    nbf: now - 60,
    exp: now + 300,
    access: [{ type: "repository", name, actions }],
  };
  const encode = (value: string | Uint8Array): string =>
    (typeof value === "string" ? new TextEncoder().encode(value) : value)
      .toBase64({ alphabet: "base64url", omitPadding: true });
  const header = { typ: "JWT", alg: "ES256", x5c: [certificate] };
  const signed = [header, claims].map((part) => encode(JSON.stringify(part))).join(".");
  const algorithm = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" };
  const key = await crypto.subtle.importKey("pkcs8", await pem("server.key"), algorithm, false, [
    "sign",
  ]);
  const signature = await crypto.subtle.sign(algorithm, key, new TextEncoder().encode(signed));
  return `${signed}.${encode(new Uint8Array(signature))}`;
}
