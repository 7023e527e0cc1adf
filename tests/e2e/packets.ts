// SPDX-License-Identifier: GPL-2.0-or-later
import { createSocket } from "node:dgram";

/**
 * A program in Perl that sends a word by UDP, in a frame of its own making. The arguments: the card, its MAC address, that of the
 * destination, the source, the destination, the port, the word.
 */
export const FRAME = `
use strict; use Socket;
my ($card, $mac, $to_mac, $from, $to, $port, $word) = @ARGV;
open(my $file, "<", "/sys/class/net/$card/ifindex") or die; chomp(my $index = <$file>);
my $udp = pack("nnnn", 28083, $port, 8 + length $word, 0) . $word;
my @head = (0x4500, 20 + length $udp, 1, 0, 0x4011, 0, unpack("n2", inet_aton($from)), unpack("n2", inet_aton($to)));
my $sum = 0; $sum += $_ for @head; $sum = ($sum & 0xffff) + ($sum >> 16) while $sum >> 16;
$head[5] = ~$sum & 0xffff;
s/://g for $mac, $to_mac;
my $frame = pack("H12H12n", $to_mac, $mac, 0x0800) . pack("n10", @head) . $udp;
socket(my $out, 17, 3, 8) or die "$!";
send($out, $frame, 0, pack("SnlSCCH16", 17, 0x0800, $index, 0, 0, 6, $to_mac . "0000")) or die "$!";
`;

/** Sends a word by UDP as often as it can, in the background. The arguments: the address, the port. */
export const FLOOD = `
use strict; use IO::Socket::INET;
my ($to, $port) = @ARGV;
exit if fork;
open($_, "+<", "/dev/null") for *STDIN, *STDOUT, *STDERR;
my $socket = IO::Socket::INET->new(PeerAddr => $to, PeerPort => $port, Proto => "udp") or exit;
while (1) { $socket->send("flood") }
`;

/** What came by UDP until it is disposed of. */
export async function hear(port: number): Promise<Disposable & { readonly words: Set<string> }> {
  const words = new Set<string>();
  const socket = createSocket("udp4");
  socket.on("message", (message) => words.add(message.toString()));
  const { promise, resolve } = Promise.withResolvers<void>();
  socket.bind(port, "0.0.0.0", resolve);
  await promise;
  return { words, [Symbol.dispose]: () => socket.close() };
}
