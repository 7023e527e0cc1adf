// SPDX-License-Identifier: GPL-2.0-or-later

const DATA = new URL("../data/tls/", import.meta.url);

/** A certificate that no system trusts, for the names in {@linkcode TLS_NAMES}, and its key. */
export const TLS = {
  cert: Deno.readTextFileSync(new URL("server.pem", DATA)),
  key: Deno.readTextFileSync(new URL("server.key", DATA)),
};

export const TLS_NAMES = ["images.example", "registry.example", "localhost", "127.0.0.1"] as const;

/** The file with the certificate of who signed it, for `SSL_CERT_FILE`. */
export const CA_FILE = new URL("ca.pem", DATA).pathname;
