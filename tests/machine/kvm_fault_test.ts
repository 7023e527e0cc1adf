// SPDX-License-Identifier: GPL-2.0-or-later
import assert from "node:assert/strict";
import { loadKvm } from "../../ffi/kvm.ts";
import { explain, faultOf, SystemFailure } from "../../src/errors.ts";
import { Domain } from "../../src/libvirt/domain.ts";
import { LibvirtError, VIR_ERR } from "../../src/libvirt/error.ts";
import { newMetadata } from "../../src/machine/create.ts";
import { findKvmFault, type KvmUser, watchKvm } from "../../src/machine/kvm/kvm_fault.ts";
import { type KvmAnswer, kvmRunsGuests } from "../../src/machine/kvm/kvm_probe.ts";
import { createLogin } from "../../src/machine/login.ts";
import { newOwner } from "../../src/machine/owner.ts";
import { prepare } from "../../src/machine/prepare_machine.ts";
import { reach } from "../../src/machine/reach.ts";
import { rootOf } from "../../src/read_xml.ts";
import { sleep } from "../../src/wait.ts";
import { TestGuest } from "../fakes/test_guest.ts";
import { openTestHost } from "../fakes/test_host.ts";
import { JOB, testStage } from "../fakes/test_stage.ts";

loadKvm(); // what is loaded in a test is taken for a leak of it

const WORKS: KvmAnswer = { works: true };
const BROKEN: KvmAnswer = { works: false, reason: "a guest's kernel never boots" };
const UNKNOWN: KvmAnswer = { works: null, reason: "no permission on /dev/kvm" };

/** A machine of these settings, on a host where KVM is like this. */
function user(answer: KvmAnswer, { domainType = "kvm", isLocal = true } = {}) {
  const kvm = () => isLocal ? Promise.resolve(answer) : Promise.reject(new Error("asked"));
  return {
    settings: { domainType, timeouts: { addressSeconds: 1, sshSeconds: 1 } },
    connection: { isLocal },
    kvm,
  };
}

const HERE = [WORKS, UNKNOWN, BROKEN].map((answer) => user(answer));

function refusal(words: string): LibvirtError {
  return new LibvirtError("virDomainCreateXML", words, { code: VIR_ERR.INTERNAL_ERROR });
}

Deno.test("a machine that libvirt cannot start with KVM is the host's fault, with what to set", async () => {
  await using connection = await openTestHost();
  await using guest = await TestGuest.start();
  using stage = testStage(connection, guest, { machine: { domainType: "kvm" } });
  // libvirt's test driver would start it. This is what QEMU's says without /dev/kvm.
  const words = "invalid argument: Emulator '/usr/bin/qemu' does not support virt type 'kvm'";
  const tried: (string | undefined)[] = [];
  const { call } = connection;
  connection.call = ((...args: Parameters<typeof call>) => {
    const [name, , domainXml] = args;
    if (name !== "virDomainCreateXML") return call.apply(connection, args);
    const text = new TextDecoder().decode(domainXml as Uint8Array).replace("\0", "");
    tried.push(rootOf(text)?.attributes["type"]);
    return Promise.reject(refusal(words));
  }) as typeof call;
  await assert.rejects(prepare(JOB, {}, stage), (error) => {
    assert(error instanceof SystemFailure);
    assert.equal(faultOf(error), "kvm");
    assert.match(
      explain(error),
      /^Cannot start the machine .*\nbecause: .*KVM.*\nbecause: .*'kvm'/,
    );
    assert.match(
      explain(error),
      /"domain_type: qemu", but emulation is slow and, .* no security bound/,
    );
    return true;
  });
  assert.deepEqual(tried, ["kvm"]);
});

Deno.test("a machine without an address is KVM's fault where KVM runs no guests, and soon", async () => {
  const answer = await kvmRunsGuests();
  await using connection = await openTestHost();
  await using guest = await TestGuest.start();
  const machine = { domainType: "kvm", timeouts: { addressSeconds: 6 } };
  using stage = testStage(connection, guest, { machine, config: { postMortem: { count: 0 } } });
  const { machine: settings } = stage.config;
  using domain = await Domain.lookup(connection, "somebody"); // it has no card
  const login = await createLogin(JOB.machine, { keys: "own", settings }, stage.host);
  const ofMetadata = { template: "debian-12", login, settings, card: null };
  const metadata = newMetadata(await newOwner(JOB), ofMetadata);
  const waiting = {
    name: JOB.machine,
    metadata,
    settings,
    login,
    filter: null,
    card: null,
    master: null,
    consolePath: "",
    seedPath: null,
    credentialPath: null,
    nvramPath: null,
    template: {
      pool: "base_imgs",
      volume: "debian-12.qcow2",
      path: "",
      format: "qcow2",
      capacityBytes: 0,
      modified: "",
    },
  };
  const start = performance.now();
  await assert.rejects(
    reach(domain, waiting, {}, stage),
    (error) => {
      const isBroken = answer.works === false;
      assert.equal(faultOf(error), isBroken ? "kvm" : "address", explain(error));
      if (isBroken) assert(explain(error).includes(answer.reason), explain(error));
      return true;
    },
  );
  const seconds = (performance.now() - start) / 1000;
  if (answer.works === false) assert(seconds < 6, `after ${seconds} s`);
});

Deno.test("KVM is at fault if it runs no guests, or if libvirt or QEMU name it", async () => {
  for (
    const words of [
      "invalid argument: Emulator '/usr/bin/qemu-system-x86_64' does not support virt type 'kvm'",
      "invalid argument: could not find capabilities for domaintype=kvm ",
      "QEMU: Could not access KVM kernel module: No such file or directory",
      "QEMU: -accel kvm: failed to initialize kvm: Permission denied",
    ]
  ) {
    for (const machine of [...HERE, user(WORKS, { isLocal: false })]) {
      const cause = refusal(words);
      const fault = await findKvmFault(machine, cause);
      assert.equal(fault?.cause, cause, words);
      assert.equal(faultOf(fault), "kvm");
    }
  }
  const other = refusal("Cannot access storage file; the emulator is /usr/libexec/qemu-kvm");
  assert.equal(await findKvmFault(user(WORKS), other), null);
  assert.equal(await findKvmFault(user(UNKNOWN), other), null);
  assert.equal(await findKvmFault(user(BROKEN, { isLocal: false }), other), null);
  const fault = await findKvmFault(user(BROKEN), other);
  assert.match(explain(fault), /^KVM does not run guests on this host: .* never boots\n/);
});

Deno.test("a machine that does not use KVM is not its fault, whatever is wrong", async () => {
  for (const domainType of ["qemu", "test"]) {
    const machine: KvmUser = {
      ...user(BROKEN, { domainType }),
      kvm: () => Promise.reject(new Error("asked")),
    };
    assert.equal(await findKvmFault(machine, refusal("Could not access KVM kernel module")), null);
  }
});

Deno.test("a wait looks at KVM once, after half of its time at the latest", async () => {
  let asked = 0;
  const watch = watchKvm({
    ...user(WORKS),
    kvm: () => {
      asked++;
      return Promise.resolve(WORKS);
    },
  });
  await watch();
  assert.equal(asked, 0);
  await sleep(550);
  await watch();
  await watch();
  assert.equal(asked, 1);

  const broken = watchKvm(user(BROKEN));
  await broken();
  await sleep(550);
  await assert.rejects(broken(), /KVM does not run guests on this host: .* never boots/);
});
