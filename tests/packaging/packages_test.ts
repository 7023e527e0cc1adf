// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { gunzipSync } from "node:zlib";
import { bundle } from "../../packaging/bundle.ts";
import { findNfpm, makePackages } from "../../packaging/nfpm.ts";
import { writeFiles } from "../../packaging/package_files.ts";

const ROOT = new URL("../../", import.meta.url);
const TIME = new Date("2020-01-02T03:04:05Z");
const VERSION = "1.2.3-rc.1";
const DEB = "libvirt-gci_1.2.3~rc.1-1_arm64.deb";
const RPM = "libvirt-gci-1.2.3~rc.1-1.aarch64.rpm";

/** What a program prints. Throws with what it says if it fails. */
async function output(program: string, ...args: readonly string[]): Promise<string> {
  const { success, stdout, stderr } = await new Deno.Command(program, {
    args: [...args],
    env: { LC_ALL: "C.UTF-8", TZ: "UTC" },
  }).output();
  assert(success, `${program} ${args.join(" ")}: ${new TextDecoder().decode(stderr)}`);
  return new TextDecoder().decode(stdout);
}

async function has(program: string): Promise<boolean> {
  return await output(program, "--version").then(() => true, () => false);
}

const nfpm = findNfpm();
const HAS_RPM_READER = await has("bsdtar");

/** Makes the packages, with another program in the place of ours, which takes long to compile. */
async function makePackagesIn(directory: string): Promise<void> {
  const [files, output] = [`${directory}/files`, `${directory}/packages`];
  await bundle(`${directory}/bundle`);
  await writeFiles(files, { bundle: `${directory}/bundle`, time: TIME, version: VERSION });
  await Deno.copyFile("/bin/true", `${files}/libvirt-gci`);
  await Deno.mkdir(output, { recursive: true });
  const packaging = { files, output, time: TIME, version: VERSION, arch: "aarch64" } as const;
  await makePackages(nfpm ?? "", packaging);
}

const DOC = "./usr/share/doc/libvirt-gci";

/** Of each file that an archive lists, but for the pages of the manual: what the pattern finds. */
function entriesIn(listing: string, line: RegExp): string {
  const entries = listing.trimEnd().split("\n").map((text) => {
    const found = line.exec(text);
    assert(found, text);
    return `${found.slice(1).join(" ")}\n`;
  });
  return entries.filter((entry) => !entry.includes(`${DOC}/docs/`)).sort().join("");
}

/** What the package for Debian says of itself and of its files. */
async function contentsOfDeb(file: string): Promise<string> {
  const fields = await output("dpkg-deb", "--field", file);
  const listing = await output("dpkg-deb", "--contents", file);
  return [
    fields.replace(/^Installed-Size: .*\n/m, ""),
    `\nconffiles:\n${await output("dpkg-deb", "--info", file, "conffiles")}\n`,
    entriesIn(listing, /^(\S+) (\S+) +\d+ 2020-01-02 03:04 (.+)$/),
  ].join("");
}

/** What the package for Fedora says of its files. */
async function contentsOfRpm(file: string): Promise<string> {
  const listing = await output("bsdtar", "-tvf", file);
  return entriesIn(listing, /^(\S+) +\d+ +(\S+) +(\S+) +\d+ Jan +2 +2020 (.+)$/);
}

/** Compares the text with a file of the tests, or writes it. */
async function assertGolden(text: string, file: string): Promise<void> {
  const url = new URL(file, ROOT);
  if (Deno.env.has("UPDATE")) await Deno.writeTextFile(url, text);
  assert.equal(text, await Deno.readTextFile(url));
}

/** The paths of all files below a directory. */
function filesBelow(directory: string): string[] {
  return [...Deno.readDirSync(directory)].flatMap(({ name, isDirectory }) =>
    isDirectory ? filesBelow(`${directory}/${name}`) : [`${directory}/${name}`]
  ).sort();
}

async function assertFiles(unpacked: string): Promise<void> {
  const manual = filesBelow(`${ROOT.pathname}docs`);
  assert(manual.length > 12);
  for (const file of manual) {
    const copy = `${unpacked}/${DOC}/docs${file.slice(`${ROOT.pathname}docs`.length)}`;
    assert.equal(await Deno.readTextFile(copy), await Deno.readTextFile(file), copy);
    assert.equal((await Deno.stat(copy)).mode, 0o100644);
  }
  assert.equal(filesBelow(`${unpacked}/${DOC}/docs`).length, manual.length);
  const example = await Deno.readTextFile(new URL("config.example.yaml", ROOT));
  assert.equal(await Deno.readTextFile(`${unpacked}/etc/libvirt-gci/config.yaml`), example);

  const unzipped = async (name: string) =>
    `${gunzipSync(await Deno.readFile(`${unpacked}/${name}`))}`;
  const changelog = await Deno.readTextFile(new URL("CHANGELOG.md", ROOT));
  assert.equal(await unzipped(`${DOC}/changelog.gz`), changelog);
  assert.match(
    await unzipped(`${DOC}/changelog.Debian.gz`),
    /^libvirt-gci \(1\.2\.3~rc\.1-1\) [^]* {2}Thu, 02 Jan 2020 03:04:05 \+0000\n$/,
  );
  const [bash, ...others] = [
    "bash-completion/completions/libvirt-gci",
    "fish/vendor_completions.d/libvirt-gci.fish",
    "zsh/vendor-completions/_libvirt-gci",
  ].map((name) => `${unpacked}/usr/share/${name}`);
  const sourced = await output("bash", "-c", `. ${bash}; complete -p libvirt-gci`);
  assert.match(sourced, /-F _libvirt-gci libvirt-gci/);
  for (const file of others) {
    assert.match(await Deno.readTextFile(file), /libvirt-gci '?completions'?/);
  }
  assert.match(await unzipped("usr/share/man/man1/libvirt-gci.1.gz"), /^\.TH .* 2020\\?-01\\?-02 /);

  const copyright = await Deno.readTextFile(`${unpacked}/${DOC}/copyright`);
  for (const words of ["GNU General Public License", "Deno authors", "ssh2@", "yaml@"]) {
    assert(copyright.includes(words), words);
  }
}

/** What is equal for equal files. */
async function digest(file: string): Promise<string> {
  return (await output("sha256sum", file)).slice(0, 64);
}

Deno.test({
  name: "the packages for Debian and Fedora",
  ignore: nfpm === null || !await has("dpkg-deb"),
  fn: async (t) => {
    const directory = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
    try {
      await makePackagesIn(directory);
      const [deb = "", rpm = ""] = [DEB, RPM].map((name) => `${directory}/packages/${name}`);
      await t.step(
        "Debian's has what tests/data/package_deb.txt says (UPDATE=1 writes it)",
        async () => assertGolden(await contentsOfDeb(deb), "tests/data/package_deb.txt"),
      );
      await t.step({
        name: "Fedora's has what tests/data/package_rpm.txt says (UPDATE=1 writes it)",
        ignore: !HAS_RPM_READER,
        fn: async () => assertGolden(await contentsOfRpm(rpm), "tests/data/package_rpm.txt"),
      });
      await t.step("the manual, settings, changelogs and licenses are in it", async () => {
        await output("dpkg-deb", "--extract", deb, `${directory}/unpacked`);
        await assertFiles(`${directory}/unpacked`);
      });
      await t.step("a second one of the same commit is identical", async () => {
        const first = [await digest(deb), await digest(rpm)];
        await makePackagesIn(directory); // at the same place, since paths are in the bundle
        for (const [i, file] of [deb, rpm].entries()) {
          assert.equal(await digest(file), first[i], file);
        }
      });
    } finally {
      await Deno.remove(directory, { recursive: true });
    }
  },
});

/** Runs the script on these settings and these metrics; what is left of the metrics. */
async function afterRemoval(setting: (file: string) => string, text: string): Promise<string[]> {
  const directory = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
  try {
    const file = `${directory}/libvirt gci.prom`;
    for (const name of [file, `${file}.lock`]) await Deno.writeTextFile(name, text);
    const settings = `${directory}/config.yaml`;
    await Deno.writeTextFile(settings, `vcpus: 1\n${setting(file)}\n# metrics_file: /x.prom\n`);
    await output(new URL("packaging/remove_metrics", ROOT).pathname, settings);
    const names = [...Deno.readDirSync(directory)].map(({ name }) => name);
    return names.filter((name) => name !== "config.yaml").sort();
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

const OURS = await Deno.readTextFile(new URL("tests/data/metrics.prom", ROOT));
const KEPT = ["libvirt gci.prom", "libvirt gci.prom.lock"];

for (
  const [what, setting, text, left] of [
    ["our metrics", (file: string) => `metrics_file: ${file} # here`, OURS, []],
    ["our metrics in quotes", (file: string) => `metrics_file: "${file}"`, OURS, []],
    ["another's metrics", (file: string) => `metrics_file: ${file}`, "# TYPE other gauge\n", KEPT],
    ["metrics that no setting names", (file: string) => `#metrics_file: ${file}`, OURS, KEPT],
  ] as const
) {
  Deno.test(`of ${what}, removal of the package leaves ${left.length} files`, async () => {
    assert.deepEqual(await afterRemoval(setting, text), left);
  });
}

Deno.test("removal of the package passes without settings", async () => {
  await output(new URL("packaging/remove_metrics", ROOT).pathname, "/nonexistent");
});
