// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import type { Command, Program } from "../../src/cli/command.ts";
import { gc } from "../../src/commands/gc.ts";
import { templateAdd } from "../../src/commands/template/template_add.ts";
import {
  type ListedTemplate,
  listTemplates,
  templateTable,
} from "../../src/commands/template/template_list.ts";
import { templatePush } from "../../src/commands/template/template_push.ts";
import { removeTemplate } from "../../src/commands/template/template_remove.ts";
import { templateUpdate } from "../../src/commands/template/template_update.ts";
import { SystemFailure, UsageError } from "../../src/errors.ts";
import { Connection } from "../../src/libvirt/connection.ts";
import { Domain } from "../../src/libvirt/domain.ts";
import { LibvirtError, VIR_ERR } from "../../src/libvirt/error.ts";
import { StoragePool } from "../../src/libvirt/storage_pool.ts";
import { hostMark, processMark } from "../../src/machine/process.ts";
import { findTemplate, listTemplateVolumes } from "../../src/machine/storage/template.ts";
import { volumeName } from "../../src/machine/storage/volume_names.ts";
import { createOverlay, createRawVolume } from "../../src/machine/storage/volumes.ts";
import { chooseTemplate, templateAdvice } from "../../src/policy/template_choice.ts";
import { parseConfig } from "../../src/settings/read.ts";
import { type Config, DEFAULT_CONFIG } from "../../src/settings/settings.ts";
import { TEST_HOST_URI } from "../fakes/test_host.ts";
import { mbrDisk } from "../fakes/test_images.ts";
import { TestRegistry, WITHOUT_REGISTRY } from "../fakes/test_registry.ts";
import { bareStage, type Stage } from "../fakes/test_stage.ts";
import { keepUploads, type UploadOptions } from "../fakes/test_uploads.ts";

/** A host whose template pool keeps uploads, a directory for images, and what was said. */
interface Bed extends AsyncDisposable {
  readonly stage: Stage;
  readonly connection: Connection;
  readonly contents: ReadonlyMap<string, Uint8Array>;
  readonly lines: string[];
  /** Where images are, and what is downloaded. */
  readonly directory: string;
  readonly abort: (reason: Error) => void;
  /** Runs a command of `template` with these arguments. */
  readonly run: (command: Command, given: Record<string, string>) => Promise<void>;
  /** Writes an image of this many MiB, all bytes of which are this, and gives its path. */
  readonly image: (value: number, mib?: number) => Promise<string>;
}

async function openBed(
  { config = DEFAULT_CONFIG, uri = TEST_HOST_URI, env = {}, ...options }: UploadOptions & {
    readonly config?: Config;
    readonly uri?: string;
    readonly env?: Readonly<Record<string, string | undefined>>;
  } = {},
): Promise<Bed> {
  const directory = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
  const connection = await Connection.open(uri);
  const contents = keepUploads(connection, options);
  const lines: string[] = [];
  const controller = new AbortController();
  const { signal } = controller;
  const say = (line: string) => void lines.push(line);
  const stage = bareStage(connection, { config, signal, log: say, warn: say });
  const run = async (command: Command, given: Record<string, string>): Promise<void> => {
    const values = Object.fromEntries(Object.entries(given).map(([key, value]) => [key, [value]]));
    const invocation = command.invoke(values);
    invocation.check(null);
    await invocation.run({
      settings: () => Promise.resolve(config),
      env: { XDG_CACHE_HOME: directory, ...env },
      printer: { print: say, warn: say, progress: null },
      signal,
      onHost: (body: (context: Stage) => Promise<void>) => body(stage),
    } as unknown as Program);
  };
  return {
    stage,
    connection,
    contents,
    lines,
    run,
    directory,
    abort: (reason) => controller.abort(reason),
    image: async (value, mib = 1) => {
      const path = `${directory}/${value}.img`;
      await Deno.writeFile(path, diskOf(value, mib));
      return path;
    },
    [Symbol.asyncDispose]: async () => {
      await connection[Symbol.asyncDispose]();
      await Deno.remove(directory, { recursive: true });
    },
  };
}

/** A raw disk of this many MiB, all bytes of which are this behind the partition table. */
function diskOf(value: number, mib = 1): Uint8Array<ArrayBuffer> {
  return mbrDisk(mib * 1024 ** 2).fill(value, 512);
}

async function digestOf(bytes: Uint8Array<ArrayBuffer>): Promise<string> {
  return new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)).toHex();
}

async function templateVolumes({ connection }: Pick<Bed, "connection">): Promise<string[]> {
  using pool = await StoragePool.lookup(connection, "base_imgs");
  return (await pool.volumeNames()).sort();
}

async function createIn(connection: Connection, pool: string, volume: string): Promise<void> {
  using found = await StoragePool.lookup(connection, pool);
  using _ = await createRawVolume(found, volume, 0);
}

/** The template that a job gets. */
function templateOf({ stage }: Pick<Bed, "stage">, name: string) {
  const choice = chooseTemplate(stage.config, name, { isOperator: true });
  return findTemplate(stage, choice, () => "");
}

/** Makes the disk of a machine on the template, as prepare does. */
async function createMachine(bed: Bed, machine: string, name: string): Promise<void> {
  using pool = await StoragePool.lookup(bed.connection, "libvirt-gci");
  const template = await templateOf(bed, name);
  await createIn(bed.connection, "libvirt-gci", volumeName(machine, "owner"));
  using _ = await createOverlay(pool, volumeName(machine, "overlay"), {
    template,
    capacityBytes: 0,
  });
}

async function removeMachine({ connection }: Bed, machine: string): Promise<void> {
  using pool = await StoragePool.lookup(connection, "libvirt-gci");
  for (const kind of ["overlay", "owner"] as const) {
    using volume = await pool.lookupVolume(volumeName(machine, kind));
    await volume.delete();
  }
}

const FOREIGN = ["debian-12.qcow2", "old-name"];

Deno.test("an added image is a template once it is whole, and takes the place of a volume", async () => {
  const seen: string[] = [];
  await using bed: Bed = await openBed({
    onSend: async () => void seen.push((await templateOf(bed, "debian-12")).volume),
  });
  const file = await bed.image(7);
  const bytes = await Deno.readFile(file);
  bytes.fill(0, 100_000, 900_000);
  await Deno.writeFile(file, bytes);
  await bed.run(templateAdd, { name: "debian-12", source: file });

  assert(seen.length > 1);
  assert.deepEqual(new Set(seen.slice(0, -1)), new Set(["debian-12.qcow2"])); // the last is the info's
  const template = await templateOf(bed, "debian-12");
  assert.match(template.volume, /^debian-12\.[\da-f]{10}\.template\.libvirt-gci$/);
  assert.equal((await templateOf(bed, "debian-12.qcow2")).volume, template.volume);
  assert.equal(template.capacityBytes, bytes.length);
  assert.deepEqual(bed.contents.get(template.volume), bytes);
  assert.equal((await templateVolumes(bed)).length, 4, "a mark of the upload is left");
  assert.deepEqual(bed.lines, [
    'Added the template "debian-12" (raw, 0.0 GiB) in 0 s',
    'Jobs do not use the volume "debian-12.qcow2" any more. If you do not need it, remove it: ' +
    `virsh -c ${bed.connection.uri} vol-delete --pool base_imgs debian-12.qcow2`,
  ]);
});

Deno.test("an added template has the settings and the place in lists of its name", async () => {
  const config = parseConfig(
    "templates: {giant: {volume: giant-v3.qcow2, memory_mib: 9000, aliases: [huge]}}\n" +
      "allowed_templates: [debian-*]",
    "x",
  );
  await using bed = await openBed({ config });
  await bed.run(templateAdd, { name: "debian-13", source: await bed.image(1) });
  await bed.run(templateAdd, { name: "giant-v3", source: await bed.image(2) });
  const advice = templateAdvice(config, {})(await listTemplateVolumes(bed.stage));
  assert.match(advice, /: debian-12, debian-13, giant \(or huge\)$/);
  assert.match((await templateOf(bed, "huge")).volume, /^giant-v3\./);
  for (const name of ["giant", "huge"]) {
    const source = await bed.image(3);
    await assert.rejects(
      bed.run(templateAdd, { name, source }),
      (error) =>
        error instanceof SystemFailure && /the volume "giant-v3.qcow2"/.test(error.message),
    );
  }
});

Deno.test("a replaced template stays while a machine stands on it, and gc removes it then", async () => {
  await using bed = await openBed();
  await bed.run(templateAdd, { name: "t", source: await bed.image(1) });
  const old = await templateOf(bed, "t");
  await createMachine(bed, "m", "t");
  await bed.run(templateAdd, { name: "t", source: await bed.image(2) });
  const now = await templateOf(bed, "t");
  assert.equal(bed.contents.get(now.volume)?.at(-1), 2);
  assert.equal(bed.contents.get(old.volume)?.at(-1), 1);
  assert.match(bed.lines.at(-2) ?? "", /^Replaced the template "t" /);
  assert.match(bed.lines.at(-1) ?? "", /^The old version stays for now\. 1 machine continues /);
  const listed = await listTemplates(bed.stage);
  assert.deepEqual(
    listed.filter(({ name }) => name === "t").map(({ isOld, machines }) => [isOld, machines]),
    [[false, []], [true, ["m"]]],
  );

  await removeMachine(bed, "m");
  await gc({ dryRun: true }, bed.stage);
  const what = 'an old version of the template "t": there is a newer one';
  assert.equal(bed.lines.at(-1), `Would remove ${what}`);
  assert((await templateVolumes(bed)).includes(old.volume));
  await gc({}, bed.stage);
  assert.equal(bed.lines.at(-1), `Removed ${what}`);
  assert.deepEqual((await listTemplates(bed.stage)).map(({ volume }) => volume), [
    ...FOREIGN,
    now.volume,
  ]);
});

Deno.test("a replaced template goes at once where nothing stands on it, and stays while a machine starts", async () => {
  await using bed = await openBed();
  const add = async (value: number) =>
    await bed.run(templateAdd, { name: "t", source: await bed.image(value) });
  await add(1);
  await add(2);
  assert.equal((await templateVolumes(bed)).length, FOREIGN.length + 2);
  await createIn(bed.connection, "libvirt-gci", volumeName("m", "owner"));
  await add(3);
  assert.equal((await templateVolumes(bed)).length, FOREIGN.length + 4);
});

Deno.test("a template on which only a domain or a warm image stands is in use too", async () => {
  await using bed = await openBed();
  await bed.run(templateAdd, { name: "t", source: await bed.image(1) });
  const template = await templateOf(bed, "t");
  {
    using pool = await StoragePool.lookup(bed.connection, "libvirt-gci");
    const warmDisk = volumeName("warmed", "warm-disk", "0123456789");
    using _ = await createOverlay(pool, warmDisk, { template, capacityBytes: 0 });
    using __ = await createOverlay(pool, "other.qcow2", { template, capacityBytes: 0 });
  }
  using domain = await Domain.create(
    bed.connection,
    "install",
    `<domain type="test"><name>install</name><memory>65536</memory><os><type>hvm</type></os>
      <devices><disk type="file"><source file="${template.path}"/><target dev="vda"/></disk>
      </devices></domain>`,
    0,
  );
  await createMachine(bed, "m", "t");
  await assert.rejects(removeTemplate("t", bed.stage), {
    name: "SystemFailure",
    message: 'The template "t" is in use by the machine "install", the machine "m", ' +
      'the warm image of "warmed", the volume "other.qcow2"',
  });
  assert.equal((await templateOf(bed, "t")).volume, template.volume);
  await domain.destroy();
});

Deno.test("a template that nobody uses is removed, and the volume of its name is what jobs get", async () => {
  await using bed = await openBed();
  await bed.run(templateAdd, { name: "old-name", source: await bed.image(1) });
  await removeTemplate("old-name", bed.stage);
  assert.deepEqual(await templateVolumes(bed), FOREIGN);
  assert.equal(bed.lines.at(-1), 'Jobs that ask for it get the volume "old-name"');
  await assert.rejects(
    removeTemplate("debian-12", bed.stage),
    /"debian-12" was not created by libvirt-gci template add/,
  );
  await assert.rejects(removeTemplate("no-such", bed.stage), /has no template "no-such"/);
  assert.deepEqual(await templateVolumes(bed), FOREIGN);
});

Deno.test("the first template creates the default pool, and no other", async () => {
  const hostXml = await Deno.readTextFile(TEST_HOST_URI.slice("test://".length));
  const file = await Deno.makeTempFile({ prefix: "libvirt-gci-test-", suffix: ".xml" });
  try {
    await Deno.writeTextFile(file, hostXml.replaceAll("base_imgs", "others"));
    for (const templates of ["base_imgs", "elsewhere"]) {
      const config = { ...DEFAULT_CONFIG, pools: { ...DEFAULT_CONFIG.pools, templates } };
      await using bed = await openBed({ config, uri: `test://${file}` });
      const adding = bed.run(templateAdd, { name: "t", source: await bed.image(1) });
      if (templates === "base_imgs") await adding;
      else await assert.rejects(adding, /The host has no storage pool "elsewhere"/);
    }
  } finally {
    await Deno.remove(file);
  }
});

Deno.test("a cancelled upload leaves nothing, and is the cancel's failure", async () => {
  let sent = 0;
  await using bed: Bed = await openBed({
    onSend: () => {
      if (++sent === 3) bed.abort(new SystemFailure({ what: "Cancelled by SIGINT" }));
    },
  });
  const source = await bed.image(1, 4);
  await assert.rejects(bed.run(templateAdd, { name: "t", source }), /^SystemFailure: Cancelled by/);
  assert.equal(sent, 3);
  assert.deepEqual(await templateVolumes(bed), FOREIGN);
});

function streamError(words: string, options: { isLost?: boolean } = {}): LibvirtError {
  return new LibvirtError("virStreamSend", words, { code: VIR_ERR.SYSTEM_ERROR, ...options });
}

for (
  const [what, error, message] of [
    [
      "a full pool",
      streamError("cannot write to stream: No space left on device"),
      'The storage pool "base_imgs" has no space left for the template "t"',
    ],
    [
      "a lost daemon",
      streamError("Cannot recv data", { isLost: true }),
      'The connection to libvirt was lost before it had uploaded the template "t"',
    ],
    [
      "any other error",
      streamError("cannot write to stream: Input/output error"),
      'Cannot upload the template "t" to the storage pool "base_imgs"',
    ],
  ] as const
) {
  Deno.test(`${what} during an upload leaves nothing, and the template that was there`, async () => {
    let isBroken = false;
    await using bed: Bed = await openBed({
      onSend: (volume) => {
        if (isBroken && volume.endsWith(".template.libvirt-gci")) throw error;
      },
    });
    await bed.run(templateAdd, { name: "t", source: await bed.image(1) });
    const before = await templateVolumes(bed);
    isBroken = true;
    const source = await bed.image(2);
    await assert.rejects(bed.run(templateAdd, { name: "t", source }), {
      name: "SystemFailure",
      message,
      cause: error,
    });
    assert.deepEqual(await templateVolumes(bed), before);
  });
}

Deno.test("an upload whose last step fails leaves nothing", async () => {
  await using bed: Bed = await openBed({
    onSend: (volume) => {
      if (volume.endsWith(".template-info.libvirt-gci")) throw streamError("Input/output error");
    },
  });
  const source = await bed.image(1);
  await assert.rejects(bed.run(templateAdd, { name: "t", source }), /Cannot upload the template/);
  assert.deepEqual(await templateVolumes(bed), FOREIGN);
});

Deno.test("an image that changes while it is uploaded is no template", async () => {
  await using bed: Bed = await openBed({
    onSend: async () => await Deno.truncate(source, 1024),
  });
  const source = await bed.image(1, 4);
  const add = bed.run(templateAdd, { name: "t", source });
  await assert.rejects(add, /^SystemFailure: .* has changed while it was read/);
  assert.deepEqual(await templateVolumes(bed), FOREIGN);
});

Deno.test("an image that has not the digest it must have is no template", async () => {
  await using bed = await openBed();
  const source = await bed.image(65);
  const hex = await digestOf(diskOf(65));
  const add = (sha256: string) => bed.run(templateAdd, { name: "t", source, sha256 });
  await assert.rejects(add(hex.replace(/^./, (digit) => digit === "0" ? "1" : "0")), /SHA-256/);
  assert.deepEqual(await templateVolumes(bed), FOREIGN);
  await add(hex.toUpperCase());
  assert.equal((await listTemplates(bed.stage)).at(-1)?.digest, `sha256:${hex}`);
});

Deno.test("an image from a server is a template, and what was downloaded goes", async () => {
  await using bed = await openBed();
  await using server = Deno.serve(
    { hostname: "127.0.0.1", port: 0, onListen: () => {} },
    () => new Response(diskOf(66)),
  );
  const source = `http://127.0.0.1:${server.addr.port}/disk.img`;
  await assert.rejects(bed.run(templateAdd, { name: "t", source }), /Anybody on the way could/);
  await bed.run(templateAdd, { name: "t", source, sha256: await digestOf(diskOf(66)) });
  assert.equal((await listTemplates(bed.stage)).at(-1)?.source, source);
  const volume = (await templateOf(bed, "t")).volume;
  assert.deepEqual(bed.contents.get(volume), diskOf(66));
  const cache = await Array.fromAsync(Deno.readDir(`${bed.directory}/libvirt-gci/images`));
  assert.deepEqual(cache.map(({ name }) => name), []);
});

Deno.test({
  name: "an image that was pushed to a registry is a template, which follows its tag",
  ignore: WITHOUT_REGISTRY,
  fn: async () => {
    await using registry = await TestRegistry.start("htpasswd");
    const { env } = await registry.login();
    await using bed = await openBed({ env: { ...env, ...registry.env } });
    const source = `oci://${registry.host}/ci/disk:1`;
    const push = async (value: number) =>
      await bed.run(templatePush, { source: await bed.image(value), target: source });
    await push(65);
    assert.match(bed.lines.at(-1) ?? "", new RegExp(`^Pushed ${source}@sha256:[0-9a-f]{64}$`));
    await bed.run(templateAdd, { name: "t", source });
    assert.deepEqual(bed.contents.get((await templateOf(bed, "t")).volume), diskOf(65));
    const [added] = (await listTemplates(bed.stage)).filter(({ name }) => name === "t");
    assert.equal(added?.source, source);
    assert.equal(
      `Pushed ${source}@${added.digest}`,
      bed.lines.find((it) => it.startsWith("Pushed")),
    );

    await bed.run(templateUpdate, { name: "t" });
    assert.equal(bed.lines.at(-1), 'The template "t" is up to date');
    await push(66);
    await bed.run(templateUpdate, { name: "t" });
    assert.deepEqual(bed.contents.get((await templateOf(bed, "t")).volume), diskOf(66));
  },
});

Deno.test("gc removes what a killed upload left, and nothing of one that goes on", async () => {
  await using bed = await openBed();
  const [pid, start, boot = ""] = (processMark(Deno.pid) ?? "").split(" ");
  await bed.run(templateAdd, { name: "t", source: await bed.image(1) });
  const template = (await templateOf(bed, "t")).volume;
  const host = await hostMark();
  const own = `${pid}-${start}-${boot.slice(0, 8)}`;
  const dead = `${pid}-1-${boot.slice(0, 8)}`;
  const now = Math.floor(Date.now() / 1000).toString(16);
  const leftovers = [
    volumeName("t", "template", "6000000001"),
    volumeName("t", "template-upload", "6000000001", dead, host),
    volumeName("t", "template-upload", "6000000002", dead, host), // before the image was created
    volumeName("u", "template", "6000000003"), // without a mark
    volumeName("u", "template-upload", "6000000004", own, "0123456789abcdef"), // of old, elsewhere
    volumeName("t", "template-upload", template.split(".")[1] ?? "", dead, host), // after the info
  ];
  const ours = [
    volumeName("t", "template", "7000000001"),
    volumeName("t", "template-upload", "7000000001", own, host),
    volumeName("u", "template-upload", `${now}00`, dead, "0123456789abcdef"), // elsewhere
  ];
  for (const volume of [...leftovers, ...ours]) await createIn(bed.connection, "base_imgs", volume);
  assert.equal((await templateOf(bed, "t")).volume, template);
  assert.equal((await listTemplates(bed.stage)).length, FOREIGN.length + 1);

  await gc({ dryRun: true }, bed.stage);
  const all = await templateVolumes(bed);
  assert.equal(all.length, FOREIGN.length + 2 + leftovers.length + ours.length);
  await gc({}, bed.stage);
  const left = await templateVolumes(bed);
  assert.deepEqual(leftovers.filter((volume) => left.includes(volume)), []);
  assert.deepEqual(ours.filter((volume) => !left.includes(volume)), []);
  assert.equal((await templateOf(bed, "t")).volume, template);
});

Deno.test("update replaces a template whose source has changed, and no other", async () => {
  await using bed = await openBed();
  const source = await bed.image(65);
  const sha = await digestOf(diskOf(65));
  await bed.run(templateAdd, { name: "changes", source });
  await bed.run(templateAdd, { name: "pinned", source, sha256: sha });
  const before = await templateVolumes(bed);
  await bed.run(templateUpdate, { all: "--all" });
  assert.deepEqual(bed.lines.slice(-2).sort(), [
    'The template "changes" is up to date',
    'The template "pinned" is not updated, because it was added with --sha256, or with a login or a query in its ' +
    "URL",
  ]);
  assert.deepEqual(await templateVolumes(bed), before);

  await Deno.writeFile(source, diskOf(66, 2));
  await bed.run(templateUpdate, { all: "--all" });
  assert.equal(bed.contents.get((await templateOf(bed, "changes")).volume)?.at(-1), 66);
  assert.equal(bed.contents.get((await templateOf(bed, "pinned")).volume)?.at(-1), 65);
  const [{ digest, source: from } = { digest: "", source: "" }] = await listTemplates(bed.stage);
  assert.deepEqual([digest, from], [`sha256:${await digestOf(diskOf(66, 2))}`, source]);

  await Deno.remove(source);
  await assert.rejects(bed.run(templateUpdate, { name: "changes" }), /Cannot read the image/);
  await assert.rejects(bed.run(templateUpdate, { name: "no-such" }), /has no template "no-such"/);
});

Deno.test("names that no job can ask for, and sources that nobody can read, are mistakes", async () => {
  await using bed = await openBed();
  for (const name of ["", "a/b", ".a", "a.qcow2", "a.libvirt-gci", "ä", "a".repeat(129), "-a"]) {
    await assert.rejects(bed.run(templateAdd, { name, source: "x" }), UsageError, name);
  }
  for (const source of ["ftp://example.org/x", "https://", "oci://example.org/x@1"]) {
    await assert.rejects(bed.run(templateAdd, { name: "t", source }), UsageError, source);
  }
  const unclear = { name: "t", source: "x", checksums: "y", sha256: "0".repeat(64) };
  await assert.rejects(bed.run(templateAdd, unclear), UsageError);
  const inRegistry = { name: "t", source: "oci://example.org/x:1", sha256: "0".repeat(64) };
  await assert.rejects(bed.run(templateAdd, inRegistry), UsageError);
  const unsigned = { name: "t", source: "x", keyring: "y" };
  await assert.rejects(bed.run(templateAdd, unsigned), UsageError);
  await assert.rejects(bed.run(templateUpdate, {}), UsageError);
  await assert.rejects(bed.run(templateUpdate, { name: "t", all: "--all" }), UsageError);
});

Deno.test("the table of templates has a line for each, in columns", () => {
  const template: ListedTemplate = {
    name: "debian-13",
    volume: "v",
    isOld: false,
    format: "qcow2",
    virtualBytes: 10 * 1024 ** 3,
    diskBytes: 350 * 1024 ** 2,
    created: new Date(Date.now() - 7200_000).toISOString(),
    digest: `sha256:${"0123456789abcdef".repeat(4)}`,
    source: "/root/debian\x1b.qcow2",
    machines: ["a", "b"],
    warmImages: [],
  };
  const plain = { ...template, name: "lite.qcow2", digest: null, source: null, created: null };
  assert.deepEqual(templateTable([template, { ...template, isOld: true }, plain]).split("\n"), [
    "TEMPLATE         FORMAT  SIZE    DISK     AGE  DIGEST               MACHINES  SOURCE",
    "debian-13        qcow2   10 GiB  350 MiB  2 h  sha256:0123456789ab  2         /root/debian\\u001b.qcow2",
    "debian-13 (old)  qcow2   10 GiB  350 MiB  2 h  sha256:0123456789ab  2         /root/debian\\u001b.qcow2",
    "lite.qcow2       qcow2   10 GiB  350 MiB  -    -                    2         -",
  ]);
});
