// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { explain } from "../../src/errors.ts";
import { type DiskFormat, readDiskFormat } from "../../src/image/disk_format.ts";
import { ImageFile } from "../../src/image/image_file.ts";
import { gptDisk } from "../fakes/test_images.ts";

const MIB = 1024 ** 2;

async function isThere(): Promise<boolean> {
  try {
    return (await new Deno.Command("qemu-img", { args: ["--version"], stdout: "null" }).output())
      .success;
  } catch {
    return false;
  }
}

const ignore = !await isThere();

async function qemuImg(...args: readonly string[]): Promise<string> {
  const { success, stdout, stderr } = await new Deno.Command("qemu-img", { args: [...args] })
    .output();
  assert(success, new TextDecoder().decode(stderr));
  return new TextDecoder().decode(stdout);
}

async function formatOf(path: string): Promise<DiskFormat> {
  using file = await ImageFile.open(path, `"${path}"`);
  return await readDiskFormat(file, { name: `"${path}"`, mostVirtualBytes: 2 ** 40 });
}

/** What the image is refused with, as it is printed. */
async function refusalOf(path: string): Promise<string> {
  return await formatOf(path).then(() => assert.fail("accepted"), explain);
}

/** A directory with a raw disk of 5 MiB and a bit, with data here and there and at its end. */
async function withDisk(body: (dir: string, disk: string) => Promise<void>): Promise<void> {
  const dir = await Deno.makeTempDir({ prefix: "libvirt-gci-test-" });
  try {
    const bytes = new Uint8Array(5 * MIB + 3 * 512);
    bytes.set(gptDisk(512));
    new DataView(bytes.buffer).setBigUint64(512 + 32, BigInt(bytes.length / 512 - 1), true);
    for (let at = MIB / 2; at < bytes.length; at += MIB / 2) {
      crypto.getRandomValues(bytes.subarray(at, at + 5000));
    }
    crypto.getRandomValues(bytes.subarray(-3000));
    await Deno.writeFile(`${dir}/disk.raw`, bytes);
    await body(dir, `${dir}/disk.raw`);
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
}

for (
  const options of [
    [],
    ["-o", "compat=0.10"],
    ["-o", "cluster_size=512"],
    ["-o", "cluster_size=2M"],
    ["-o", "extended_l2=on"],
    ["-o", "lazy_refcounts=on"],
    ["-o", "refcount_bits=1"],
    ["-o", "refcount_bits=64,cluster_size=4k"],
    ["-o", "preallocation=metadata"],
    ["-o", "preallocation=falloc"],
    ["-c"],
    ["-c", "-o", "compression_type=zstd"],
    ["-c", "-o", "cluster_size=512"],
    ["-c", "-o", "extended_l2=on,cluster_size=2M"],
  ]
) {
  Deno.test(`an image by qemu-img convert ${options.join(" ")} is read as by QEMU`, {
    ignore,
  }, () =>
    withDisk(async (dir, disk) => {
      const image = `${dir}/image`;
      await qemuImg("convert", "-O", "qcow2", ...options, disk, image);
      const info = JSON.parse(await qemuImg("info", "--output=json", image));
      const found = await formatOf(image);
      assert.deepEqual(found, { format: info.format, virtualBytes: info["virtual-size"] });
      assert.equal(found.virtualBytes, 5 * MIB + 3 * 512);
      assert.deepEqual(await formatOf(disk), { format: "raw", virtualBytes: found.virtualBytes });

      const end = JSON.parse(await qemuImg("check", "--output=json", image))["image-end-offset"];
      const size = Math.min(end, (await Deno.stat(image)).size);
      for (const length of [size - info["cluster-size"], size * 3 / 4, size / 2, size / 4, 1000]) {
        if (length <= 0) continue;
        await Deno.truncate(image, Math.floor(length));
        assert.match(await refusalOf(image), /cut off/, `${length} of ${size}`);
      }
    }));
}

Deno.test(
  "an image that was only created is taken, also with preallocation",
  { ignore },
  () =>
    withDisk(async (dir) => {
      for (const preallocation of ["off", "metadata", "falloc"]) {
        const image = `${dir}/${preallocation}`;
        await qemuImg("create", "-f", "qcow2", "-o", `preallocation=${preallocation}`, image, "9M");
        assert.deepEqual(await formatOf(image), { format: "qcow2", virtualBytes: 9 * MIB });
      }
    }),
);

for (
  const [what, args, word] of [
    ["a backing file", ["-F", "raw", "-b", "disk.raw"], /has a backing file/],
    ["a data file", ["-o", "data_file=DIR/data.raw"], /data in another file/],
    [
      "a LUKS header",
      [
        "--object",
        "secret,id=s,data=x",
        "-o",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
      ],
      /is encrypted/,
    ],
  ] as const
) {
  Deno.test(
    `an image by qemu-img create with ${what} is refused`,
    { ignore },
    () =>
      withDisk(async (dir) => {
        const there = args.map((arg) => arg.replace("DIR", dir));
        await qemuImg("create", "-q", "-f", "qcow2", ...there, `${dir}/image`, "5M");
        assert.match(await refusalOf(`${dir}/image`), word);
      }),
  );
}

Deno.test(
  "an image with a snapshot is refused, and taken once converted",
  { ignore },
  () =>
    withDisk(async (dir, disk) => {
      const image = `${dir}/image`;
      await qemuImg("convert", "-O", "qcow2", disk, image);
      await qemuImg("snapshot", "-c", "s", image);
      assert.match(await refusalOf(image), /has snapshots.*\n.*qemu-img convert/);
      await qemuImg("convert", "-O", "qcow2", image, `${image}.new`);
      assert.equal((await formatOf(`${image}.new`)).format, "qcow2");
    }),
);

for (const format of ["vmdk", "vdi", "vhdx", "qed", "parallels", "qcow"]) {
  Deno.test(
    `an image in the format ${format} is refused as that`,
    { ignore },
    () =>
      withDisk(async (dir, disk) => {
        await qemuImg("convert", "-O", format, disk, `${dir}/image`);
        assert.match(await refusalOf(`${dir}/image`), new RegExp(`${format}.*\n.*convert`, "i"));
      }),
  );
}
