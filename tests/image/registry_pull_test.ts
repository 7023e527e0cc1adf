// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { gzipSync } from "node:zlib";
import { explain } from "../../src/errors.ts";
import { pull, type PullOptions, resolveDigest } from "../../src/image/registry/pull.ts";
import { push } from "../../src/image/registry/push.ts";
import { parseReference } from "../../src/image/registry/reference.ts";
import { digestOf, type Handler, HostileRegistry } from "../fakes/hostile_registry.ts";
import { mbrDisk, qcow2Image } from "../fakes/test_images.ts";
import {
  type TestDescriptor,
  TestRegistry,
  WITHOUT_REGISTRY as ignore,
} from "../fakes/test_registry.ts";

type Bytes = Uint8Array<ArrayBuffer>;

const MIB = 1024 ** 2;
const signal = new AbortController().signal;
const TITLE = "org.opencontainers.image.title";
const MANIFEST = "application/vnd.oci.image.manifest.v1+json";
const TAR = "application/vnd.oci.image.layer.v1.tar";

function optionsIn(directory: string, more: Partial<PullOptions> = {}): PullOptions {
  return {
    env: {},
    signal,
    credentials: { env: {}, uid: null },
    directory,
    pauseMs: 1,
    mostBytes: 300 * MIB,
    mostVirtualBytes: 300 * MIB,
    platform: { os: "linux", architecture: "amd64" },
    ...more,
  };
}

/** A raw disk with a partition, content that no compression makes shorter, and zeros. */
function testDisk(randomMib: number, allMib: number): Bytes {
  const disk = mbrDisk(allMib * MIB);
  for (let at = 65536; at < randomMib * MIB; at += 65536) {
    crypto.getRandomValues(disk.subarray(at, at + 65536));
  }
  return disk;
}

async function pulled(source: string, options: PullOptions) {
  await using image = await pull(parseReference(source), options);
  const bytes = await new Response(image.open()).bytes();
  assert.equal(bytes.length, image.fileBytes);
  const { format, virtualBytes, digest } = image;
  return { format, virtualBytes, digest, content: digestOf(bytes) };
}

/** The names of the files in the directory. */
function filesIn(directory: string): string[] {
  try {
    return [...Deno.readDirSync(directory)].map(({ name }) => name).sort();
  } catch {
    return [];
  }
}

/** What tar(1) makes of these files. */
async function tar(files: Readonly<Record<string, Bytes>>, ...args: string[]): Promise<Bytes> {
  const directory = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
  try {
    for (const [path, bytes] of Object.entries(files)) {
      await Deno.mkdir(`${directory}/${path}`.replace(/\/[^/]*$/, ""), { recursive: true });
      await Deno.writeFile(`${directory}/${path}`, bytes);
    }
    const { success, stdout } = await new Deno.Command("tar", {
      args: ["-C", directory, "-c", ...args, "."],
    }).output();
    assert(success);
    return stdout;
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

/** What zstd(1) makes of these bytes. */
async function zstd(bytes: Bytes): Promise<Bytes> {
  const child = new Deno.Command("zstd", { args: ["-qc"], stdin: "piped", stdout: "piped" })
    .spawn();
  const writing = new Blob([bytes]).stream().pipeTo(child.stdin);
  const { stdout } = await child.output();
  await writing;
  return stdout;
}

Deno.test({
  name: "what was pushed is pulled, with its digest too, and what the tag is now is known at once",
  ignore,
  async fn() {
    await using registry = await TestRegistry.start("token");
    const { host, env, directory } = registry;
    const cache = `${directory}/cache`;
    const credentials = await registry.login();
    const disk = testDisk(70, 200);
    const source = `oci://${host}/private/ci/fedora:40`;
    const image = {
      ...{ format: "raw", virtualBytes: disk.length, fileBytes: disk.length } as const,
      open: () => new Blob([disk]).stream(),
    };
    const http = { env, signal, credentials, directory: cache };
    const digest = await push(image, parseReference(source), { ...http, title: "fedora" });

    const reports: [number, number | null][] = [];
    const options = optionsIn(cache, {
      env,
      credentials,
      onBytes: (...report) => reports.push(report),
    });
    const expected = { format: "raw", virtualBytes: disk.length, digest, content: digestOf(disk) };
    assert.deepEqual(await pulled(source, options), expected);
    assert(reports.length > 70);
    assert.equal(reports.at(-1)?.[0], reports.at(-1)?.[1]);
    assert.deepEqual(await pulled(`oci://${host}/private/ci/fedora@${digest}`, options), expected);
    assert.deepEqual(filesIn(cache), []);

    const start = performance.now();
    assert.equal(await resolveDigest(parseReference(source), options), digest);
    assert(performance.now() - start < 1000);
  },
});

Deno.test({
  name: "images are pulled as oras and KubeVirt have them in a registry",
  ignore,
  async fn(context) {
    await using registry = await TestRegistry.start();
    const { host, env, directory } = registry;
    const qcow2 = qcow2Image();
    const raw = testDisk(1, 2);
    const other = await tar({ "etc/passwd": qcow2.subarray(0, 100) });
    const titled = (title: string, bytes: Bytes, type = TAR) => async () => {
      const layer = await registry.putBlob("image", bytes, type);
      return { ...layer, annotations: { [TITLE]: title } };
    };
    const plain = (bytes: Bytes, type = TAR) => () => registry.putBlob("image", bytes, type);
    const readme = titled("README.md", new TextEncoder().encode("hello"), "text/markdown");
    const cases: [string, (() => Promise<TestDescriptor>)[], Bytes, string?][] = [
      ["a file by oras", [titled("disk.qcow2", qcow2)], qcow2],
      ["a file among others", [readme, titled("disk.raw", raw)], raw],
      ["a packed file among others", [titled("disk.img.zst", await zstd(raw)), readme], raw],
      ["a file packed by gzip", [titled("x.QCOW2.gz", new Uint8Array(gzipSync(qcow2)))], qcow2],
      ["one layer without a name", [plain(qcow2, "application/octet-stream")], qcow2],
      ["a containerDisk", [plain(await tar({ "disk/disk.qcow2": qcow2 }))], qcow2],
      [
        "a containerDisk packed by gzip",
        [plain(new Uint8Array(gzipSync(await tar({ "disk/x": raw }))), `${TAR}+gzip`)],
        raw,
      ],
      [
        "a containerDisk packed by zstd, of several layers",
        [
          plain(other),
          plain(await zstd(await tar({ "disk/x": raw }, "--format=pax")), `${TAR}+zstd`),
          plain(other),
        ],
        raw,
      ],
      [
        "a containerDisk of docker's types",
        [plain(await tar({ "disk/x": raw }), "application/vnd.docker.image.rootfs.diff.tar.gzip")],
        raw,
      ],
      [
        "a containerDisk whose later layer has another disk",
        [plain(await tar({ "disk/x": raw })), plain(await tar({ "disk/y": qcow2 }))],
        qcow2,
      ],
    ];
    for (const [name, layers, disk] of cases) {
      await context.step(name, async () => {
        const put = await Promise.all(layers.map((layer) => layer()));
        const { digest } = await registry.putImage("image", "40", put);
        const options = optionsIn(`${directory}/cache`, { env });
        const found = await pulled(`oci://${host}/image:40`, options);
        assert.equal(found.content, digestOf(disk));
        assert.equal(found.digest, digest);
        assert.equal(found.format, disk === qcow2 ? "qcow2" : "raw");
        assert.deepEqual(filesIn(`${directory}/cache`), []);
      });
    }
  },
});

Deno.test({
  name: "of an index, the image for the platform is pulled, and its digest is that of the index",
  ignore,
  async fn() {
    await using registry = await TestRegistry.start();
    const { host, env, directory } = registry;
    const disks = { amd64: testDisk(1, 2), arm64: testDisk(1, 3) };
    const manifests = await Promise.all(
      Object.entries(disks).map(async ([architecture, disk]) => {
        const layer = await registry.putBlob("image", disk);
        const image = await registry.putImage("image", architecture, [layer]);
        return { ...image, platform: { os: "linux", architecture } };
      }),
    );
    const mediaType = "application/vnd.oci.image.index.v1+json";
    const index = { schemaVersion: 2, mediaType, manifests };
    const { digest } = await registry.putManifest("image", "40", index);
    for (const architecture of ["amd64", "arm64"] as const) {
      const platform = { os: "linux", architecture };
      const options = optionsIn(`${directory}/cache`, { env, platform });
      const found = await pulled(`oci://${host}/image:40`, options);
      assert.deepEqual(found.content, digestOf(disks[architecture]));
      assert.equal(found.digest, digest);
      assert.equal(await resolveDigest(parseReference(`oci://${host}/image:40`), options), digest);
    }
  },
});

/** A registry with an image of these layers, whose requests for blobs the handler may answer. */
async function openRegistry(
  layers: readonly Bytes[],
  more: {
    readonly manifest?: Readonly<Record<string, unknown>>;
    readonly layer?: Readonly<Record<string, unknown>>;
    readonly blob?: (digest: string, ...it: Parameters<Handler>) => boolean;
  } = {},
): Promise<HostileRegistry> {
  const blobs = new Map(layers.map((bytes) => [digestOf(bytes), bytes]));
  const mediaType = "application/octet-stream";
  const manifest = JSON.stringify({
    schemaVersion: 2,
    mediaType: MANIFEST,
    config: {
      mediaType: "application/vnd.oci.image.config.v1+json",
      digest: digestOf(""),
      size: 0,
    },
    layers: layers.map((bytes) => ({
      mediaType,
      digest: digestOf(bytes),
      size: bytes.length,
      ...more.layer,
    })),
    ...more.manifest,
  });
  const registry = await HostileRegistry.start();
  registry.handler = (request, response) => {
    if (request.url?.includes("/manifests/")) {
      return response.writeHead(200, { "content-type": MANIFEST }).end(manifest);
    }
    const [digest = ""] = /sha256:\w+/.exec(request.url ?? "") ?? [];
    if (more.blob?.(digest, request, response)) return;
    const bytes = blobs.get(digest);
    if (bytes === undefined) return response.writeHead(404).end();
    const start = Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? "")?.[1] ?? 0);
    response.writeHead(start === 0 ? 200 : 206, {
      "content-length": bytes.length - start,
      ...start === 0
        ? {}
        : { "content-range": `bytes ${start}-${bytes.length - 1}/${bytes.length}` },
    }).end(bytes.subarray(start));
  };
  return registry;
}

/** What is said when the image is pulled, and in which files something is left then. */
async function failureOf(
  registry: HostileRegistry,
  more: Partial<PullOptions> = {},
): Promise<{ words: string; left: string[] }> {
  const directory = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
  try {
    const words = await pulled(registry.source(), optionsIn(directory, more))
      .then(() => assert.fail("it was pulled"), explain);
    const isFilled = (name: string) => Deno.statSync(`${directory}/${name}`).size > 0;
    return { words, left: filesIn(directory).filter(isFilled) };
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

/** The annotations of an image that was pushed. */
function facts(bytes: Bytes, more: Readonly<Record<string, unknown>> = {}) {
  const annotations = {
    "vnd.libvirt-gci.template.format": "raw",
    "vnd.libvirt-gci.template.virtual-size": String(bytes.length),
    "vnd.libvirt-gci.template.size": String(bytes.length),
    "vnd.libvirt-gci.template.digest": digestOf(bytes),
    ...more,
  };
  return { manifest: { annotations } };
}

const DISK = testDisk(1, 2);

Deno.test("an image of others' layers is what its registry says, and the same with it", async () => {
  await using registry = await openRegistry([DISK], facts(DISK));
  const directory = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
  assert.equal((await pulled(registry.source(), optionsIn(directory))).content, digestOf(DISK));
  await Deno.remove(directory, { recursive: true });
});

for (
  const [said, layers, more, why] of [
    [
      "a length that its parts have not",
      [DISK],
      facts(DISK, {
        "vnd.libvirt-gci.template.size": "1000",
      }),
      /its parts are 2097152 bytes, not 1000/,
    ],
    [
      "the name raw for qcow2",
      [qcow2Image()],
      facts(qcow2Image()),
      /it calls itself raw, and is qcow2/,
    ],
    ["more bytes than are allowed", [DISK], {}, /has 2097152 bytes, more than the 1048576/],
    [
      "zeros for a bomb",
      [await zstd(mbrDisk(100 * MIB))],
      {},
      /unpacks to more than 1048576 bytes/,
    ],
    [
      "zeros for a bomb in parts",
      [await zstd(mbrDisk(100 * MIB))],
      facts(mbrDisk(100 * MIB)),
      /unpacks to 104857600 bytes, more/,
    ],
    ["half a packed file", [(await zstd(DISK)).slice(0, 1000)], {}, /is cut off/],
    ["half a disk", [DISK.slice(0, MIB)], {}, /is cut off: its partitions/],
    ["a web page", [new TextEncoder().encode("<!doctype html>")], {}, /is a web page/],
    [
      "a disk that the host's file is behind",
      [qcow2Image().with(15, 104).with(19, 5)],
      {},
      /has a backing file/,
    ],
    [
      "an archive without a disk",
      [await tar({ "etc/disk/x": DISK })],
      tarLayer(),
      /no file "disk\/NAME"/,
    ],
    [
      "an archive of two disks",
      [await tar({ "disk/x": new Uint8Array(9), "disk/y": DISK })],
      tarLayer(),
      /several disks: "disk\/. disk\/."|several disks: "disk/,
    ],
    [
      "half an archive",
      [(await tar({ "disk/x": DISK })).slice(0, MIB)],
      tarLayer(),
      /no tar archive that is whole: it ends amid/,
    ],
    ["an archive that is none", [DISK], tarLayer(), /no tar archive that is whole/],
    ["no layers", [], {}, /none of its 0 layers is a disk/],
    [
      "two files",
      [DISK, qcow2Image()],
      { layer: { annotations: { [TITLE]: "a.qcow2" } } },
      /several disks: "a\.qcow2, a\.qcow2"/,
    ],
    ["two layers without names", [DISK, qcow2Image()], {}, /none of its 2 layers is a disk/],
    ["tart's format", [DISK], {
      layer: { mediaType: "application/vnd.cirruslabs.tart.disk.v2" },
    }, /tart's own format, which is not supported/],
    ["vetu's format", [DISK], {
      layer: { mediaType: "application/vnd.cirruslabs.vetu.disk.v1" },
    }, /vetu's own format/],
    ["a size that is too small", [DISK], { layer: { size: 1000 } }, /has more than 1000 bytes/],
    [
      "a size that is too large",
      [DISK],
      { layer: { size: 3 * MIB } },
      /has 2097152 bytes, not 3145728/,
    ],
    ["other bytes", [DISK], {
      blob: (_: string, __: unknown, response: Parameters<Handler>[1]) => {
        response.end(DISK.with(MIB, 255).with(MIB + 1, 255));
        return true;
      },
    }, /its SHA-256 is [0-9a-f]{64}, not/],
    ["a redirect to a metadata service", [DISK], {
      blob: (_: string, __: unknown, response: Parameters<Handler>[1]) => {
        response.writeHead(307, { location: "http://169.254.169.254/x?token=1" }).end();
        return true;
      },
    }, /metadata service/],
    ["a status for its blob", [DISK], {
      blob: (_: string, __: unknown, response: Parameters<Handler>[1]) => {
        response.writeHead(403).end();
        return true;
      },
    }, /status 403/],
  ] as const satisfies readonly [
    string,
    readonly Bytes[],
    Parameters<typeof openRegistry>[1],
    RegExp,
  ][]
) {
  Deno.test(`an image with ${said} is refused, and nothing of it is left`, async () => {
    await using registry = await openRegistry(layers, more);
    const isSmall = /bomb|more bytes/.test(said);
    const { words, left } = await failureOf(registry, isSmall ? { mostBytes: MIB } : {});
    assert.match(words, why);
    assert.doesNotMatch(words, /token=1/);
    assert.deepEqual(left, []);
  });
}

function tarLayer() {
  return { layer: { mediaType: TAR } };
}

Deno.test("a link or a sparse file in the place of a disk is refused", async () => {
  const directory = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
  try {
    await Deno.mkdir(`${directory}/disk`);
    await Deno.symlink("/etc/passwd", `${directory}/disk/x`);
    const pack = async (...args: string[]) =>
      (await new Deno.Command("tar", { args: ["-C", directory, "-c", ...args] }).output()).stdout;
    const link = await pack("disk");
    await Deno.remove(`${directory}/disk/x`);
    (await Deno.create(`${directory}/disk/x`)).close();
    await Deno.truncate(`${directory}/disk/x`, 10 * MIB);
    for (
      const [archive, why] of [[link, /no plain file: link/], [
        await pack("-S", "disk"),
        /no plain file: sparse/,
      ]] as const
    ) {
      await using registry = await openRegistry([archive], tarLayer());
      const { words, left } = await failureOf(registry);
      assert.match(words, why);
      assert.deepEqual(left, []);
    }
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
});

Deno.test("a pull that broke goes on where it ended, with another login, and what is whole is kept", async () => {
  const parts = [testDisk(2, 2), testDisk(2, 3), testDisk(2, 4)] as const;
  const whole = await new Blob([...parts]).bytes();
  const ranges: string[] = [];
  let isDown = true;
  await using registry = await openRegistry(parts, {
    ...facts(whole),
    blob: (digest, request, response) => {
      if (digest !== digestOf(parts[1])) return false;
      ranges.push(request.headers.range ?? "");
      if (!isDown) return false;
      if (request.headers.range !== undefined) return response.writeHead(500).end() !== null;
      response.writeHead(200, { "content-length": parts[1].length });
      response.write(parts[1].subarray(0, 2 * MIB), () => setTimeout(() => response.destroy(), 50));
      return true;
    },
  });
  const directory = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
  try {
    const options = optionsIn(directory);
    await assert.rejects(pulled(registry.source(), options), (error) => /500/.test(explain(error)));
    const bytesOf = (part: Bytes) => {
      const name = `${digestOf(part).slice(7)}.download`;
      return filesIn(directory).includes(name) ? Deno.statSync(`${directory}/${name}`).size : 0;
    };
    assert(bytesOf(parts[1]) > 0);
    const complete = parts.filter((part) => bytesOf(part) === part.length).length;
    assert(complete >= 1); // three begin at once, and the broken one is tried several times
    assert(filesIn(directory).every((name) => name.endsWith(".download")));
    isDown = false;
    const before = registry.requests.length;
    assert.equal((await pulled(registry.source(), options)).content, digestOf(whole));
    assert.match(ranges.at(-1) ?? "", /^bytes=[1-9]\d+-$/);
    assert.equal(registry.requests.length - before, 1 + parts.length - complete);
    assert.deepEqual(filesIn(directory), []);
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
});

Deno.test("equal parts are downloaded once", async () => {
  const part = testDisk(1, 2);
  const whole = await new Blob([part, part, part]).bytes();
  await using registry = await openRegistry([part, part, part], facts(whole));
  const directory = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
  try {
    const { content } = await pulled(registry.source(), optionsIn(directory));
    assert.equal(content, digestOf(whole));
    assert.equal(registry.requests.filter((it) => it.includes("/blobs/")).length, 1);
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
});

Deno.test("a registry that stalls fails a pull, and a pull ends when its signal aborts", async () => {
  await using registry = await openRegistry([DISK], {
    blob: (_, __, response) => {
      response.writeHead(200, { "content-length": DISK.length }).write(DISK.subarray(0, 1000));
      return true;
    },
  });
  assert.match((await failureOf(registry, { silenceMs: 100 })).words, /no answer for 0\.1 s/);
  const controller = new AbortController();
  setTimeout(() => controller.abort(new Error("cancelled")), 100);
  assert.match((await failureOf(registry, { signal: controller.signal })).words, /cancelled/);
});

Deno.test("a login goes with no blob to another server", async () => {
  await using storage = await openRegistry([DISK]);
  await using registry = await openRegistry([DISK], {
    blob: (digest, _, response) => {
      const location = `http://${storage.host}/store/${digest}?signature=secret`;
      response.writeHead(307, { location }).end();
      return true;
    },
  });
  const serve = registry.handler;
  registry.handler = (request, response) => {
    if (request.headers.authorization !== undefined) return serve(request, response);
    response.writeHead(401, { "www-authenticate": 'Basic realm="x"' }).end();
  };
  const directory = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
  try {
    const file = `${directory}/auth.json`;
    const auths = { [registry.host]: { auth: btoa("ci:hunter2") } };
    await Deno.writeTextFile(file, JSON.stringify({ auths }));
    const credentials = { env: { REGISTRY_AUTH_FILE: file }, uid: null };
    const options = optionsIn(`${directory}/cache`, { credentials });
    assert.equal((await pulled(registry.source(), options)).content, digestOf(DISK));
    assert.match(registry.requests.at(-1) ?? "", /blobs.*Basic/);
    assert.deepEqual(storage.requests, [`GET /store/${digestOf(DISK)}?signature=secret`]);
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
});

Deno.test("a token that ends amid a download is replaced, and the download goes on", async () => {
  const { now } = performance;
  let later = 0;
  performance.now = () => now.call(performance) + later;
  let tokens = 0;
  const ranges: string[] = [];
  await using registry = await openRegistry([DISK], {
    blob: (_, request, response) => {
      if (request.method === "HEAD") return false;
      ranges.push(request.headers.range ?? "");
      if (ranges.length > 1) return false;
      later = 60_000; // by which the token ends
      response.writeHead(200, { "content-length": DISK.length });
      response.write(DISK.subarray(0, 1.5 * MIB), () => setTimeout(() => response.destroy(), 50));
      return true;
    },
  });
  const serve = registry.handler;
  registry.handler = (request, response) => {
    if (request.url?.startsWith("/token")) {
      return response.end(JSON.stringify({ token: `token-${++tokens}`, expires_in: 1 }));
    }
    const isOver = later > 0 && tokens === 1;
    if (request.headers.authorization === `Bearer token-${tokens}` && !isOver) {
      return serve(request, response);
    }
    const challenge = `Bearer realm="http://${registry.host}/token"`;
    response.writeHead(401, { "www-authenticate": challenge }).end();
  };
  const directory = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
  try {
    const { content } = await pulled(registry.source(), optionsIn(directory));
    assert.equal(content, digestOf(DISK));
    assert.equal(tokens, 2);
    assert.match(ranges.at(-1) ?? "", /^bytes=[1-9]/);
  } finally {
    performance.now = now;
    await Deno.remove(directory, { recursive: true });
  }
});

/** A file system of so many MiB, or null if this user may not mount one. */
async function mount(mib: number): Promise<(AsyncDisposable & { readonly path: string }) | null> {
  const path = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
  await Deno.chmod(path, 0o700);
  const run = async (program: string, ...args: string[]): Promise<boolean> =>
    (await new Deno.Command(program, { args, stderr: "null" }).output()).success;
  const options = `size=${mib}m,mode=0700`;
  if (await run("mount", "-t", "tmpfs", "-o", options, "tmpfs", path)) {
    return {
      path,
      [Symbol.asyncDispose]: async () => {
        await run("umount", path);
        await Deno.remove(path);
      },
    };
  }
  await Deno.remove(path);
  return null;
}

Deno.test("where there is no space to unpack, that is said, and what was downloaded is kept", async () => {
  await using cache = await mount(6);
  if (cache === null) return console.log("Cannot mount a file system here");
  const disk = testDisk(4, 4);
  const packed = await zstd(disk);
  await using registry = await openRegistry([packed]);
  const options = optionsIn(cache.path);
  await assert.rejects(pulled(registry.source(), options), (error) => {
    assert.match(explain(error), /^Cannot write to a file in "\/.*\nbecause: no space left/);
    return true;
  });
  assert.deepEqual(filesIn(cache.path), [`${digestOf(packed).slice(7)}.download`]);
  const resized = ["mount", "-o", "remount,size=20m", cache.path] as const;
  assert((await new Deno.Command(resized[0], { args: resized.slice(1) }).output()).success);
  assert.equal((await pulled(registry.source(), options)).content, digestOf(disk));
  assert.equal(registry.requests.filter((it) => it.includes("/blobs/")).length, 1);
});
