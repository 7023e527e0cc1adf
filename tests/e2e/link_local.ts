// SPDX-License-Identifier: GPL-2.0-or-later
import { createSocket } from "node:dgram";

/**
 * Sends an IPv4 packet in a frame to 01:80:c2:00:00:0e, which a bridge gives to its host, and waits for
 * an answer. The arguments: the card, its MAC address, the source, the destination, the port.
 */
export const LINK_LOCAL = `
use strict; use Socket;
my ($card, $mac, $from, $to, $port) = @ARGV;
open(my $file, "<", "/sys/class/net/$card/ifindex") or die; chomp(my $index = <$file>);
socket(my $in, PF_INET, SOCK_DGRAM, 0) or die; bind($in, sockaddr_in(28083, INADDR_ANY)) or die;
my $udp = pack("nnnn", 28083, $port, 9, 0) . "x";
my @head = (0x4500, 20 + length $udp, 1, 0, 0x4011, 0, unpack("n2", inet_aton($from)), unpack("n2", inet_aton($to)));
my $sum = 0; $sum += $_ for @head; $sum = ($sum & 0xffff) + ($sum >> 16) while $sum >> 16;
$head[5] = ~$sum & 0xffff;
(my $hex = $mac) =~ s/://g;
my $frame = pack("H12H12n", "0180c200000e", $hex, 0x0800) . pack("n10", @head) . $udp;
socket(my $out, 17, 3, 8) or die "$!";
send($out, $frame, 0, pack("SnlSCCH16", 17, 0x0800, $index, 0, 0, 6, "0180c200000e0000")) or die "$!";
my $ready = ""; vec($ready, fileno($in), 1) = 1;
exit(select($ready, undef, undef, 3) > 0 ? 0 : 1);
`;

/** Answers each packet until it is disposed of. */
export async function answerPackets(port: number): Promise<Disposable> {
  const socket = createSocket("udp4");
  socket.on("message", (_, { address, port }) => socket.send("answer", port, address));
  const { promise, resolve } = Promise.withResolvers<void>();
  socket.bind(port, "0.0.0.0", resolve);
  await promise;
  return { [Symbol.dispose]: () => socket.close() };
}
