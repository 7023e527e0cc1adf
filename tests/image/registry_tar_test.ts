// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { BrokenTar, readTar } from "../../src/image/registry/tar.ts";

/** Files for tar(1) to pack. */
async function makeFiles(): Promise<string> {
  const directory = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
  await Deno.mkdir(`${directory}/disk`);
  await Deno.writeTextFile(`${directory}/disk/disk.img`, "content ".repeat(1000));
  await Deno.writeTextFile(`${directory}/disk/empty`, "");
  await Deno.writeTextFile(`${directory}/disk/${"long".repeat(60)}`, "long");
  await Deno.writeTextFile(`${directory}/disk/é`, "utf-8");
  await Deno.symlink("/etc/passwd", `${directory}/disk/link`);
  await Deno.link(`${directory}/disk/disk.img`, `${directory}/disk/hard`);
  const sparse = await Deno.open(`${directory}/disk/sparse`, { write: true, create: true });
  await sparse.truncate(10 * 1024 ** 2);
  for (let mib = 0; mib < 10; mib++) {
    await sparse.seek(mib * 1024 ** 2, Deno.SeekMode.Start);
    await sparse.write(new TextEncoder().encode("data"));
  }
  sparse.close();
  return directory;
}

async function pack(
  directory: string,
  ...args: readonly string[]
): Promise<Uint8Array<ArrayBuffer>> {
  const { success, stdout, stderr } = await new Deno.Command("tar", {
    args: ["-C", directory, "--sort=name", ...args],
  }).output();
  assert(success, new TextDecoder().decode(stderr));
  return stdout;
}

/** What is read of it in chunks of this length: each member, and the content of those that are files. */
async function read(archive: Uint8Array<ArrayBuffer>, chunkBytes = 1000): Promise<string[]> {
  const chunks = async function* () {
    for (let at = 0; at < archive.length; at += chunkBytes) {
      yield await Promise.resolve(archive.slice(at, at + chunkBytes));
    }
  };
  const members: string[] = [];
  await readTar(chunks(), async ({ name, kind, bytes }, content) => {
    let text = "";
    const shown = name.length > 50 ? `${name.slice(0, 20)}…${name.length}` : name;
    if (kind === "file" && !name.endsWith("é")) {
      for await (const chunk of content) text += new TextDecoder().decode(chunk);
      assert.equal(text.length, bytes);
    }
    members.push(`${kind} ${shown} ${bytes} ${text.slice(0, 10)}`.trim());
  });
  return members;
}

for (const format of ["gnu", "pax", "posix", "oldgnu"]) {
  Deno.test(`an archive that tar --format=${format} wrote is read`, async () => {
    const directory = await makeFiles();
    try {
      const archive = await pack(
        directory,
        "-c",
        `--format=${format}`,
        "--no-recursion",
        "./disk",
        "./disk/disk.img",
        "./disk/empty",
        "./disk/hard",
        "./disk/link",
        `./disk/${"long".repeat(60)}`,
        "./disk/é",
      );
      const expected = [
        "other disk/ 0",
        "file disk/disk.img 8000 content co",
        "file disk/empty 0",
        "link disk/hard 0",
        "link disk/link 0",
        `file disk/longlonglonglon…245 4 long`,
        "file disk/é 5",
      ];
      for (const chunkBytes of [1, 512, 1000, 1_000_000]) {
        assert.deepEqual(await read(archive, chunkBytes), expected);
      }
    } finally {
      await Deno.remove(directory, { recursive: true });
    }
  });
}

for (const format of ["ustar", "v7"]) {
  Deno.test(`an archive that tar --format=${format} wrote is read`, async () => {
    const directory = await makeFiles();
    try {
      const archive = await pack(
        directory,
        "-c",
        `--format=${format}`,
        "disk/disk.img",
        "disk/empty",
      );
      assert.deepEqual(await read(archive), [
        "file disk/disk.img 8000 content co",
        "file disk/empty 0",
      ]);
    } finally {
      await Deno.remove(directory, { recursive: true });
    }
  });
}

for (
  const args of [["--format=gnu"], ["--format=pax"], ["--format=pax", "--sparse-version=0.0"], [
    "--format=pax",
    "--sparse-version=0.1",
  ]]
) {
  Deno.test(`a sparse file that tar -S ${args.join(" ")} wrote is told apart`, async () => {
    const directory = await makeFiles();
    try {
      const archive = await pack(directory, "-cS", ...args, "disk/sparse", "disk/disk.img");
      const members = await read(archive);
      assert.match(members[0] ?? "", /^sparse file disk\/sparse \d+$/);
      assert.equal(members[1], "file disk/disk.img 8000 content co");
    } finally {
      await Deno.remove(directory, { recursive: true });
    }
  });
}

Deno.test("a prefix of POSIX's is a part of the name", async () => {
  const directory = await makeFiles();
  try {
    const name = `${"a".repeat(90)}/${"b".repeat(90)}`;
    const archive = await pack(
      directory,
      "-c",
      "--format=ustar",
      `--transform=s,.*,${name},`,
      "disk/empty",
    );
    assert.deepEqual(await read(archive), [`file ${"a".repeat(20)}…181 0`]);
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
});

/** A header that says this of a file, with a right checksum. */
function header(change: (header: Uint8Array) => void = () => {}): Uint8Array<ArrayBuffer> {
  const block = new Uint8Array(512);
  const put = (at: number, text: string) => block.set(new TextEncoder().encode(text), at);
  put(0, "disk/x");
  put(124, "00000000005");
  put(156, "0");
  put(257, "ustar\x0000");
  change(block);
  const sum = block.reduce((sum, byte, i) => sum + (i >= 148 && i < 156 ? 32 : byte), 0);
  put(148, `${sum.toString(8).padStart(6, "0")}\0 `);
  return block;
}

function text(at: number, words: string): (header: Uint8Array) => void {
  return (header) => header.set(new TextEncoder().encode(words), at);
}

const CONTENT = new Uint8Array(512).fill(120);

function joined(...parts: readonly Uint8Array<ArrayBuffer>[]): Promise<Uint8Array<ArrayBuffer>> {
  return new Blob([...parts]).bytes();
}

Deno.test("a size in binary and an end without zeros are read", async () => {
  const binary = header((block) => block.fill(0, 124, 136).set([0x80], 124) ?? block.set([5], 135));
  assert.deepEqual(await read(await joined(binary, CONTENT)), ["file disk/x 5 xxxxx"]);
});

for (
  const [said, archive, why] of [
    ["no archive", joined(CONTENT), /malformed number/],
    ["a wrong checksum", joined(header().with(0, 65), CONTENT), /wrong checksum/],
    ["half a header", joined(header().slice(0, 100)), /amid a header/],
    ["half a file", joined(header(), CONTENT.slice(0, 3)), /amid a file/],
    ["no padding", joined(header(), CONTENT.slice(0, 5)), /amid a file/],
    [
      "a negative size",
      joined(header((it) => it.fill(0xff, 124, 136)), CONTENT),
      /malformed number/,
    ],
    ["a size in words", joined(header(text(124, "five")), CONTENT), /malformed number/],
    ["a long name without end", joined(header(text(156, "L")), CONTENT.slice(0, 3)), /amid a name/],
    [
      "a long name of 8 GiB",
      joined(header((it) => (text(156, "L")(it), text(124, "77777777777")(it))), CONTENT),
      /more than 1 MiB/,
    ],
    ["broken pax records", joined(header(text(156, "x")), CONTENT), /malformed pax/],
  ] as const
) {
  Deno.test(`an archive with ${said} is refused`, async () => {
    await assert.rejects(read(await archive), (error) => {
      assert(error instanceof BrokenTar);
      assert.match(error.message, why);
      return true;
    });
  });
}

for (const record of ["3 a", "0 a=b\n", "99 a=b\n", "-1 a=b\n", "1 "]) {
  Deno.test(`the pax record ${JSON.stringify(record)} ends the reading`, async () => {
    const size = record.length.toString(8).padStart(11, "0");
    const extended = header((it) => (text(156, "x")(it), text(124, size)(it)));
    const content = await joined(new TextEncoder().encode(record.padEnd(512, "\0")));
    await assert.rejects(read(await joined(extended, content)), BrokenTar);
  });
}
