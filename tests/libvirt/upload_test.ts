// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { Connection } from "../../src/libvirt/connection.ts";
import { StoragePool } from "../../src/libvirt/storage_pool.ts";
import type { Volume } from "../../src/libvirt/volume.ts";
import { type Answer, HangUp, TestLibvirtd, xdr } from "../fakes/test_libvirtd.ts";

const BYTES_OF_BLOCK = 64 * 1024;
type Bytes = Uint8Array<ArrayBuffer>;

/** Runs the body on a volume of a daemon that takes what is uploaded. */
async function withVolume(
  body: (volume: Volume, daemon: TestLibvirtd) => Promise<void>,
  { callSeconds = 60, ...answers }: {
    readonly callSeconds?: number;
    readonly upload?: Answer;
    readonly isSlow?: boolean;
  } = {},
): Promise<void> {
  const volume = xdr("pool", "v", "key");
  await using daemon = new TestLibvirtd({
    STORAGE_POOL_LOOKUP_BY_NAME: () => xdr("pool", new Uint8Array(16)),
    STORAGE_VOL_LOOKUP_BY_NAME: () => volume,
    STORAGE_VOL_UPLOAD: answers.upload ?? (() => xdr()),
  }, { streamsStall: answers.isSlow ?? false });
  await using connection = await Connection.open(daemon.uri, { callSeconds });
  using pool = await StoragePool.lookup(connection, "pool");
  using found = await pool.lookupVolume("v");
  await body(found, daemon);
}

function block(value: number, bytes = BYTES_OF_BLOCK): Bytes {
  return new Uint8Array(bytes).fill(value);
}

const never = new AbortController().signal;

Deno.test("an upload sends data as data, and each run of zeros as one hole", async () => {
  await withVolume(async (volume, daemon) => {
    const parts = [block(0), block(0), block(1), block(0, 3), block(7, 5)];
    const odd = new Uint8Array(block(0, BYTES_OF_BLOCK + 1).buffer, 1); // no words of 4 bytes
    let told = 0;
    const source = ReadableStream.from([...parts, odd, new Uint8Array(3 * BYTES_OF_BLOCK)]);
    const onBytes = (bytes: number) => void (told = bytes);
    const sent = await volume.uploadFrom(source, { signal: never, onBytes });
    assert.equal(sent, 7 * BYTES_OF_BLOCK + 8);
    assert.equal(told, sent);
    assert.deepEqual(daemon.stream.map(({ bytes, hole }) => hole ?? bytes.length), [
      2 * BYTES_OF_BLOCK,
      BYTES_OF_BLOCK,
      3,
      5,
      4 * BYTES_OF_BLOCK,
    ]);
    assert.deepEqual(daemon.stream.map(({ hole }) => hole !== null), [
      true,
      false,
      true,
      false,
      true,
    ]);
    assert.deepEqual(daemon.streamEnds, ["finished"]);
  });
});

Deno.test("zeros within a large part become holes, and the rest stays in its order", async () => {
  await withVolume(async (volume, daemon) => {
    const part = new Uint8Array([
      ...block(1),
      ...block(0),
      ...block(0),
      ...block(2),
      ...block(0, 9),
    ]);
    await volume.uploadFrom(ReadableStream.from([part]), { signal: never });
    const content = daemon.stream.flatMap(({ bytes, hole }) =>
      hole === null ? [...bytes] : Array(hole).fill(0)
    );
    assert.deepEqual(new Uint8Array(content), part);
    assert.equal(daemon.receivedBytes, 2 * BYTES_OF_BLOCK);
  });
});

Deno.test("a daemon is asked after 256 MiB whether all is written, before it gets more", async () => {
  const offsets: bigint[] = [];
  const uploadAt = (payload: Uint8Array): Bytes => {
    // Behind the volume: its pool, name and key, as XDR.
    offsets.push(
      new DataView(payload.buffer, payload.byteOffset + 4 + 4 + 4 + 4 + 4 + 4).getBigUint64(0),
    );
    return xdr();
  };
  await withVolume(async (volume, daemon) => {
    const large = block(0, 64 * 1024 ** 2);
    let told = 0;
    const sent = await volume.uploadFrom(ReadableStream.from(Array(5).fill(large)), {
      signal: never,
      onBytes: (bytes) => void (told = bytes),
    });
    assert.equal(sent, 5 * large.length);
    assert.equal(told, sent);
    assert.deepEqual(offsets, [0n, BigInt(4 * large.length)]);
    assert.deepEqual(daemon.stream.map(({ hole }) => hole), [4 * large.length, large.length]);
    assert.deepEqual(daemon.streamEnds, ["finished", "finished"]);
  }, { upload: uploadAt });
});

Deno.test("a source that fails aborts the upload with its own error", async () => {
  await withVolume(async (volume, daemon) => {
    const broken = async function* (): AsyncGenerator<Bytes> {
      yield block(1);
      await Promise.resolve();
      throw new Error("the digest is another");
    };
    const upload = volume.uploadFrom(ReadableStream.from(broken()), { signal: never });
    await assert.rejects(upload, /^Error: the digest is another$/);
    assert.deepEqual(daemon.streamEnds, ["aborted"]);
  });
});

/** Data without an end, and whether it was read to an end. */
function endless(): {
  readonly source: ReadableStream<Bytes>;
  readonly isCancelled: () => boolean;
} {
  let isCancelled = false;
  const source = new ReadableStream<Bytes>({
    pull: (controller) => controller.enqueue(block(1)),
    cancel: () => void (isCancelled = true),
  });
  return { source, isCancelled: () => isCancelled };
}

Deno.test("an abort ends an upload with the signal's reason, aborts its stream and ends its source", async () => {
  await withVolume(async (volume, daemon) => {
    const controller = new AbortController();
    const { source, isCancelled } = endless();
    let parts = 0;
    const onBytes = () => {
      if (++parts === 5) controller.abort(new Error("Cancelled by SIGINT"));
    };
    const upload = volume.uploadFrom(source, { signal: controller.signal, onBytes });
    await assert.rejects(upload, /^Error: Cancelled by SIGINT$/);
    assert(isCancelled());
    assert.deepEqual(daemon.streamEnds, ["aborted"]);
    assert(daemon.receivedBytes <= 5 * BYTES_OF_BLOCK);
  });
});

Deno.test("a daemon that takes nothing more slows the source, and then fails the upload", async () => {
  await withVolume(async (volume) => {
    const { source, isCancelled } = endless();
    let told = 0;
    const onBytes = (bytes: number) => void (told = bytes);
    const upload = volume.uploadFrom(source, { signal: never, onBytes });
    await assert.rejects(upload, {
      name: "LibvirtError",
      isLost: true,
      message: /no answer .* within 1 s/,
    });
    assert(isCancelled());
    assert(told < 16 * 1024 ** 2, `it took ${told} bytes`); // what sockets hold
  }, { callSeconds: 1, isSlow: true });
});

Deno.test("a daemon that is lost ends the upload as a lost connection", async () => {
  const upload = () => Promise.reject(new HangUp());
  await withVolume(async (volume) => {
    const uploading = volume.uploadFrom(endless().source, { signal: never });
    await assert.rejects(uploading, { name: "LibvirtError", isLost: true });
  }, { upload });
});
