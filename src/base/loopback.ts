import { BlockList, isIPv6 } from 'node:net';

/** RFC 1122 section 3.2.1.3, RFC 4291 section 2.5.3. */
const LOOPBACK = new BlockList();
LOOPBACK.addSubnet('127.0.0.0', 8, 'ipv4');
LOOPBACK.addAddress('::1', 'ipv6');

/**
 * True for a name or an address whose bytes stay on this host: `localhost`, 127.0.0.0/8, ::1, also as `[::1]`
 * and `::ffff:127.0.0.1`. Pure.
 */
export function isLoopback(host: string): boolean {
  const address = host.replace(/^\[|\]$/g, '').replace(/^::ffff:(?=\d+\.)/i, '');
  if (address.toLowerCase() === 'localhost') return true;
  return LOOPBACK.check(address, isIPv6(address) ? 'ipv6' : 'ipv4');
}
