// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { explain } from "../../src/errors.ts";
import { partBytes } from "../../src/image/registry/layout.ts";
import { push, type PushOptions } from "../../src/image/registry/push.ts";
import { parseReference } from "../../src/image/registry/reference.ts";
import { digestOf, type Handler, HostileRegistry } from "../fakes/hostile_registry.ts";
import { PASSWORD, TestRegistry, USER, WITHOUT_REGISTRY } from "../fakes/test_registry.ts";

const MIB = 1024 ** 2;
const signal = new AbortController().signal;
const NOBODY = { env: {}, uid: null };

/** Bytes that no compression makes shorter, then zeros. */
function testBytes(randomMib: number, zeroMib: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array((randomMib + zeroMib) * MIB);
  for (let at = 0; at < randomMib * MIB; at += 65536) {
    crypto.getRandomValues(bytes.subarray(at, at + 65536));
  }
  return bytes;
}

/** An image with these bytes, in chunks of a length that divides nothing. */
function imageOf(bytes: Uint8Array<ArrayBuffer>, fileBytes = bytes.length) {
  const open = () => {
    let at = 0;
    return new ReadableStream<Uint8Array<ArrayBuffer>>({
      pull(controller) {
        if (at >= bytes.length) return controller.close();
        controller.enqueue(bytes.subarray(at, at += 1_234_567));
      },
    });
  };
  return { format: "raw", virtualBytes: fileBytes, fileBytes, open } as const;
}

async function run(program: string, args: readonly string[], cwd?: string): Promise<string> {
  const { success, stdout, stderr } = await new Deno.Command(program, { args: [...args], cwd })
    .output();
  if (!success) assert.fail(`${program} ${args.join(" ")}: ${new TextDecoder().decode(stderr)}`);
  return new TextDecoder().decode(stdout);
}

Deno.test({
  name: "what was pushed, skopeo and zstd make the same file of, and a second push sends nothing",
  ignore: WITHOUT_REGISTRY,
  async fn() {
    await using registry = await TestRegistry.start("token");
    const { host, directory, env } = registry;
    const bytes = testBytes(70, 130);
    const reference = parseReference(`oci://${host}/private/ci/fedora:40`);
    const reports: number[] = [];
    const options: PushOptions = {
      env,
      signal,
      credentials: await registry.login(),
      title: "fedora",
      directory: `${directory}/cache`,
      onBytes: (sent, total) => {
        assert.equal(total, bytes.length);
        reports.push(sent);
      },
    };
    const digest = await push(imageOf(bytes), reference, options);
    assert.equal(reports.at(-1), bytes.length);
    assert(reports.length > 70 && reports.every((sent) => sent <= bytes.length));
    assert.deepEqual([...Deno.readDirSync(options.directory)], []);

    const manifest = await registry.manifest("private/ci/fedora", "40");
    const layers = manifest["layers"] as { digest: string; annotations: Record<string, string> }[];
    assert.deepEqual(
      layers.map(({ annotations }) => annotations["org.opencontainers.image.title"]),
      ["000", "001", "002", "003"].map((number) => `fedora.raw.zst.${number}`),
    );
    assert.equal(
      layers[2]?.digest,
      digestOf(await Deno.readFile(registry.blobPath(layers[2]?.digest ?? ""))),
    );
    assert.deepEqual(manifest["annotations"], {
      "vnd.libvirt-gci.template.format": "raw",
      "vnd.libvirt-gci.template.virtual-size": String(bytes.length),
      "vnd.libvirt-gci.template.size": String(bytes.length),
      "vnd.libvirt-gci.template.digest": digestOf(bytes),
    });

    await Deno.mkdir(`${directory}/certs`);
    await Deno.copyFile(`${directory}/ca.pem`, `${directory}/certs/ca.crt`);
    const login = ["--src-cert-dir", `${directory}/certs`, "--src-creds", `${USER}:${PASSWORD}`];
    const source = `docker://${host}/private/ci/fedora:40`;
    await run("skopeo", ["copy", "--quiet", ...login, source, `dir:${directory}/copy`]);
    assert.equal(digestOf(await Deno.readFile(`${directory}/copy/manifest.json`)), digest);
    const files = layers.map((layer) => layer.digest.replace("sha256:", ""));
    await run("sh", ["-c", 'cat "$@" | zstd -dqo ../plain', "sh", ...files], `${directory}/copy`);
    assert.equal(digestOf(await Deno.readFile(`${directory}/plain`)), digestOf(bytes));

    const before = await uploads(registry);
    assert.equal(await push(imageOf(bytes), { ...reference, tag: "41" }, options), digest);
    assert.deepEqual(await uploads(registry), before);
  },
});

/** When each blob was written. */
async function uploads(registry: TestRegistry): Promise<string[]> {
  const list = await run("find", [
    `${registry.directory}/data`,
    "-name",
    "data",
    "-printf",
    "%p %T@\n",
  ]);
  return list.split("\n").sort();
}

Deno.test({
  name: "who may only pull is told so, and whoever has no login",
  ignore: WITHOUT_REGISTRY,
  async fn() {
    await using registry = await TestRegistry.start("token");
    const { env, directory } = registry;
    const reference = parseReference(`oci://${registry.host}/image:40`);
    const tryWith = async (credentials: PushOptions["credentials"]) => {
      const options = { env, signal, credentials, title: "x", directory };
      const words = await push(imageOf(testBytes(1, 0)), reference, options)
        .then(() => assert.fail("it was pushed"), explain);
      assert(!words.includes(PASSWORD));
      return words;
    };
    assert.match(
      await tryWith(NOBODY),
      /^Cannot push the image "image" .* without a login\n.*podman login/,
    );
    assert.match(await tryWith(await registry.login("wrong")), /may not push the image "image"/);
  },
});

Deno.test("the parts of an image are few, and each begins where it began before", () => {
  for (const gib of [0, 1, 6, 7, 20, 100, 2000]) {
    const bytes = gib * 1024 ** 3 + 1;
    assert(Math.ceil(bytes / partBytes(bytes)) <= 100, `${gib} GiB`);
    assert.equal(partBytes(bytes) % (64 * MIB), 0);
  }
  assert.equal(partBytes(1024 ** 3), 64 * MIB);
});

/** A registry that takes all, unless the handler answers. */
async function openRegistry(
  handler: (registry: HostileRegistry, ...it: Parameters<Handler>) => boolean,
): Promise<HostileRegistry> {
  const registry = await HostileRegistry.start();
  registry.handler = (request, response) => {
    if (handler(registry, request, response)) return;
    const { method } = request;
    request.resume();
    request.on("end", () => {
      if (method === "HEAD") response.writeHead(404).end();
      else if (method === "POST") response.writeHead(202, { location: "/upload?x=1" }).end();
      else response.writeHead(201).end();
    });
  };
  return registry;
}

async function pushTo(
  registry: HostileRegistry,
  image = imageOf(testBytes(1, 0)),
  more: Partial<PushOptions> = {},
): Promise<string> {
  const directory = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
  try {
    const reference = parseReference(registry.source());
    const options = { env: {}, signal, credentials: NOBODY, title: "x", directory, pauseMs: 1 };
    const digest = await push(image, reference, { ...options, ...more });
    assert.deepEqual([...Deno.readDirSync(directory)], []);
    return digest;
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

for (
  const [said, location, why] of [
    ["at a metadata service", "http://169.254.169.254/", /metadata service/],
    ["at no URL", "http://", /wants the upload at no URL/],
    ["by another protocol", "ftp://127.0.0.1/", /wants the upload at "ftp:/],
  ] as const
) {
  Deno.test(`a registry that wants the upload ${said} is refused`, async () => {
    await using registry = await openRegistry((_, { method }, response) => {
      if (method !== "POST") return false;
      response.writeHead(202, { location }).end();
      return true;
    });
    await assert.rejects(pushTo(registry), (error) => why.test(explain(error)));
  });
}

Deno.test("an upload that broke is sent again, from its start, and the digest said at its end", async () => {
  let broken = 0;
  const received: string[] = [];
  await using registry = await openRegistry((_, request, response) => {
    const { method, url = "" } = request;
    if (method !== "PUT" || url.includes("manifests")) return false;
    const chunks: Uint8Array[] = [];
    request.on("data", (chunk: Uint8Array) => {
      chunks.push(chunk);
      if (broken < 2 && chunks.length > 3) {
        broken++;
        response.destroy();
      }
    });
    request.on("end", () => {
      received.push(`${url} ${digestOf(Buffer.concat(chunks))}`);
      response.writeHead(201).end();
    });
    return true;
  });
  await pushTo(registry);
  assert.equal(broken, 2);
  for (const line of received) {
    assert.match(line, /^\/upload\?x=1&digest=(sha256%3A([0-9a-f]{64})) sha256:\2$/);
  }
  assert.equal(received.length, 2);
});

Deno.test("a registry that is full is tried again, and its words are shown", async () => {
  let tries = 0;
  await using registry = await openRegistry((_, { method }, response) => {
    if (method !== "POST") return false;
    tries++;
    const errors = [{ code: "UNKNOWN", message: "no space left on device" }];
    response.writeHead(500).end(JSON.stringify({ errors }));
    return true;
  });
  await assert.rejects(pushTo(registry), (error) => {
    assert.match(explain(error), /^Cannot push to .*\n.*500: UNKNOWN: no space left on device/);
    return true;
  });
  assert.equal(tries, 3);
});

Deno.test("a registry without such a project is told what it needs, and is asked once", async () => {
  await using registry = await openRegistry((_, { method }, response) => {
    if (method !== "POST") return false;
    const errors = [{ code: "NAME_UNKNOWN", message: "repository name not known to registry" }];
    response.writeHead(404).end(JSON.stringify({ errors }));
    return true;
  });
  await assert.rejects(pushTo(registry), (error) => {
    assert.match(explain(error), /404: NAME_UNKNOWN: .*\nWhat to do: Check the path: some/);
    return true;
  });
  assert.equal(registry.requests.filter((it) => it.startsWith("POST")).length, 1);
});

Deno.test("a registry that refuses the manifest says why", async () => {
  await using registry = await openRegistry((_, { method, url }, response) => {
    if (method !== "PUT" || !url?.includes("manifests")) return false;
    const errors = [{
      code: "MANIFEST_INVALID",
      message: "manifest invalid",
      detail: "unknown media type: x",
    }];
    response.writeHead(400).end(JSON.stringify({ errors }));
    return true;
  });
  await assert.rejects(pushTo(registry), (error) => {
    assert.match(
      explain(error),
      /push the manifest .*\n.*MANIFEST_INVALID: .*unknown media type: x/,
    );
    return true;
  });
});

Deno.test("a registry that has another manifest then is an error", async () => {
  await using registry = await openRegistry((_, { method, url }, response) => {
    if (method !== "PUT" || !url?.includes("manifests")) return false;
    response.writeHead(201, { "docker-content-digest": digestOf("another") }).end();
    return true;
  });
  await assert.rejects(pushTo(registry), /the registry has another one then/);
});

for (
  const [said, bytes, why] of [["shorter", 2, /only 1048576/], [
    "longer",
    0.5,
    /it has more/,
  ]] as const
) {
  Deno.test(`an image that is ${said} than it was is not pushed`, async () => {
    await using registry = await openRegistry(() => false);
    const image = imageOf(testBytes(1, 0), bytes * MIB);
    await assert.rejects(pushTo(registry, image), why);
    assert(!registry.requests.some((request) => request.includes("manifests")));
  });
}

Deno.test("an image whose stream fails is not pushed, and the reason is said", async () => {
  await using registry = await openRegistry(() => false);
  let pulls = 0;
  const open = () =>
    new ReadableStream<Uint8Array<ArrayBuffer>>({
      pull(controller) {
        if (pulls++ < 2) controller.enqueue(new Uint8Array(1000));
        else controller.error(new Error("the pool went away"));
      },
    });
  const image = { ...imageOf(testBytes(1, 0)), open };
  await assert.rejects(pushTo(registry, image), /the pool went away/);
});

Deno.test("a push ends when its signal aborts, also while a registry stalls", async () => {
  const controller = new AbortController();
  await using registry = await openRegistry((_, { method, url }) => {
    if (method !== "PUT" || !url?.includes("upload")) return false;
    setTimeout(() => controller.abort(new Error("cancelled")), 50);
    return true;
  });
  const pushing = pushTo(registry, undefined, { signal: controller.signal });
  await assert.rejects(pushing, /cancelled/);
});

Deno.test("what has a digest cannot be pushed to", async () => {
  await using registry = await openRegistry(() => false);
  const reference = { ...parseReference(registry.source()), digest: digestOf("x") };
  const options = { env: {}, signal, credentials: NOBODY, title: "x", directory: "/nonexistent" };
  await assert.rejects(push(imageOf(testBytes(1, 0)), reference, options), /Cannot push to oci/);
  assert.deepEqual(registry.requests, []);
});
