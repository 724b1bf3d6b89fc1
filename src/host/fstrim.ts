import { PATIENCE } from '../base/patience.ts';
import { failedError, type Tools, unknownOutputError } from './tools.ts';

const DEADLINE_MS = PATIENCE.trim.ms;

/**
 * Discards what the mounted filesystem does not use; the bytes that it told the device. ext4 tells each free
 * range once for a mount. Rejects `HOST_TOOL_FAILED` with what fstrim said (a device that takes no discards),
 * `HOST_UNKNOWN_OUTPUT`, and as `Tools.run` does.
 */
export async function fstrim(tools: Tools, mountPoint: string): Promise<number> {
  const argv = ['fstrim', '--verbose', mountPoint] as const;
  const output = await tools.run(argv, { deadlineMs: DEADLINE_MS });
  if (output.exitCode !== 0) throw failedError(argv, output);
  return parseFstrim(output.stdout);
}

/** `/data: 228.1 MiB (239140864 bytes) trimmed`; util-linux, sys-utils/fstrim.c. */
export function parseFstrim(text: string): number {
  const match = /: [^:\n]*\((\d+) bytes\) trimmed\n?$/.exec(text);
  if (!match) throw unknownOutputError('fstrim', 'what it trimmed', text);
  return Number(match[1]);
}
