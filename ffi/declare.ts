// SPDX-License-Identifier: GPL-2.0-or-later

/** How the tables of C functions are written: the result first, then the parameters, as in C. */

interface Declaration<Result, Parameters> {
  readonly parameters: Parameters;
  readonly result: Result;
}

export function fn<
  Result extends Deno.NativeResultType,
  const Parameters extends readonly Deno.NativeType[],
>(result: Result, ...parameters: Parameters): Declaration<Result, Parameters> {
  return { parameters, result };
}

/** A function that may wait: it runs on a thread of its own and gives a promise. */
export function blocking<
  Result extends Deno.NativeResultType,
  const Parameters extends readonly Deno.NativeType[],
>(
  result: Result,
  ...parameters: Parameters
): Declaration<Result, Parameters> & { readonly nonblocking: true } {
  return { parameters, result, nonblocking: true };
}
