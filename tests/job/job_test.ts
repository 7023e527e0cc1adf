// SPDX-License-Identifier: GPL-2.0-or-later
import fc from "fast-check";
import assert from "node:assert/strict";
import {
  type Env,
  type Job,
  jobFromEnv,
  machineName,
  makeUpMachineName,
  requireMachine,
} from "../../src/job/job.ts";
import { withDirectory } from "../fakes/with_directory.ts";

const BY_HAND: Env = {
  CUSTOM_ENV_CI_PROJECT_NAME: "libvirt",
  CUSTOM_ENV_CI_JOB_ID: "12345",
  CUSTOM_ENV_DISTRO: "fedora-34",
};

const NO_REQUESTS = {
  vcpus: null,
  memoryMib: null,
  diskGib: null,
  keepMinutes: null,
  nested: null,
};

const TOKEN = "glcbt-64_SecretToken";

const RESPONSE = {
  id: 4242,
  token: TOKEN,
  job_info: { name: "test", project_id: 99, project_name: "proj", project_full_path: "grp/proj" },
  git_info: { repo_url: `https://gitlab-ci-token:${TOKEN}@gitlab.example.com/grp/proj.git` },
  runner_info: { timeout: 3600 },
};

/** A directory such as GitLab Runner makes for each attempt of a job, and its environment. */
async function underGitLab(
  use: (env: Env & { readonly JOB_RESPONSE_FILE: string }) => Promise<void>,
  response: unknown = RESPONSE,
): Promise<void> {
  const directory = await Deno.makeTempDir();
  const file = `${directory}/response.json`;
  try {
    const json = typeof response === "string" ? response : JSON.stringify(response);
    await Deno.writeTextFile(file, json);
    await use({
      JOB_RESPONSE_FILE: file,
      CUSTOM_ENV_CI_PROJECT_NAME: "proj",
      CUSTOM_ENV_CI_JOB_ID: "4242",
      CUSTOM_ENV_DISTRO: "debian-12",
    });
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

async function machineUnderGitLab(response: unknown, env: Env = {}): Promise<string> {
  let machine = "";
  await underGitLab(async (own) => {
    machine = requireMachine(await jobFromEnv({ ...own, ...env }));
  }, response);
  return machine;
}

Deno.test("by hand, a machine is named for its project, its template and its job", async () => {
  assert.deepEqual(
    await jobFromEnv(BY_HAND),
    {
      machine: "gitlab-libvirt-fedora-34-12345",
      id: "12345",
      project: "libvirt",
      isProtected: null,
      template: "fedora-34",
      isTemplateFromOperator: false,
      requests: NO_REQUESTS,
      services: [],
      timeoutSeconds: null,
      attemptDir: null,
      configCaller: null,
      byHand: true,
    } satisfies Job,
  );
});

Deno.test("by hand without any variable, nothing is known and no machine is named", async () => {
  assert.deepEqual(
    await jobFromEnv({}),
    {
      machine: null,
      id: null,
      project: null,
      isProtected: null,
      template: null,
      isTemplateFromOperator: false,
      requests: NO_REQUESTS,
      services: [],
      timeoutSeconds: null,
      attemptDir: null,
      configCaller: null,
      byHand: true,
    } satisfies Job,
  );
});

Deno.test("by hand, a machine is not named without the job's id or its project", async () => {
  for (const missing of ["CUSTOM_ENV_CI_JOB_ID", "CUSTOM_ENV_CI_PROJECT_NAME"]) {
    assert.equal((await jobFromEnv({ ...BY_HAND, [missing]: undefined })).machine, null);
  }
});

Deno.test("by hand, parts that are not safe are made so, and a hash tells them apart", async () => {
  const named = (project: string): Promise<string> => machineName([project, "fedora-34", "1"]);
  assert.match(await named("My Project"), /^gitlab-my-project-fedora-34-1-[0-9a-f]{10}$/);
  assert.notEqual(await named("My Project"), await named("my project"));
});

Deno.test("by hand, a machine without a template has a hash in its name", async () => {
  assert.match(await machineName(["libvirt", "", "7"]), /^gitlab-libvirt-7-[0-9a-f]{10}$/);
});

Deno.test("a long name is cut, and keeps the job's id whole", async () => {
  const name = await machineName(["p".repeat(200), "d".repeat(200), "1234567890123456"]);
  assert.equal(name.length, 63);
  assert.match(name, /^gitlab-p+-d{18}-1234567890123456-[0-9a-f]{10}$/);
});

Deno.test("the template is DISTRO's, else that of image:", async () => {
  const templateOf = async (env: Env): Promise<string | null> => (await jobFromEnv(env)).template;
  assert.equal(
    await templateOf({ CUSTOM_ENV_DISTRO: "a", CUSTOM_ENV_CI_JOB_IMAGE: "registry/b:1" }),
    "a",
  );
  assert.equal(await templateOf({ CUSTOM_ENV_CI_JOB_IMAGE: "registry/b:1" }), "registry/b:1");
  assert.equal(await templateOf({ CUSTOM_ENV_CI_JOB_IMAGE: "" }), null);
});

Deno.test("an empty DISTRO stays what the job asks for, so that it is refused", async () => {
  assert.equal((await jobFromEnv({ CUSTOM_ENV_DISTRO: "" })).template, "");
});

Deno.test("--distro wins over the job's template and leaves the machine's name", async () => {
  const job = await jobFromEnv(BY_HAND, { distro: "debian-12" });
  assert.equal(job.template, "debian-12");
  assert.equal(job.isTemplateFromOperator, true);
  assert.equal(job.machine, "gitlab-libvirt-fedora-34-12345");
});

Deno.test("--machine wins over every other name", async () => {
  const env = { ...BY_HAND, LIBVIRT_GCI_MACHINE: "from-config" };
  assert.equal((await jobFromEnv(env, { machine: "Mine_1.x" })).machine, "Mine_1.x");
});

for (
  const machine of [
    "",
    "a b",
    "a\nb",
    "a\n",
    "a".repeat(64),
    ..."-a .a a/b ../a a;b a'b \" ä".split(" "),
  ]
) {
  Deno.test(`--machine ${JSON.stringify(machine)} is no name`, async () => {
    await assert.rejects(jobFromEnv({}, { machine }), {
      name: "UsageError",
      message: `${JSON.stringify(machine)} is not a valid machine name`,
      advice: /63 characters at most/,
    });
  });
}

Deno.test("requireMachine() gives the name, and says how to give one", async () => {
  assert.equal(requireMachine(await jobFromEnv({}, { machine: "m" })), "m");
  const job = await jobFromEnv({});
  assert.throws(() => requireMachine(job), {
    name: "UsageError",
    message: /No machine is named/,
    advice: /--machine NAME/,
  });
});

Deno.test("under GitLab Runner, who the job is comes from GitLab, and its wishes from it", async () => {
  await underGitLab(async (env) => {
    const { machine, ...job } = await jobFromEnv({
      ...env,
      CUSTOM_ENV_LIBVIRT_GCI_VCPUS: "4",
      CUSTOM_ENV_LIBVIRT_GCI_MEMORY_MIB: "4096",
      CUSTOM_ENV_LIBVIRT_GCI_DISK_GIB: "",
      CUSTOM_ENV_LIBVIRT_GCI_KEEP_MINUTES: "-1",
      CUSTOM_ENV_LIBVIRT_GCI_NESTED: "yes",
    });
    assert.match(machine ?? "", /^gitlab-proj-4242-[0-9a-f]{10}$/);
    assert.deepEqual(job, {
      id: "4242",
      project: "grp/proj",
      isProtected: false,
      template: "debian-12",
      isTemplateFromOperator: false,
      requests: { vcpus: "4", memoryMib: "4096", diskGib: "", keepMinutes: "-1", nested: "yes" },
      services: [],
      timeoutSeconds: 3600,
      attemptDir: env.JOB_RESPONSE_FILE.replace("/response.json", ""),
      configCaller: null,
      byHand: false,
    });
  });
});

for (
  const [git_info, isProtected] of [
    [{ protected: true }, true],
    [{ protected: false }, false],
    [{ protected: "true" }, false],
    [{}, false],
    [null, false],
  ] as const
) {
  Deno.test(`a job with the git_info ${JSON.stringify(git_info)} is ${isProtected ? "" : "not "}protected`, async () => {
    await underGitLab(async (env) => {
      const forged = { ...env, CUSTOM_ENV_CI_COMMIT_REF_PROTECTED: String(!isProtected) };
      assert.equal((await jobFromEnv(forged)).isProtected, isProtected);
      assert.equal((await jobFromEnv(env, { isProtected: !isProtected })).isProtected, isProtected);
    }, { ...RESPONSE, git_info });
  });
}

for (
  const [what, env, options, project, isProtected] of [
    ["nothing", {}, {}, null, null],
    ["a name", { CUSTOM_ENV_CI_PROJECT_NAME: "b" }, {}, "b", null],
    [
      "variables",
      { CUSTOM_ENV_CI_PROJECT_PATH: "a/b", CUSTOM_ENV_CI_COMMIT_REF_PROTECTED: "true" },
      {},
      "a/b",
      true,
    ],
    ["false", { CUSTOM_ENV_CI_COMMIT_REF_PROTECTED: "false" }, {}, null, false],
    [
      "options",
      { CUSTOM_ENV_CI_PROJECT_PATH: "a/b", CUSTOM_ENV_CI_COMMIT_REF_PROTECTED: "false" },
      { project: "c/d", isProtected: true },
      "c/d",
      true,
    ],
  ] as const
) {
  Deno.test(`by hand, the project and its protection are known from ${what}`, async () => {
    const job = await jobFromEnv(env, options);
    assert.deepEqual([job.project, job.isProtected], [project, isProtected]);
  });
}

for (
  const name of ["BUILD_FAILURE_EXIT_CODE", "SYSTEM_FAILURE_EXIT_CODE", "BUILD_EXIT_CODE_FILE"]
) {
  Deno.test(`a runner that sets ${name} and no JOB_RESPONSE_FILE is too old`, async () => {
    await assert.rejects(jobFromEnv({ ...BY_HAND, [name]: "1" }), {
      name: "SystemFailure",
      message: /does not identify the job/,
      advice: /GitLab Runner 14\.1 or newer/,
    });
  });

  Deno.test(`a runner that sets ${name} and a name by job_env tells nothing else`, async () => {
    const env = { ...BY_HAND, [name]: "1", CUSTOM_ENV_CI_PROJECT_PATH: "a/b" };
    const job = await jobFromEnv({ ...env, LIBVIRT_GCI_MACHINE: "m" });
    assert.deepEqual([job.machine, job.id, job.project, job.byHand], ["m", null, null, false]);
    assert.equal((await jobFromEnv(env, { machine: "operators" })).machine, "operators");
  });
}

Deno.test("neither the template nor --distro is in the name under GitLab Runner", async () => {
  await underGitLab(async (env) => {
    const { machine } = await jobFromEnv(env);
    assert.equal((await jobFromEnv({ ...env, CUSTOM_ENV_DISTRO: "other" })).machine, machine);
    assert.equal((await jobFromEnv(env, { distro: "other" })).machine, machine);
  });
});

Deno.test("a job that forges its variables changes neither its id nor its project", async () => {
  const forged = {
    CUSTOM_ENV_CI_JOB_ID: "../../evil",
    CUSTOM_ENV_CI_PROJECT_NAME: "other",
    CUSTOM_ENV_CI_PROJECT_PATH: "other/other",
    CUSTOM_ENV_JOB_RESPONSE_FILE: "/etc/passwd",
    CUSTOM_ENV_LIBVIRT_GCI_MACHINE: "somebody-elses",
    CUSTOM_ENV_LIBVIRT_GCI_CALLER: "1 1 boot",
    CUSTOM_ENV_CI_JOB_SERVICES: '[{"name":"forged"}]',
    CUSTOM_ENV_BUILD_FAILURE_EXIT_CODE: "0",
  };
  await underGitLab(async (env) => {
    assert.deepEqual(await jobFromEnv({ ...env, ...forged }), await jobFromEnv(env));
  });
});

Deno.test("config, prepare, run and cleanup agree on the machine, with job_env or without", async () => {
  await underGitLab(async (env) => {
    const config = await jobFromEnv({ ...env, LIBVIRT_GCI_MACHINE: undefined });
    const jobEnv = { ...env, LIBVIRT_GCI_MACHINE: config.machine ?? "" };
    for (const stageEnv of [env, env, env, jobEnv, jobEnv, jobEnv]) {
      assert.deepEqual(await jobFromEnv(stageEnv), config);
    }
  });
});

Deno.test("who called config comes from job_env", async () => {
  await underGitLab(async (env) => {
    assert.equal((await jobFromEnv(env)).configCaller, null);
    const job = await jobFromEnv({ ...env, LIBVIRT_GCI_CALLER: "812 1043 boot" });
    assert.equal(job.configCaller, "812 1043 boot");
  });
});

Deno.test("two attempts of one job have two machines", async () => {
  assert.notEqual(await machineUnderGitLab(RESPONSE), await machineUnderGitLab(RESPONSE));
});

for (
  const [what, other] of [
    ["two GitLab servers", {
      ...RESPONSE,
      git_info: { repo_url: `https://gitlab-ci-token:${TOKEN}@gitlab.example.org/grp/proj.git` },
    }],
    ["two projects of one name", {
      ...RESPONSE,
      job_info: { ...RESPONSE.job_info, project_id: 1 },
    }],
  ] as const
) {
  Deno.test(`${what} have two machines, though the runner's directory is the same`, async () => {
    await underGitLab(async (env) => {
      const first = await jobFromEnv(env);
      await Deno.writeTextFile(env.JOB_RESPONSE_FILE, JSON.stringify(other));
      const second = await jobFromEnv(env);
      assert.equal(first.id, second.id);
      assert.notEqual(first.machine, second.machine);
    });
  });
}

Deno.test("the job's token does not change the machine, which must outlive it", async () => {
  await underGitLab(async (env) => {
    const { machine } = await jobFromEnv(env);
    const repo_url = "https://gitlab-ci-token:another@gitlab.example.com/grp/proj.git";
    const response = { ...RESPONSE, token: "another", git_info: { repo_url } };
    await Deno.writeTextFile(env.JOB_RESPONSE_FILE, JSON.stringify(response));
    assert.equal((await jobFromEnv(env)).machine, machine);
  });
});

Deno.test("the name from job_env wins over the one that follows from the job", async () => {
  const machine = await machineUnderGitLab(RESPONSE, { LIBVIRT_GCI_MACHINE: "from-config" });
  assert.equal(machine, "from-config");
});

Deno.test("an empty name from job_env counts as none", async () => {
  assert.match(
    await machineUnderGitLab(RESPONSE, { LIBVIRT_GCI_MACHINE: "" }),
    /^gitlab-proj-4242-/,
  );
});

Deno.test("by hand, a job's own variable for the machine's name has no effect", async () => {
  const env = { ...BY_HAND, CUSTOM_ENV_LIBVIRT_GCI_MACHINE: "somebody-elses" };
  assert.equal((await jobFromEnv(env)).machine, "gitlab-libvirt-fedora-34-12345");
});

Deno.test("a name from job_env that is no name is refused", async () => {
  await assert.rejects(jobFromEnv({ LIBVIRT_GCI_MACHINE: "../x" }), {
    name: "UsageError",
    message: /"..\/x" is not a valid machine name/,
  });
});

Deno.test("a late cleanup finds its machine by job_env when the runner's file is gone", async () => {
  const env = {
    JOB_RESPONSE_FILE: "/nonexistent/response.json",
    LIBVIRT_GCI_MACHINE: "gitlab-proj-4242",
  };
  assert.equal((await jobFromEnv(env)).machine, "gitlab-proj-4242");
});

Deno.test("without job_env, a runner's file that is gone is the host's fault", async () => {
  await assert.rejects(
    jobFromEnv({ ...BY_HAND, JOB_RESPONSE_FILE: "/nonexistent/response.json" }),
    {
      name: "SystemFailure",
      message: /Cannot read .* in "\/nonexistent\/response\.json" \(JOB_RESPONSE_FILE\)/,
      advice: /GitLab Runner 14\.1/,
    },
  );
});

Deno.test("a runner's file that cannot be read is the host's fault, even with job_env", () =>
  withDirectory(async (directory) => {
    const env = { JOB_RESPONSE_FILE: directory, LIBVIRT_GCI_MACHINE: "m" };
    await assert.rejects(jobFromEnv(env), { name: "SystemFailure", message: /Cannot read/ });
  }));

for (
  const [what, response] of [
    ["half a JSON object", JSON.stringify(RESPONSE).slice(0, -3)],
    ["nothing", ""],
    ["a token and no JSON", TOKEN],
    ["null", "null"],
    ["a string", JSON.stringify(TOKEN)],
    ["a list", JSON.stringify([RESPONSE])],
    ["no id", { ...RESPONSE, id: undefined }],
    ["an id that is a path", { ...RESPONSE, id: `../${TOKEN}` }],
    ["an id that is no whole number", { ...RESPONSE, id: 1.5 }],
    ["the id 0", { ...RESPONSE, id: 0 }],
    ["no job_info", { ...RESPONSE, job_info: null }],
    ["a project's name that is no text", { ...RESPONSE, job_info: { project_name: 3 } }],
  ] as const
) {
  Deno.test(`a runner's file that holds ${what} is the host's fault and names no token`, async () => {
    await underGitLab(async (env) => {
      const error = await jobFromEnv(env).then(() => null, (error) => error);
      assert.equal(error?.name, "SystemFailure");
      assert.match(error.message, /Cannot read GitLab's description of the job/);
      assert.match(error.cause.message, /it is not JSON|it has no id or no job_info/);
      assert(!Deno.inspect(error).includes("Secret"), Deno.inspect(error));
    }, response);
  });
}

for (
  const [services, names] of [
    [[{ name: "postgres:16", alias: "db" }, { name: "$REDIS" }], ["postgres:16", "$REDIS"]],
    [[{ name: 7 }, "redis", null, { alias: "db" }, { name: "" }], [""]],
    [{ name: "postgres" }, []],
    ["postgres", []],
    [null, []],
    [undefined, []],
  ] as const
) {
  Deno.test(`of the services ${JSON.stringify(services)}, the runner's file names ${names}`, async () => {
    await underGitLab(async (env) => {
      const forged = { ...env, CUSTOM_ENV_CI_JOB_SERVICES: '[{"name":"forged"}]' };
      assert.deepEqual((await jobFromEnv(forged)).services, names);
    }, { ...RESPONSE, services });
  });
}

for (const timeout of [undefined, null, 0, -1, "3600", 1.5]) {
  Deno.test(`the timeout ${JSON.stringify(timeout)} of the runner's file is none`, async () => {
    await underGitLab(async (env) => {
      assert.equal((await jobFromEnv(env)).timeoutSeconds, null);
    }, { ...RESPONSE, runner_info: { timeout } });
  });
}

Deno.test("a runner's file without the optional parts is enough", async () => {
  await underGitLab(async (env) => {
    const job = await jobFromEnv(env);
    assert.equal(job.project, "proj");
    assert.equal(job.timeoutSeconds, null);
  }, { id: 1, job_info: { project_name: "proj" } });
});

const SAFE_NAME = /^[a-z0-9]([a-z0-9-]*[a-z0-9])?$/;

const hostile = fc.constantFrom(
  "",
  "a\0b",
  "\n",
  "a".repeat(300),
  "-".repeat(300),
  ..."- .. ../../evil a/b fedora-34 a--b --a-- A $(x) ' \" ; İ K ß 🙂 12345".split(" "),
);
const word = fc.oneof(
  hostile,
  fc.string({ unit: "grapheme" }),
  fc.string({ unit: "binary", maxLength: 100 }),
  fc.stringMatching(/^[a-z0-9-]{0,40}$/),
);
const id = fc.oneof(fc.nat().map(String), word);

function assertSafe(name: string): void {
  assert(name.length <= 63, name);
  assert.match(name, SAFE_NAME);
  assert(!name.includes("..") && !name.includes("/") && !name.includes("--"), name);
}

Deno.test("by hand, every machine's name is a DNS label, whatever the parts are", async () => {
  await fc.assert(
    fc.asyncProperty(word, word, id, async (...parts) => assertSafe(await machineName(parts))),
    { numRuns: 3000 },
  );
});

Deno.test("under GitLab Runner, every name is a DNS label, and no two jobs share one", async () => {
  const jobs = new Map<string, string>();
  await fc.assert(
    fc.asyncProperty(word, id, word, async (project, id, attempt) => {
      const name = await machineName([project, "", id], attempt);
      assertSafe(name);
      const job = JSON.stringify([project, id, attempt]);
      assert.equal(jobs.get(name) ?? job, job);
      jobs.set(name, job);
    }),
    { numRuns: 5000 },
  );
  assert(jobs.size > 3000, `only ${jobs.size} jobs were different`);
});

const variable = fc.constantFrom(
  ..."CI_JOB_ID CI_PROJECT_NAME CI_PROJECT_PATH CI_JOB_IMAGE CI_JOB_TOKEN DISTRO TMPDIR".split(" "),
  ..."CI_COMMIT_REF_PROTECTED CI_SERVER_HOST CI_CONCURRENT_ID CI_JOB_TIMEOUT".split(" "),
  ..."LIBVIRT_GCI_MACHINE LIBVIRT_GCI_VCPUS LIBVIRT_GCI_CALLER CI_JOB_SERVICES".split(" "),
  ..."JOB_RESPONSE_FILE BUILD_EXIT_CODE_FILE __proto__".split(" "),
);

Deno.test("under GitLab Runner, no variable of the job changes which job it is", async () => {
  await underGitLab(async (env) => {
    const { template: _, requests: __, ...expected } = await jobFromEnv(env);
    await fc.assert(
      fc.asyncProperty(fc.array(fc.tuple(variable, word), { maxLength: 8 }), async (variables) => {
        const own = Object.fromEntries(
          variables.map(([key, value]) => [`CUSTOM_ENV_${key}`, value]),
        );
        const { template: _, requests: __, ...job } = await jobFromEnv({ ...env, ...own });
        assert.deepEqual(job, expected);
      }),
      { numRuns: 1000 },
    );
  });
});

Deno.test("by hand, any variables name a machine safely, or none", async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(fc.tuple(variable, word), { maxLength: 8 }), async (variables) => {
      const env = Object.fromEntries(variables.map(([key, value]) => [`CUSTOM_ENV_${key}`, value]));
      const { machine } = await jobFromEnv(env);
      if (machine !== null) assertSafe(machine);
    }),
    { numRuns: 1000 },
  );
});

Deno.test("a machine without a name gets one that is a DNS label, and never the same", () => {
  const names = new Set<string>();
  fc.assert(
    fc.property(word, (template) => {
      const name = makeUpMachineName(template);
      assertSafe(name);
      names.add(name);
    }),
    { numRuns: 100 },
  );
  assert.equal(names.size, 100);
});
