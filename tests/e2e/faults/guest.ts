// SPDX-License-Identifier: GPL-2.0-or-later
import { allOf, sleep } from "../../../src/wait.ts";
import { virsh } from "../bed.ts";
import { type Attempt, type Fault, faultTest, meetFault } from "./matrix.ts";

/** What happens in the guest while a script runs: a script that does it. */
const IN_RUN: readonly (Omit<Fault, "stage" | "then"> & { readonly script: string })[] = [
  {
    fault: "the guest's kernel panics",
    script: "echo c | sudo tee /proc/sysrq-trigger",
    status: 2,
    says: /its kernel panicked/,
  },
  {
    fault: "the guest powers off",
    script: "sudo poweroff -f",
    status: 2,
    says: /ended: it powered off|connection to the guest broke/,
  },
  {
    fault: "the guest reboots",
    script: "sudo reboot -f",
    status: 2,
    says: /ended: it powered off|connection to the guest broke/,
  },
  {
    fault: "the guest's disk is full",
    script: `
      free=$(df --output=avail --block-size=1 ~ | tail -1)
      fallocate --length $((free - 20000000)) ~/most
      dd if=/dev/zero of=~/rest bs=1M
    `,
    status: 1,
    says: /No space left on device/,
  },
  {
    fault: "the script kills its SSH session",
    script: "kill -KILL $PPID; sleep 5",
    status: 2,
    says: /broke while the script ran|with the signal/,
  },
];

faultTest("the guest fails while the script runs", async (t) => {
  await meetInRun(t, IN_RUN, (attempt, script) => attempt.run(script));
});

/** Meets each fault in a stage `run` of a machine of its own. */
async function meetInRun(
  t: Deno.TestContext,
  faults: typeof IN_RUN,
  meet: (attempt: Attempt, script: string) => ReturnType<Attempt["run"]>,
): Promise<void> {
  for (const { script, ...fault } of faults) {
    const expected = { ...fault, stage: "run", then: "cleanup" } as const;
    await t.step(fault.fault, () =>
      meetFault(fault.fault, expected, async (attempt) => {
        await attempt.mustPrepare();
        return await meet(attempt, script);
      }));
  }
}

const NO_SSHD = "sudo sed -i /sshd/d /etc/inittab; sudo kill -HUP 1; sudo pkill -f '[s]shd -D'";

/** What an earlier script did to the guest, which is seen only where the next one has to connect. */
const BEFORE_RUN: typeof IN_RUN = [
  {
    fault: "the guest shows another host key",
    script: "sudo rm /etc/ssh/ssh_host_*; sudo pkill -f '[s]shd -D'; sleep 3",
    status: 2,
    says: /does not show the machine's host key/,
  },
  {
    fault: "the guest lets nobody in any more",
    script: "rm ~/.ssh/authorized_keys",
    status: 2,
    says: /refuses the key/,
  },
];

/** Takes the machine's network cable away. */
async function unplug({ machine }: Attempt): Promise<void> {
  const [, device = ""] = /^\s*(vnet\d+)\s/m.exec(await virsh("domiflist", machine)) ?? [];
  await virsh("domif-setlink", machine, device, "down");
}

/** The same, where run waits for a minute: it may get better. */
const BEFORE_WAITING_RUN: readonly (typeof IN_RUN[number] & {
  /** What happens on the host then. */
  readonly onHost?: (attempt: Attempt) => Promise<void>;
})[] = [
  {
    fault: "the guest has lost its network",
    script: "(sleep 1; sudo ip link set eth0 down) >/dev/null 2>&1 & sleep 0.5",
    status: 2,
    says: /within 60 s: it does not answer\nWhat to do: Check .* console/,
  },
  {
    fault: "the machine's link is down",
    script: "true",
    onHost: unplug,
    status: 2,
    says: /within 60 s: it does not answer\n[^]*is down in libvirt.*: virsh .* domif-setlink .* up/,
  },
  {
    fault: "SSH is refused",
    script: NO_SSHD,
    status: 2,
    says: /within 60 s: it refuses the connection\nWhat to do: Start an SSH server/,
  },
  {
    fault: "SSH stalls",
    script: "sudo pkill -STOP -f '[s]shd -D'",
    status: 2,
    says: /within 60 s: it accepts the connection, but its SSH server does not answer/,
  },
  {
    fault: "SSH is reset",
    script: `${NO_SSHD}
      cat >/tmp/reset.pl <<'END'
      use Socket;
      socket(S, PF_INET, SOCK_STREAM, 0);
      setsockopt(S, SOL_SOCKET, SO_REUSEADDR, 1);
      bind(S, sockaddr_in(22, INADDR_ANY)) or die;
      listen(S, 9);
      while (accept(C, S)) { setsockopt(C, SOL_SOCKET, SO_LINGER, pack("ii", 1, 0)); close(C) }
END
      sudo setsid perl /tmp/reset.pl >/dev/null 2>&1 </dev/null & sleep 1`,
    status: 2,
    says: /within 60 s: it closes the connection at once/,
  },
];

faultTest("a script finds the guest as an earlier one left it", async (t) => {
  await meetInRun(t, BEFORE_RUN, async (attempt, script) => {
    await attempt.run(script);
    await attempt.endMaster();
    return await attempt.run("true");
  });
  let turn = Promise.resolve(); // one machine starts after the other
  const meetTogether = (
    { script, onHost, ...fault }: typeof BEFORE_WAITING_RUN[number],
  ): Promise<void> =>
    meetFault(fault.fault, { ...fault, stage: "run", then: "cleanup" }, async (attempt) => {
      turn = turn.then(async () => {
        await attempt.mustPrepare();
        await attempt.run(script);
        await attempt.endMaster();
        await onHost?.(attempt);
        await sleep(1000);
      });
      await turn;
      return await attempt.run("true");
    }, { isBesideOthers: true });
  await t.step("and cannot reach it", async () => {
    await allOf(BEFORE_WAITING_RUN.map(meetTogether));
  });
});

faultTest("the guest does not come up", async (t) => {
  const faults: readonly (Pick<Fault, "fault" | "says"> & { readonly settings: object })[] = [
    {
      fault: "nothing listens at the SSH port",
      settings: { ssh: { port: 2 }, timeouts: { ssh_seconds: 6 } },
      says: /within 6 s: it refuses the connection/,
    },
    {
      fault: "the guest refuses the key",
      settings: { ssh: { user: "daemon" } },
      says: /refuses the key for the user "daemon"/,
    },
    {
      fault: "the guest has no key of ours, and another host key",
      settings: {
        timeouts: { ssh_seconds: 6 },
        templates: { lite: { ssh: { login: "cloud-init" } } },
      },
      says: /does not show the machine's host key[^]*What to do: .* did not install the keys/,
    },
  ];
  for (const { fault, says, settings } of faults) {
    await t.step(fault, () =>
      meetFault(
        fault,
        { stage: "prepare", status: 2, says, then: "nothing" },
        (attempt) => attempt.prepare(),
        { settings: { ...settings } },
      ));
  }
});
