// SPDX-License-Identifier: GPL-2.0-or-later
import fc from "fast-check";
import { decode } from "fast-png";
import assert from "node:assert/strict";
import { BuildFailure, explain, SystemFailure } from "../../src/errors.ts";
import { Connection } from "../../src/libvirt/connection.ts";
import { Domain } from "../../src/libvirt/domain.ts";
import { EMPTY_METADATA, metadataXml } from "../../src/machine/metadata.ts";
import { toPng } from "../../src/machine/post_mortem/evidence.ts";
import { fit, unpluggedIn, withPostMortem } from "../../src/machine/post_mortem/post_mortem.ts";
import {
  findPostMortem,
  projectFile,
  prunePostMortems,
  writePostMortem,
} from "../../src/machine/post_mortem/post_mortem_directory.ts";
import { prepare } from "../../src/machine/prepare_machine.ts";
import { removeMachine } from "../../src/machine/remove.ts";
import { run } from "../../src/machine/run_script.ts";
import { rootOf } from "../../src/read_xml.ts";
import { DEFAULT_CONFIG } from "../../src/settings/settings.ts";
import { sleep } from "../../src/wait.ts";
import { merged } from "../fakes/merged.ts";
import { TestGuest, type TestGuestOptions } from "../fakes/test_guest.ts";
import { openTestHost } from "../fakes/test_host.ts";
import { TestLibvirtd, xdr } from "../fakes/test_libvirtd.ts";
import {
  bareStage,
  JOB,
  script,
  type TestStage,
  testStage,
  type TestStageOptions,
  toStage,
} from "../fakes/test_stage.ts";
import { withDirectory } from "../fakes/with_directory.ts";

const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);

async function withStage(
  test: (bed: { readonly stage: TestStage; readonly guest: TestGuest }) => Promise<void>,
  options: TestStageOptions & { readonly guest?: TestGuestOptions } = {},
): Promise<void> {
  await using connection = await openTestHost();
  await using guest = await TestGuest.start(options.guest);
  using stage = testStage(connection, guest, options);
  await test({ stage, guest });
  await removeMachine(JOB.machine, stage);
}

async function listed(directory: string): Promise<string[]> {
  return (await Array.fromAsync(Deno.readDir(directory), ({ name }) => name)).sort();
}

/** The one post-mortem of a stage, as text by file. */
async function readOnly(
  stage: Pick<TestStage, "directories">,
): Promise<Map<string, string>> {
  const [name, ...others] = await listed(stage.directories.postMortems);
  assert.deepEqual(others, []);
  const directory = `${stage.directories.postMortems}/${name}`;
  const files = await listed(directory);
  const texts = files.map((file) => Deno.readTextFile(`${directory}/${file}`));
  return new Map((await Promise.all(texts)).map((text, i) => [files[i] ?? "", text]));
}

Deno.test("a prepare that fails keeps what is known of the machine, and says where", () =>
  withStage(async ({ stage }) => {
    const failure = await prepare(JOB, {}, stage).catch((error) => error);
    assert(failure instanceof SystemFailure);
    const words = explain(failure);
    const [name] = await listed(stage.directories.postMortems);
    assert.match(name ?? "", /^\d{8}T\d{9}Z-gitlab-proj-debian-12-4242-0123456789$/);
    assert.match(words, new RegExp(`on its host, in "${stage.directories.postMortems}/${name}"`));
    const files = await readOnly(stage);
    assert.deepEqual([...files.keys()], ["domain.xml", "project", "reason.txt", "screenshot.png"]);
    assert.equal(files.get("project"), "grp/proj\n");
    assert.equal(rootOf(files.get("domain.xml") ?? "")?.name, "domain");
    const reason = files.get("reason.txt") ?? "";
    assert.match(reason, /^Machine: +gitlab-proj-debian-12-4242-0123456789$/m);
    assert.match(reason, /^Job: +4242 of grp\/proj$/m);
    assert.match(reason, /did not start\nbecause: .*refuses the key/);
    for (const file of ["agent.json", "console.log", "qemu.log"]) {
      assert.match(reason, new RegExp(`^- ${file}: `, "m"));
    }
    const picture = await Deno.readFile(`${stage.directories.postMortems}/${name}/screenshot.png`);
    assert(decode(picture).width > 100);
    assert.equal(
      (await Deno.stat(`${stage.directories.postMortems}/${name}`)).mode! & 0o777,
      0o700,
    );
    assert.deepEqual(stage.warnings, []);
  }, { guest: { refuseKey: true } }));

Deno.test("a machine that is lost in run has one post-mortem, whatever fails after it", () =>
  withStage(async ({ stage }) => {
    await prepare(JOB, {}, stage);
    const first = await run(JOB.machine, script("true"), stage).catch(explain);
    assert.match(first ?? "", /connection to the guest broke/);
    assert.match(first ?? "", /serial console/);
    const second = await run(JOB.machine, script("true"), stage).catch(explain);
    const [name] = await listed(stage.directories.postMortems);
    for (const words of [first, second]) assert.match(words ?? "", new RegExp(`${name}"$`));
    assert.equal((await readOnly(stage)).has("reason.txt"), true);
  }, { guest: { loseScripts: true } }));

Deno.test("a script that fails, a job's mistake, a cancel or a machine that never was has none", () =>
  withStage(async ({ stage }) => {
    await assert.rejects(prepare({ ...JOB, template: "none" }, {}, stage), BuildFailure);
    await assert.rejects(run("nobody", script("true"), stage), /"nobody" does not exist/);
    await prepare(JOB, {}, stage);
    await assert.rejects(run(JOB.machine, script("exit 3"), stage), { scriptStatus: 3 });
    const ran = run(JOB.machine, script("sleep 60"), stage);
    await Promise.all([sleep(300).then(() => stage.abort(new Error("cancelled"))), ran]).catch(
      () => {},
    );
    await ran.catch(() => {});
    assert.deepEqual(await listed(stage.directories.postMortems), []);
  }));

Deno.test("a cancelled prepare has none, and warns of nothing", () =>
  withStage(async ({ stage }) => {
    const prepared = prepare(JOB, {}, stage);
    const reason = new SystemFailure({ what: "cancelled" });
    await Promise.all([
      sleep(500).then(() => stage.abort(reason)),
      assert.rejects(prepared, reason),
    ]);
    assert.deepEqual([await listed(stage.directories.postMortems), stage.warnings], [[], []]);
  }, { guest: { ignoreCommands: true }, machine: { timeouts: { sshSeconds: 60 } } }));

Deno.test("with post_mortem.count: 0, nothing is kept", () =>
  withStage(async ({ stage }) => {
    const words = await prepare(JOB, {}, stage).catch(explain);
    assert.match(String(words), /serial console/);
    assert.deepEqual(await listed(stage.directories.postMortems), []);
  }, { guest: { refuseKey: true }, config: { postMortem: { count: 0 } } }));

Deno.test("a post-mortem that cannot be written is a warning, and the failure stays", () =>
  withStage(async ({ stage }) => {
    const hopeless = toStage({
      ...stage,
      directories: { ...stage.directories, postMortems: "/proc/nowhere" },
    });
    await assert.rejects(prepare(JOB, {}, hopeless), /did not start/);
    assert.match(
      stage.warnings.join(),
      /^Could not write the post-mortem .* to "\/proc\/nowhere"\nbecause: .*\nWhat to do: Remove /,
    );
  }, { guest: { refuseKey: true } }));

Deno.test("where post-mortems cannot be read, the log has the console all the same", () =>
  withStage(async ({ stage }) => {
    await Deno.remove(stage.directories.postMortems, { recursive: true });
    await Deno.writeTextFile(stage.directories.postMortems, "a file");
    const words = await prepare(JOB, {}, stage).catch(explain);
    assert.match(String(words), /did not start[^]*serial console/);
    assert.match(
      stage.warnings.join(),
      /^Cannot read the post-mortems in .*\nbecause: .*\nWhat to do: Remove /,
    );
  }, { guest: { refuseKey: true } }));

Deno.test("a post-mortem is not kept where others can exchange it", () =>
  withStage(async ({ stage }) => {
    await Deno.chmod(stage.directories.postMortems, 0o777);
    await assert.rejects(prepare(JOB, {}, stage), /did not start/);
    assert.match(stage.warnings.join(), /Other users can write to/);
    assert.deepEqual(await listed(stage.directories.postMortems), []);
  }, { guest: { refuseKey: true } }));

Deno.test("a libvirt that never answers costs a post-mortem seconds, and the failure stays", () =>
  withStage(async ({ stage }) => {
    const failure = new SystemFailure({ what: "first", advice: "do it", fault: "lost" });
    const start = performance.now();
    const dead = toStage({ ...stage, connect: () => new Promise<never>(() => {}) });
    const told = await withPostMortem(JOB.machine, failure, dead);
    assert(performance.now() - start < 10_000);
    assert.deepEqual([told.message, told.advice, told.fault], ["first", "do it", "lost"]);
    assert.match(stage.warnings.join(), /libvirt did not answer within/);
  }));

Deno.test("a part that hangs does not lose the others", () =>
  withStage(async ({ stage }) => {
    await prepare(JOB, {}, stage);
    let connections = 0;
    const slow = toStage({
      ...stage,
      connect: () => ++connections === 4 ? new Promise<never>(() => {}) : stage.connect(),
    });
    const failure = new SystemFailure({ what: "first" });
    const start = performance.now();
    assert.match(explain(await withPostMortem(JOB.machine, failure, slow)), /on its host, in/);
    assert(performance.now() - start < 10_000);
    const files = await readOnly(stage);
    assert(files.has("screenshot.png"), [...files.keys()].join());
    assert.match(files.get("reason.txt") ?? "", /^- domain.xml: it was not available within 6 s$/m);
  }));

Deno.test("a card whose link libvirt has down is told, with the command that plugs it in", () => {
  const card = (mac: string, state: string): string =>
    `<interface type="network"><mac address="${mac}"/><link state="${state}"/></interface>`;
  const cards = card("52:54:00:00:00:01", "up") + card("52:54:00:00:00:02", "down");
  const domainXml = `<domain><devices>${cards}<interface type="user"/></devices></domain>`;
  const of = { machine: "m", uri: "qemu:///system" };
  const told = unpluggedIn([{ name: "domain.xml", bytes: bytes(domainXml) }], of);
  assert.equal(told.length, 1);
  assert.match(
    String(told),
    /is down .*: virsh -c qemu:\/\/\/system domif-setlink m 52:54:00:00:00:02 up$/,
  );
  assert.deepEqual(unpluggedIn([], of), []);
});

const stamp = (day: number): string => `202401${String(day).padStart(2, "0")}T000000000Z`;

async function make(directory: string, name: string, size = 10): Promise<void> {
  await Deno.mkdir(`${directory}/${name}`);
  await Deno.writeFile(`${directory}/${name}/console.log`, new Uint8Array(size));
}

/** Makes a post-mortem of this project, of so many bytes in all. */
async function makeOf(directory: string, project: string, [day, size]: readonly [number, number]) {
  const file = projectFile(project);
  await make(directory, `${stamp(day)}-m`, size - file.bytes.length);
  await Deno.writeFile(`${directory}/${stamp(day)}-m/${file.name}`, file.bytes);
}

/** The days of the post-mortems that are there. */
async function days(directory: string): Promise<number[]> {
  return (await listed(directory)).map((name) => Number(name.slice(6, 8)));
}

Deno.test("the oldest post-mortems go first, until number and size are within the bounds", () =>
  withDirectory(async (directory) => {
    for (const day of [4, 1, 3, 2, 5]) await make(directory, `${stamp(day)}-m`, day * 100);
    await prunePostMortems(directory, { count: 4, bytes: 10_000 });
    assert.deepEqual(await listed(directory), [2, 3, 4, 5].map((day) => `${stamp(day)}-m`));
    await make(directory, `${stamp(6)}-m`, 901); // which no bound lets in, and takes no other's place
    await prunePostMortems(directory, { count: 4, bytes: 900 });
    assert.deepEqual(await listed(directory), [4, 5].map((day) => `${stamp(day)}-m`));
  }));

Deno.test("a project whose jobs fail in great number pushes out its own post-mortems alone", () =>
  withDirectory(async (directory) => {
    await makeOf(directory, "victim/a", [1, 100]);
    await make(directory, `${stamp(2)}-m`); // of an earlier version
    for (let day = 3; day <= 22; day++) {
      await makeOf(directory, "evil/a", [day, 100]);
      await prunePostMortems(directory, { count: 4, bytes: 10_000 });
    }
    assert.deepEqual(await days(directory), [1, 2, 21, 22]);
  }));

Deno.test("a project with large post-mortems pushes out its own alone, the new one too", () =>
  withDirectory(async (directory) => {
    for (const day of [1, 2, 3]) await makeOf(directory, "victim/a", [day, 100]);
    await makeOf(directory, "evil/a", [4, 250]);
    await makeOf(directory, "evil/a", [5, 250]);
    const removed = await prunePostMortems(directory, { count: 20, bytes: 1000 });
    assert.deepEqual([removed, await days(directory)], [[], [1, 2, 3, 4, 5]]);
    await makeOf(directory, "evil/a", [6, 250]);
    await prunePostMortems(directory, { count: 20, bytes: 1000 });
    assert.deepEqual(await days(directory), [1, 2, 3, 5, 6]);
    await makeOf(directory, "evil/b", [7, 900]);
    const last = await prunePostMortems(directory, { count: 20, bytes: 1000 });
    assert.deepEqual(last, [`${directory}/${stamp(7)}-m`]);
    assert.deepEqual(await days(directory), [1, 2, 3, 5, 6]);
  }));

Deno.test("of projects that have as many post-mortems, the oldest goes", () =>
  withDirectory(async (directory) => {
    for (const day of [1, 2, 3]) await makeOf(directory, `grp/${day}`, [day, 100]);
    await prunePostMortems(directory, { count: 2, bytes: 1000 });
    assert.deepEqual(await days(directory), [2, 3]);
  }));

Deno.test("only directories with names of ours are ever removed, and no link's target", () =>
  withDirectory(async (directory) => {
    const foreign = [
      "notes",
      "20240101T000000000Z-",
      "20240101T000000Z-m",
      "20240101T000000000Z-a b",
      "x20240101T000000000Z-m",
      "20240101T000000000Z-m;rm",
      ".new-notes",
      `.new-${new Date().toISOString().replace(/[-:.]/g, "")}-m`, // it is being written
    ];
    for (const name of foreign) await make(directory, name);
    await Deno.writeTextFile(`${directory}/${stamp(1)}-file`, "");
    await Deno.symlink(`${directory}/notes`, `${directory}/${stamp(2)}-link`);
    await make(directory, `${stamp(3)}-m`);
    await Deno.symlink(`${directory}/notes`, `${directory}/${stamp(3)}-m/inside`);
    await make(directory, `.new-${stamp(4)}-dead`);
    await prunePostMortems(directory, { count: 0, bytes: 0 });
    const left = [...foreign, `${stamp(1)}-file`, `${stamp(2)}-link`];
    assert.deepEqual(await listed(directory), left.sort());
    assert.deepEqual(await listed(`${directory}/notes`), ["console.log"]);
  }));

Deno.test("many at once write and remove, and the bounds hold in the end", () =>
  withDirectory(async (directory) => {
    const bounds = { count: 5, bytes: 1000 };
    const paths = await Promise.all(Array.from({ length: 40 }, async (_, i) => {
      await sleep(Math.random() * 100);
      const files = [{ name: "reason.txt", bytes: bytes("x".repeat(100)) }];
      const path = await writePostMortem(directory, `m${i}`, files);
      await prunePostMortems(directory, bounds);
      return path;
    }));
    const newest = paths.sort().slice(-5).map((path) => path.slice(directory.length + 1));
    assert.deepEqual(await listed(directory), newest);
    for (const name of newest) {
      assert.equal((await Deno.readFile(`${directory}/${name}/reason.txt`)).length, 100);
    }
  }));

/** What a machine's libvirt and its guest agent say, each answer of the agent with so many bytes. */
function answers(agentBytes: number): ConstructorParameters<typeof TestLibvirtd>[0] {
  const metadata = {
    ...EMPTY_METADATA,
    job: "1",
    project: "evil/a",
    created: Date.UTC(2024, 0),
  };
  const depth = Math.floor((agentBytes - 11) / 2);
  return {
    DOMAIN_GET_METADATA: () => xdr(`${metadataXml(metadata)}`),
    DOMAIN_GET_XML_DESC: () => xdr("<domain/>"),
    QEMU_AGENT_COMMAND: () => xdr(1, `{"return":${"[".repeat(depth)}${"]".repeat(depth)}}`),
  };
}

/** Has a machine fail whose guest says this, and gives the files that are kept of it. */
async function keptOf(agentBytes: number, totalMib: number): Promise<Map<string, string>> {
  await using libvirtd = new TestLibvirtd(answers(agentBytes));
  const postMortems = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
  const directories = { home: undefined, keys: "", lastingKeys: "", postMortems };
  const warnings: string[] = [];
  try {
    const connect = () => Connection.open(libvirtd.uri);
    await using connection = await connect();
    const stage = bareStage(connection, {
      config: merged(DEFAULT_CONFIG, { postMortem: { totalMib } }),
      connect,
      directories,
      warn: (line) => void warnings.push(line),
    });
    await withPostMortem("m", new SystemFailure({ what: "lost" }), stage);
    assert.deepEqual(warnings, []);
    return await readOnly({ directories });
  } finally {
    await Deno.remove(postMortems, { recursive: true });
  }
}

Deno.test("what a fake guest agent says takes a quarter of post_mortem.total_mib at most, and loses nothing else", async () => {
  const small = await keptOf(60_000, 100);
  assert.equal(Object.keys(JSON.parse(small.get("agent.json") ?? "{}")).length, 6);
  assert.equal(small.get("domain.xml"), "<domain/>");
  assert.equal(small.get("project"), "evil/a\n");

  const large = await keptOf(3_800_000, 100);
  assert.match(large.get("reason.txt") ?? "", /^- agent\.json: .*more than 65536 bytes/m);

  const quarter = await keptOf(43_000, 1); // six answers
  const { length } = quarter.get("agent.json") ?? "";
  assert(length > 250_000 && length <= 1024 ** 2 / 4, `${length} bytes`);
  const more = await keptOf(44_000, 1);
  assert.match(
    more.get("reason.txt") ?? "",
    /^- agent\.json: .*quarter of "post_mortem\.total_mib"$/m,
  );
  for (const files of [large, more]) {
    assert.deepEqual([...files.keys()], ["domain.xml", "project", "reason.txt"]);
  }
});

Deno.test("a picture of a screen that is larger than it may be is none", async () => {
  await using connection = await openTestHost();
  using domain = await Domain.lookup(connection, "somebody");
  const { bytes } = await domain.screenshot(1024 ** 2);
  await domain.screenshot(bytes.length);
  await assert.rejects(domain.screenshot(bytes.length - 1), /it has more than \d+ bytes/);
});

Deno.test("of a console that is too large, the end is kept, and all else", () => {
  const files = [{ name: "a", bytes: bytes("123") }, { name: "console.log", bytes: bytes("abcd") }];
  const fitted = (most: number): string[] =>
    fit(files, most).map(({ bytes }) => new TextDecoder().decode(bytes));
  assert.deepEqual(fitted(8), ["123", "abcd"]);
  assert.deepEqual(fitted(5), ["123", "cd"]);
  assert.deepEqual(fitted(2), ["123", ""]);
});

Deno.test("a post-mortem is written whole or not at all", () =>
  withDirectory(async (directory) => {
    const files = [{ name: "a", bytes: bytes("a") }, { name: "no/where", bytes: bytes("b") }];
    await assert.rejects(writePostMortem(directory, "m", files));
    assert.deepEqual(await listed(directory), []);
  }));

Deno.test("a machine's earlier post-mortem is found, but not that of one before it", () =>
  withDirectory(async (directory) => {
    for (const name of [`${stamp(1)}-m`, `${stamp(3)}-m`, `${stamp(4)}-m-2`]) {
      await make(directory, name);
    }
    const since = (day: number): Promise<string | null> =>
      findPostMortem(directory, "m", new Date(Date.UTC(2024, 0, day)));
    assert.equal(await since(2), `${directory}/${stamp(3)}-m`);
    assert.equal(await since(4), null);
    assert.equal(await findPostMortem(`${directory}/none`, "m", new Date(0)), null);
  }));

Deno.test("a picture in PPM becomes the same picture in PNG", () => {
  return fc.assert(fc.asyncProperty(fc.nat(20), fc.nat(20), async (w, h) => {
    const [width, height] = [w + 1, h + 1];
    const pixels = crypto.getRandomValues(new Uint8Array(width * height * 3));
    const ppm = new Uint8Array([...bytes(`P6\n${width} ${height}\n255\n`), ...pixels]);
    const png = decode(await toPng("image/x-portable-pixmap", ppm));
    assert.deepEqual([png.width, png.height, png.channels], [width, height, 3]);
    assert.deepEqual(new Uint8Array(png.data), pixels);
  }));
});

for (
  const [what, ppm] of [
    ["of another kind", "P3\n1 1\n255\n0 0 0\n"],
    ["that is cut", "P6\n2 2\n255\nabc"],
    ["too large to be true", "P6\n999999 999999\n255\n"],
    ["of nothing", ""],
  ] as const
) {
  Deno.test(`a picture ${what} is an error`, async () => {
    await assert.rejects(toPng("image/x-portable-pixmap", bytes(ppm)));
  });
}
