// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { type Libvirt, loadLibvirt } from "../../ffi/libvirt.ts";
import { explain, SystemFailure } from "../../src/errors.ts";
import { Connection } from "../../src/libvirt/connection.ts";
import { Domain } from "../../src/libvirt/domain.ts";
import { isLibvirtError, LibvirtError, orNull, VIR_ERR } from "../../src/libvirt/error.ts";
import { Network } from "../../src/libvirt/network.ts";
import { StoragePool } from "../../src/libvirt/storage_pool.ts";
import { openTestHost } from "../fakes/test_host.ts";

function uriOfNoDaemon(socket: string): string {
  return `qemu+unix:///system?socket=/nonexistent/${socket}`;
}

Deno.test("a lookup that fails has libvirt's words, number and function", async () => {
  await using connection = await openTestHost();
  await assert.rejects(Domain.lookup(connection, "nobody"), {
    name: "LibvirtError",
    message: /Domain not found.*virDomainLookupByName, error 42/,
    code: VIR_ERR.NO_DOMAIN,
  });
});

Deno.test("each failure has its own error, in calls of eight connections at once", async () => {
  const connections = await Promise.all(Array.from({ length: 8 }, () => openTestHost()));
  const calls = connections.flatMap((connection) =>
    Array.from({ length: 50 }, (_, i) => [
      [VIR_ERR.NO_DOMAIN, Domain.lookup(connection, `nobody-${i}`)] as const,
      [VIR_ERR.NO_STORAGE_POOL, StoragePool.lookup(connection, `nothing-${i}`)] as const,
      [VIR_ERR.NO_NETWORK, Network.lookup(connection, `nowhere-${i}`)] as const,
    ]).flat()
  );
  const codes = await Promise.all(calls.map(([, call]) => call.then(() => 0, (e) => e.code)));
  assert.deepEqual(codes, calls.map(([code]) => code));
  for (const connection of connections) assert.equal(await connection.close(), 0);
});

Deno.test("find gives null for what is not there, and passes other failures on", async () => {
  await using connection = await openTestHost();
  assert.equal(await Domain.find(connection, "nobody"), null);
  assert.equal(await StoragePool.find(connection, "nothing"), null);
  assert.equal(await Network.find(connection, "nowhere"), null);
  await assert.rejects(
    orNull(VIR_ERR.NO_DOMAIN, StoragePool.lookup(connection, "nothing")),
    LibvirtError,
  );
});

Deno.test("no handle is left when all are disposed of", async () => {
  const connection = await openTestHost();
  {
    using domain = await Domain.lookup(connection, "somebody");
    using pool = await StoragePool.lookup(connection, "base_imgs");
    using volume = await pool.lookupVolume("debian-12.qcow2");
    using network = await Network.lookup(connection, "default");
    assert(await domain.isActive());
    assert(await pool.isActive());
    assert(await network.isActive());
    assert.equal(await volume.path(), "/var/lib/libvirt/base_imgs/debian-12.qcow2");
    assert.deepEqual((await pool.volumeNames()).sort(), ["debian-12.qcow2", "old-name"]);
  }
  assert.equal(await connection.close(), 0);
});

Deno.test("a handle is given back after the calls on it that have begun, and no sooner", async () => {
  await using connection = await openTestHost();
  const domain = await Domain.lookup(connection, "somebody");
  const answers = [domain.xml(), domain.isActive(), domain.xml()];
  domain[Symbol.dispose]();
  const [first, isActive, last] = await Promise.all(answers);
  assert.match(String(first), /<name>somebody</);
  assert.equal(isActive, true);
  assert.equal(last, first);
});

Deno.test("a handle that is not disposed of is seen when the connection closes", async () => {
  const connection = await openTestHost();
  const domain = await Domain.lookup(connection, "somebody");
  assert.equal(await connection.close(), 1);
  domain[Symbol.dispose]();
});

Deno.test("a failed open names the URI and says what to do", async () => {
  const open = Connection.open(uriOfNoDaemon("libvirt-sock"));
  await assert.rejects(open, (error) => {
    assert(error instanceof LibvirtError);
    assert.match(error.message, /qemu\+unix:\/\/\/system/);
    assert.match(error.message, /No such file or directory/);
    assert.match(error.advice ?? "", /Start libvirt/);
    return true;
  });
});

Deno.test("opens that fail at once have their own errors", async () => {
  const uris = Array.from({ length: 20 }, (_, i) => uriOfNoDaemon(`${i}`));
  const errors = await Promise.all(uris.map((uri) => Connection.open(uri).catch((error) => error)));
  for (const [i, error] of errors.entries()) {
    assert.match(error.message, new RegExp(`socket=/nonexistent/${i}".*'/nonexistent/${i}'`));
  }
});

Deno.test("a connection is lost if libvirt says so, not if it cannot tell", async () => {
  await using connection = await openTestHost();
  const libvirt: { -readonly [Name in keyof Libvirt]: Libvirt[Name] } = loadLibvirt();
  // The test driver's connections live for ever, and a driver that cannot tell is in few builds.
  const { virConnectIsAlive } = libvirt;
  const areLost: boolean[] = [];
  try {
    for (const answer of [1, 0, -1]) {
      libvirt.virConnectIsAlive = () => answer;
      const error = await StoragePool.lookup(connection, "nothing").catch((error) => error);
      areLost.push(error.isLost);
    }
  } finally {
    libvirt.virConnectIsAlive = virConnectIsAlive;
  }
  assert.deepEqual(areLost, [false, true, false]);
});

Deno.test("an error of libvirt that nobody explains has its log for advice", async () => {
  await using connection = await openTestHost();
  const error = await StoragePool.lookup(connection, "nothing").catch((error) => error);
  assert.match(explain(error), /^What to do: Check libvirt's log .*: journalctl -u libvirtd/m);
  const failure = new SystemFailure({ what: "x", cause: error, advice: "Make it" });
  assert.doesNotMatch(explain(failure), /journalctl/);
});

for (const library of ["libvirt.so.0", "libvirt-qemu.so.0"]) {
  Deno.test({
    name: `without ${library}, it is said which package has it`,
    ignore: Deno.uid() !== 0,
    fn: async () => {
      const code = `
        import { explain } from "${import.meta.resolve("../../src/errors.ts")}";
        import { Connection } from "${import.meta.resolve("../../src/libvirt/connection.ts")}";
        import { Domain } from "${import.meta.resolve("../../src/libvirt/domain.ts")}";
        const ask = async () => {
          await using connection = await Connection.open("test:///default");
          using domain = await Domain.lookup(connection, "test");
          await domain.agentCommand({ execute: "guest-ping" }, 1);
        };
        console.log(explain(await ask().catch((error) => error)));
        Deno.exit();
      `;
      const config = new URL("../../deno.json", import.meta.url).pathname;
      const hide = `for file in $(ldconfig -p | sed -n "s,^\\s*$1 .* => ,,p"); do
        mount --bind /dev/null "$file"
      done; shift; exec "$@"`;
      const program = [Deno.execPath(), "eval", "--quiet", "--config", config, code];
      const { stdout } = await new Deno.Command("unshare", {
        args: ["--mount", "sh", "-ec", hide, "sh", library, ...program],
      }).output();
      const told = new TextDecoder().decode(stdout);
      assert.match(told, new RegExp(`^libvirt: .*${library}`));
      assert.match(told, /^What to do: Install libvirt's libraries: the package libvirt0 /m);
    },
  });
}

Deno.test("libvirt prints nothing on stderr of its own", async () => {
  const program = `
    import { Connection } from "${import.meta.resolve("../../src/libvirt/connection.ts")}";
    import { Domain } from "${import.meta.resolve("../../src/libvirt/domain.ts")}";
    await Connection.open("${uriOfNoDaemon("x")}").catch(() => {});
    const connection = await Connection.open("test:///default");
    await Domain.find(connection, "nobody");
    await connection.close();
    Deno.exit(0);
  `;
  const output = await new Deno.Command(Deno.execPath(), {
    args: ["run", "--quiet", "--allow-all", "-"],
    cwd: new URL("../..", import.meta.url),
    stdin: "piped",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const writer = output.stdin.getWriter();
  await writer.write(new TextEncoder().encode(program));
  await writer.close();
  const { code, stderr } = await output.output();
  assert.equal(new TextDecoder().decode(stderr), "");
  assert.equal(code, 0);
});

/** A daemon that accepts and says nothing. */
function silentDaemon(): Disposable & { readonly uri: string } {
  const path = Deno.makeTempFileSync({ prefix: "libvirt-gci-test-" });
  Deno.removeSync(path);
  const listener = Deno.listen({ transport: "unix", path });
  const connections: Deno.Conn[] = [];
  (async () => {
    for await (const connection of listener) connections.push(connection);
  })();
  return {
    uri: `qemu+unix:///system?socket=${path}`,
    [Symbol.dispose]: () => {
      listener.close();
      for (const connection of connections) connection.close();
      Deno.removeSync(path);
    },
  };
}

// The call that was given up is still in flight when the test ends.
const GIVEN_UP = { sanitizeOps: false, sanitizeResources: false };

Deno.test(
  "a daemon that does not answer costs the deadline, not the process",
  GIVEN_UP,
  async () => {
    using daemon = silentDaemon();
    const start = performance.now();
    await assert.rejects(Connection.open(daemon.uri, { callSeconds: 0.3 }), {
      code: VIR_ERR.OPERATION_TIMEOUT,
      message: /no answer from the daemon within 0.3 s/,
    });
    assert(performance.now() - start < 3000);
  },
);

Deno.test("an error of libvirt is known as such, by its number or by none", () => {
  const error = new LibvirtError("virDomainLookupByName", "no domain", { code: 42 });
  assert(isLibvirtError(error));
  assert(isLibvirtError(error, 1, 42));
  assert(!isLibvirtError(error, 1));
  assert(!isLibvirtError(new Error("no domain")));
});
