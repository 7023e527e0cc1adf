// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import type { ListedTemplate } from "../../src/commands/template/template_list.ts";
import {
  assertVerdict,
  call,
  type Called,
  command,
  e2eTest,
  job,
  PROGRAM,
  runOnBed,
  type Settings,
  settingsFile,
  TESTBED,
  virsh,
} from "./bed.ts";

const NAME = "gci-e2e-added";
const TEMPLATES = "/var/lib/libvirt-gci-testbed/templates";
const CLOUD = `${TEMPLATES}/cloud.qcow2`;
const LITE = `${TEMPLATES}/lite.qcow2`;
/** The new template is a copy of `lite`, which has a key of its own. */
const AS_LITE: Settings = { templates: { [NAME]: { ssh: { login: "template" } } } };

/** Calls `template`, which has to work. */
async function template(...args: string[]): Promise<Called> {
  const called = await call(["template", ...args]);
  assert.equal(called.status, 0, `template ${args.join(" ")}: ${called.stderr}`);
  return called;
}

/** The volumes of the template pool that belong to the new template. */
async function ownVolumes(pool: string = TESTBED.templatePool): Promise<string[]> {
  await virsh("pool-refresh", pool);
  const names = (await virsh("vol-list", pool)).matchAll(/^ *(\S+) +\//gm);
  return Array.from(names, ([, name = ""]) => name).filter((name) => name.startsWith(NAME));
}

/** Removes what a failed test left of the new template. */
function undoTemplate(): AsyncDisposable {
  return {
    [Symbol.asyncDispose]: async () => {
      for (const volume of await ownVolumes()) {
        await virsh("vol-delete", "--pool", TESTBED.templatePool, volume);
      }
    },
  };
}

/** A directory that is removed in the end. */
function workplace(): Disposable & { readonly path: string } {
  const path = Deno.makeTempDirSync({ prefix: "libvirt-gci-e2e-" });
  return { path, [Symbol.dispose]: () => Deno.removeSync(path, { recursive: true }) };
}

async function listed(): Promise<ListedTemplate[]> {
  const templates: ListedTemplate[] = JSON.parse((await template("list", "--json")).stdout);
  return templates.filter(({ name }) => name === NAME);
}

e2eTest("a disk image in a file becomes a template, and a job runs on it", async () => {
  await using _ = undoTemplate();
  const { stdout } = await template("add", NAME, LITE);
  assert.match(
    stdout,
    new RegExp(`^Added the template "${NAME}" \\(qcow2, [\\d.]+ GiB\\) in `, "m"),
  );
  const variables = [{ key: "DISTRO", value: NAME }];
  const result = await runOnBed(job({ variables, script: ["true"] }), { settings: AS_LITE });
  assertVerdict(result, "success");

  const [added] = await listed();
  const [sum] = (await command(["sha256sum", LITE])).stdout.split(" ");
  assert.equal(added?.digest, `sha256:${sum}`);
  assert.deepEqual([added.source, added.format, added.machines], [LITE, "qcow2", []]);
  const file = `${TEMPLATES}/${added.volume}`;
  assert.equal(((await Deno.stat(file)).mode ?? 0) & 0o777, 0o400);
  assert.equal((await command(["cmp", LITE, file])).stdout, "");
  await template("remove", NAME);
  assert.deepEqual(await ownVolumes(), []);
});

/** Reads the largest programs of the guest from its disk, whatever is cached. */
const READ = "ls -S /usr/bin/* | sed -n 1,8p | " +
  "while read -r file; do dd if=$file iflag=direct bs=1M status=none; done | md5sum";

/** What a command in a machine prints. */
async function inMachine(machine: string, script: string): Promise<string> {
  const args = ["run", "-m", machine, "--", "sh", "-c", script];
  const { status, stdout, stderr } = await call(args, { settings: AS_LITE });
  assert.equal(status, 0, stderr);
  return stdout.trim();
}

e2eTest(
  "a template is replaced while a machine runs on it, and is not removed before that",
  async () => {
    const [old, next] = ["gci-e2e-on-old", "gci-e2e-on-new"];
    const cleanUp = async (machine: string) => void await call(["cleanup", "-m", machine]);
    const prepare = async (machine: string): Promise<void> => {
      const args = ["prepare", "-d", NAME, "-m", machine];
      const { status, stderr } = await call(args, { settings: AS_LITE });
      assert.equal(status, 0, stderr);
    };
    const sizeOf = (machine: string) => inMachine(machine, "cat /sys/block/vda/size");
    using directory = workplace();
    const image = `${directory.path}/image.qcow2`;
    await using undo = new AsyncDisposableStack();
    undo.use(undoTemplate());
    await command(["cp", LITE, image]);
    await template("add", NAME, image);
    undo.defer(() => cleanUp(old));
    await prepare(old);
    const read = await inMachine(old, READ);
    const refused = await call(["template", "remove", NAME]);
    assert.equal(refused.status, 2);
    assert.match(refused.stderr, new RegExp(`"${NAME}" is in use by the machine "${old}"\n`));

    assert.match((await template("update", NAME)).stdout, /is up to date/);
    await command(["qemu-img", "resize", image, "5G"]);
    const { stdout } = await template("update", NAME);
    assert.match(stdout, /^Replaced the template "gci-e2e-added" /m);
    assert.match(stdout, /^The old version stays for now\. 1 machine continues with it;/m);
    undo.defer(() => cleanUp(next));
    await prepare(next);
    assert.deepEqual([await sizeOf(old), await sizeOf(next)], ["8388608", "10485760"]);
    assert.equal(await inMachine(old, READ), read);
    assert.deepEqual((await listed()).map(({ isOld, machines }) => [isOld, machines]), [
      [false, [next]],
      [true, [old]],
    ]);

    assert.doesNotMatch((await call(["gc"])).stdout, /old version/);
    await cleanUp(old);
    const removed =
      /^Removed an old version of the template "gci-e2e-added": there is a newer one$/m;
    assert.match((await call(["gc"])).stdout, removed);
    assert.equal((await listed()).length, 1);
    await cleanUp(next);
    await template("remove", NAME);
  },
  { thorough: true },
);

/** Starts to add `cloud` and sends this signal once the upload has begun. Gives how it ended. */
async function endUpload(signal: Deno.Signal): Promise<{ status: number; stderr: string }> {
  using file = settingsFile();
  const [program = "", ...args] = PROGRAM;
  const process = new Deno.Command(program, {
    args: [...args, "--debug", "--config", file.path, "template", "add", NAME, CLOUD],
    stdin: "null",
    stdout: "null",
    stderr: "piped",
  }).spawn();
  let stderr = "";
  let sent = false;
  for await (const text of process.stderr.pipeThrough(new TextDecoderStream())) {
    stderr += text;
    if (sent || !stderr.includes("virStreamSend ")) continue;
    process.kill(signal);
    sent = true;
  }
  assert(sent, stderr);
  return { status: (await process.status).code, stderr };
}

for (const signal of ["SIGINT", "SIGTERM"] as const) {
  e2eTest(`an upload that ${signal} ends leaves nothing in the pool`, async () => {
    await using _ = undoTemplate();
    const { status, stderr } = await endUpload(signal);
    assert.equal(status, 2, stderr);
    assert.match(stderr, new RegExp(`^libvirt-gci: Cancelled by ${signal}$`, "m"));
    assert.deepEqual(await ownVolumes(), []);
  }, { thorough: true });
}

e2eTest("what a killed upload leaves is no template, and gc removes it", async () => {
  await using _ = undoTemplate();
  await endUpload("SIGKILL");
  const left = await ownVolumes();
  assert.equal(left.length, 2, left.join()); // the image and the mark of its upload
  assert.deepEqual(await listed(), []);
  const refused = await call(["prepare", "-d", NAME, "-m", "gci-e2e-none"]);
  assert.equal(refused.status, 1);
  assert.match(refused.stderr, new RegExp(`Cannot find the template "${NAME}"`));
  const what = `an upload of the template "${NAME}": it ended before it was complete`;
  assert.match((await call(["gc", "--dry-run"])).stdout, new RegExp(`^Would remove ${what}$`, "m"));
  assert.match((await call(["gc"])).stdout, new RegExp(`^Removed ${what}$`, "m"));
  assert.deepEqual(await ownVolumes(), []);
}, { thorough: true });

e2eTest("a pool that is full, or becomes so, is told, and nothing is left in it", async () => {
  const pool = "gci-e2e-small";
  const settings: Settings = { pools: { templates: pool, overlays: TESTBED.overlayPool } };
  using directory = workplace();
  const target = `${directory.path}/pool`;
  await using undo = new AsyncDisposableStack();
  await Deno.mkdir(target);
  const mounted = await command(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", target]);
  assert.equal(mounted.status, 0, mounted.stderr);
  undo.defer(async () => void await command(["umount", target]));
  await virsh("pool-create-as", pool, "dir", "--target", target);
  undo.defer(async () => void await virsh("pool-destroy", pool));

  const full = await call(["template", "add", NAME, LITE], { settings });
  assert.equal(full.status, 2);
  assert.match(
    full.stderr,
    /needs \d+\.\d GiB, and the storage pool "gci-e2e-small" has 0\.0 GiB /,
  );
  const raw = `${directory.path}/image.raw`; // of which nobody knows what it needs
  await command(["qemu-img", "convert", "-O", "raw", LITE, raw]);
  const filled = await call(["template", "add", NAME, raw], { settings });
  assert.equal(filled.status, 2);
  assert.match(filled.stderr, /"gci-e2e-small" has no space left for the template "gci-e2e-added"/);
  assert.deepEqual(await ownVolumes(pool), []);
}, { thorough: true });
