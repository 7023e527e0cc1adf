// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { explain } from "../../src/errors.ts";
import type { HttpOptions } from "../../src/image/http.ts";
import { parseReference, type Reference } from "../../src/image/registry/reference.ts";
import { RegistryClient } from "../../src/image/registry/registry_client.ts";
import { digestOf, type Handler, HostileRegistry } from "../fakes/hostile_registry.ts";

const signal = new AbortController().signal;
const PASSWORD = "hunter2-hunter2";
const BASIC = btoa(`ci:${PASSWORD}`);
const TOKEN = "the-token";
const MANIFEST = "application/vnd.oci.image.manifest.v1+json";

function clientOf(reference: Reference, http: Partial<HttpOptions> = {}): RegistryClient {
  const credentials = { basic: BASIC, unused: null };
  return new RegistryClient(reference, { env: {}, signal, ...http, credentials, access: "pull" });
}

/** What is said when this is asked for, which shows no secret. */
async function failureOf(task: Promise<unknown>): Promise<string> {
  const words = await task.then(() => assert.fail("it did not fail"), explain);
  for (const secret of [PASSWORD, BASIC, TOKEN]) assert(!words.includes(secret), words);
  return words;
}

/** What is said when a registry answers so. */
async function failureWith(
  handler: Handler,
  { path = "image:40", silenceMs }: { readonly path?: string; readonly silenceMs?: number } = {},
): Promise<string> {
  await using registry = await HostileRegistry.start();
  registry.handler = handler;
  const http = silenceMs === undefined ? {} : { silenceMs };
  return await failureOf(clientOf(parseReference(registry.source(path)), http).manifest());
}

/** Answers that a token of this server is needed, until one is there. */
function wanting(realm: string, then: Handler = (_, it) => it.writeHead(404).end()): Handler {
  return (request, response) => {
    if (request.headers.authorization?.startsWith("Bearer ")) return then(request, response);
    const challenge = `Bearer realm="${realm}",service="x",scope="registry:catalog:*"`;
    response.writeHead(401, { "www-authenticate": challenge }).end();
  };
}

for (
  const [location, why] of [
    ["http://169.254.169.254/latest/meta-data/", /metadata service/],
    ["http://[fe80::1]/", /link-local/],
    ["http://metadata.google.internal/", /metadata service/],
    ["http://[::ffff:169.254.169.254]/", /metadata service/],
    ["file:///etc/passwd", /redirects to what is no http/],
  ] as const
) {
  Deno.test(`a registry that redirects to ${location} is refused`, async () => {
    const words = await failureWith((_, response) => response.writeHead(307, { location }).end());
    assert.match(words, why);
  });
  Deno.test(`a registry that has its tokens at ${location} is refused`, async () => {
    const words = await failureWith(wanting(location));
    assert.match(words, location.startsWith("file") ? /server for tokens that is none/ : why);
  });
}

for (const realm of ["", "token", "//host/token", "http://ci:hunter2@127.0.0.1/token"]) {
  Deno.test(`a registry that has its tokens at "${realm}" is refused`, async () => {
    const words = await failureWith(wanting(realm));
    assert.match(words, /server for tokens that is none/);
    assert.doesNotMatch(words, /hunter2/);
  });
}

Deno.test("a registry elsewhere has its tokens neither without TLS nor on this host", async () => {
  await using proxy = await HostileRegistry.start();
  await using local = await HostileRegistry.start();
  const port = local.host.split(":")[1];
  const env = { http_proxy: `http://${proxy.host}`, no_proxy: "tokens.example,127.0.0.1" };
  const reference = { ...parseReference("oci://registry.example/image"), isPlain: true };
  const ask = (realm: string) => {
    proxy.handler = wanting(realm);
    const lookup = () => Promise.resolve(["127.0.0.1"]);
    return failureOf(clientOf(reference, { env, lookup }).manifest());
  };
  assert.match(await ask(`http://127.0.0.1:${port}/`), /server for tokens that is none/);
  assert.match(await ask(`http://localhost:${port}/`), /server for tokens that is none/);
  assert.match(
    await ask(`http://tokens.example:${port}/`),
    /no address is known of the host "tokens\.example"/,
  );
  assert.deepEqual(local.requests, []);
});

Deno.test("a registry gets the token that it is for, whatever more it asks for", async () => {
  await using registry = await HostileRegistry.start();
  registry.handler = (request, response) => {
    if (request.url?.startsWith("/token")) return response.end(JSON.stringify({ token: TOKEN }));
    const bytes = "{}";
    wanting(`http://${registry.host}/token?scope=registry:catalog:*&a=b`, (_, it) => {
      it.writeHead(200, { "content-type": MANIFEST }).end(bytes);
    })(request, response);
  };
  await clientOf(parseReference(registry.source())).manifest();
  assert.deepEqual(registry.requests, [
    "GET /v2/image/manifests/40",
    `GET /token?scope=repository%3Aimage%3Apull&a=b&service=x Basic ${BASIC}`,
    `GET /v2/image/manifests/40 Bearer ${TOKEN}`,
  ]);
});

Deno.test("no login follows a redirect to another server, nor answers what that asks for", async () => {
  await using registry = await HostileRegistry.start();
  await using other = await HostileRegistry.start();
  const location = `http://${other.host}/elsewhere`;
  registry.handler = (request, response) => {
    if (request.url?.startsWith("/token")) return response.end(JSON.stringify({ token: TOKEN }));
    const redirect: Handler = (_, it) => it.writeHead(307, { location }).end();
    wanting(`http://${registry.host}/token`, redirect)(request, response);
  };
  other.handler = (_, response) => {
    response.writeHead(401, { "www-authenticate": 'Basic realm="x"' }).end();
  };
  const words = await failureOf(clientOf(parseReference(registry.source())).manifest());
  assert.match(words, /status 401/);
  assert.deepEqual(other.requests, ["GET /elsewhere"]);
  // Nor does the password, which only the server for tokens gets.
  registry.handler = (request, response) => {
    if (request.url?.startsWith("/token")) return response.writeHead(307, { location }).end();
    wanting(`http://${registry.host}/token`)(request, response);
  };
  await failureOf(clientOf(parseReference(registry.source())).manifest());
  assert.deepEqual(other.requests.slice(1), ["GET /elsewhere"]);
});

for (
  const [said, answer] of [
    ["no JSON", "no token"],
    ["no token", "{}"],
    ["a token of two lines", JSON.stringify({ token: `${TOKEN}\r\nx: y` })],
    ["a list", "[]"],
    ["null", "null"],
    ["64 KiB and more", `{"token":"${"x".repeat(70_000)}"}`],
  ] as const
) {
  Deno.test(`a server for tokens that sends ${said} is an error`, async () => {
    await using registry = await HostileRegistry.start();
    registry.handler = (request, response) => {
      if (request.url?.startsWith("/token")) return response.end(answer);
      wanting(`http://${registry.host}/token`)(request, response);
    };
    const words = await failureOf(clientOf(parseReference(registry.source())).manifest());
    assert.match(words, /server for tokens .* sends none|more than \d+ bytes/);
  });
}

Deno.test("a token that is refused is not asked for again and again", async () => {
  await using registry = await HostileRegistry.start();
  registry.handler = (request, response) => {
    if (request.url?.startsWith("/token")) return response.end(JSON.stringify({ token: TOKEN }));
    const challenge = `Bearer realm="http://${registry.host}/token"`;
    response.writeHead(401, { "www-authenticate": challenge }).end();
  };
  const words = await failureOf(clientOf(parseReference(registry.source())).manifest());
  assert.match(words, /may not pull/);
  assert.equal(registry.requests.length, 3);
});

Deno.test("a registry that wants a login of another kind is told apart", async () => {
  const words = await failureWith((_, response) => {
    response.writeHead(401, { "www-authenticate": "Negotiate" }).end();
  });
  assert.match(words, /login of a kind that is not supported/);
});

for (
  const [said, handler, why, path] of [
    ["more than 4 MiB", (response) => {
      response.writeHead(200, { "content-length": 5_000_000 }).end("x".repeat(5_000_000));
    }, /more than 4194304 bytes/],
    ["without end", (response) => {
      const more = () => response.write("x".repeat(100_000), (error) => error ? 0 : more());
      more();
    }, /more than 4194304 bytes/],
    ["half of it", (response) => {
      response.writeHead(200, { "content-length": 100 });
      response.write("{", () => response.destroy());
    }, /connection (ended too soon|broke)/],
    ["nothing", () => {}, /no answer for 0\.2 s/],
    ["half of it, and then nothing", (response) => {
      response.writeHead(200, { "content-length": 100 });
      response.write("{");
    }, /no answer for 0\.2 s/],
    [
      "another than the digest says",
      (response) => response.end("{}"),
      /sends for "sha256:0+" is sha256:44136f.*, not sha256:0+\n.*storage or a proxy/,
      `image@sha256:${"0".repeat(64)}`,
    ],
    ["another than its own header says", (response) => {
      response.setHeader("docker-content-digest", `sha256:${"1".repeat(64)}`);
      response.end("{}");
    }, /sends for "40" is sha256:44136f.*, not sha256:1+/],
    [
      "an error in many words",
      (response) => {
        const errors = [{ code: "DENIED", message: `\u001b[31m${"x".repeat(5000)}`, detail: {} }];
        response.writeHead(403).end(JSON.stringify({ errors }));
      },
      /^Cannot get the manifest "40" of ".*\/image"\n.*status 403: DENIED: .{1900,2100}…\nWhat to do/,
    ],
    [
      "an error that is none",
      (response) => response.writeHead(500).end('{"errors":[null,5,{"code":[]}]}'),
      /status 500\n?$/,
    ],
  ] as const satisfies readonly [
    string,
    (response: Parameters<Handler>[1]) => void,
    RegExp,
    string?,
  ][]
) {
  Deno.test(`a registry that sends ${said} for a manifest is an error`, async () => {
    const words = await failureWith((_, response) => handler(response), {
      path: path ?? "image:40",
      silenceMs: said.includes("nothing") ? 200 : 10_000,
    });
    assert.match(words, why);
  });
}

Deno.test("whether a tag has changed is known by one request", async () => {
  await using registry = await HostileRegistry.start();
  const digest = digestOf("{}");
  registry.handler = (_, response) => response.setHeader("docker-content-digest", digest).end();
  assert.equal(await clientOf(parseReference(registry.source())).digest(), digest);
  assert.deepEqual(registry.requests, ["HEAD /v2/image/manifests/40"]);
  const pinned = parseReference(registry.source(`image@${digest}`));
  assert.equal(await clientOf(pinned).digest(), digest);
  assert.equal(registry.requests.length, 1);
});

Deno.test("without a digest in its answer, a registry is asked for the manifest itself", async () => {
  await using registry = await HostileRegistry.start();
  registry.handler = (_, response) => response.end("{}");
  const client = clientOf(parseReference(registry.source()));
  assert.equal(await client.digest(), digestOf("{}"));
  assert.deepEqual(registry.requests.map((it) => it.split(" ")[0]), ["HEAD", "GET"]);
});
