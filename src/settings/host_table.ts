// SPDX-License-Identifier: GPL-2.0-or-later
import { DIRECTORY, FLAG, NAME, PATTERNS, SECONDS, TEMPLATE_NAME, text, whole } from "./kinds.ts";
import { group, setting } from "./setting.ts";

export const HOST = {
  libvirt: group("The connection to libvirt.", {
    uri: setting(
      text(/^[a-z][\w.+-]*:\S+$/i, "a libvirt URI, such as qemu:///system"),
      "qemu:///system",
      "The hypervisor to connect to, as in `virsh --connect`.",
    ),
    call_seconds: setting(SECONDS, 60, "How many seconds libvirt may take to answer a call."),
  }),
  pools: group("The storage pools. They must be different.", {
    templates: setting(
      NAME,
      "base_imgs",
      "The storage pool of the templates. `make_base_image.sh` and, if it is the default, " +
        "`template add` create it. Only the commands `template` and `gc` write to it.",
      { guess: "template_pool" },
    ),
    overlays: setting(
      NAME,
      "libvirt-gci",
      "The storage pool of machines' disks. The default pool is created on first use in " +
        "`/var/lib/libvirt/images`; any other must exist.",
      { guess: "overlay_pool" },
    ),
  }),
  default_template: setting(
    text(TEMPLATE_NAME, "the name of a template"),
    null,
    "The template for jobs that name none in `DISTRO` or `image:`.",
    { unset: "these jobs fail", basic: true, example: "debian-12" },
  ),
  allowed_templates: setting(
    PATTERNS,
    ["*"],
    "The templates that jobs may use besides the default and those under `templates`. `*` " +
      "stands for any characters. `[]` allows no other templates.",
    { basic: true },
  ),
  metrics_file: setting(
    text(/^\/([^\p{C}]*\/)?[^\p{C}/]+\.prom$/u, "an absolute path that ends in .prom"),
    null,
    "The file in which node_exporter's textfile collector finds the metrics.",
    { unset: "no metrics" },
  ),
  host: group(
    "How much of the host machines may use. A job waits in a queue until its machine fits.",
    {
      max_machines: setting(whole(1, 10_000), null, "How many machines may run at once.", {
        unset: "no limit",
        basic: true,
        example: 8,
      }),
      max_kept_machines: setting(
        whole(0, 10_000),
        4,
        "How many machines of failed jobs may be kept at once. All others are removed as usual.",
      ),
      overcommit_memory: setting(
        FLAG,
        false,
        "Start machines even if their memory adds up to more than the host has.",
      ),
      reserve_memory_mib: setting(
        whole(0, 16_777_216),
        512,
        "How much memory stays free for the host and QEMU.",
      ),
      reserve_disk_gib: setting(
        whole(0, 65_536),
        1,
        "How much space stays free in the overlay pool, because disks grow while machines run. " +
          "0 turns the check off.",
      ),
      queue_seconds: setting(
        whole(0, 86_400),
        1800,
        "How many seconds a job waits for room before prepare fails and GitLab Runner retries.",
        { guess: "admission_seconds" },
      ),
    },
  ),
  post_mortem: group(
    "Post-mortems: the console, the screen and other data of machines that failed or were lost.",
    {
      dir: setting(DIRECTORY, null, "The directory of the post-mortems.", {
        unset: "`/var/lib/libvirt-gci/post-mortem` for root, else `libvirt-gci/post-mortem` in " +
          "`$XDG_STATE_HOME` or `~/.local/state`",
      }),
      count: setting(
        whole(0, 10_000),
        20,
        "How many post-mortems are kept. 0 keeps none. If there are more, the project with the " +
          "most post-mortems loses its oldest.",
        { guess: "post_mortems" },
      ),
      total_mib: setting(
        whole(1, 1_000_000),
        100,
        "How large all post-mortems together may be. One file may have at most a quarter of that.",
        { guess: "post_mortem_mib" },
      ),
    },
  ),
};
